"""Hold the verdict of the quality gate, and print it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daskpipe.core.text import make_printable
from daskpipe.store.quality.check import Check
from daskpipe.store.quality.settings import Profile

if TYPE_CHECKING:
    pass

LISTED = 3
"""Offenders of a check that the text for people names."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the run knows and the structures do not tell; what is None is read from the dataset's attributes.

    Parameters
    ----------
    failures
        How many structures the teacher was given and failed on, by reason.
    elements
        Symbols of the elements that were asked for.
    system_types
        System types that were asked for; the attributes do not tell them.
    """

    failures: Mapping[str, int] | None = None
    elements: Sequence[str] | None = None
    system_types: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate says.

    Parameters
    ----------
    go
        Whether no check failed.
    dataset, dataset_key, n_structures
        What was judged.
    checks
        In the order of the thresholds in `Quality`.
    profile
        What the data was taken for, see `daskpipe.store.quality.profiles`.
    """

    go: bool
    dataset: str
    dataset_key: str
    n_structures: int
    checks: tuple[Check, ...]
    profile: Profile = "run"

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as JSON types."""
        return {
            "go": self.go,
            "dataset": self.dataset,
            "dataset_key": self.dataset_key,
            "n_structures": self.n_structures,
            "profile": self.profile,
            "checks": [check.as_json() for check in self.checks],
        }


def lines(verdict: Verdict) -> list[str]:
    """Return a verdict as plain lines for people; names from outside are printed without control characters."""
    dataset = make_printable(verdict.dataset, keep_line_ends=False)
    head = f"{dataset}: {verdict.n_structures:,} structures, judged as {verdict.profile}"
    return [head, *check_lines(verdict.checks), last_line(verdict)]


def last_line(verdict: Verdict) -> str:
    """Return GO, or NO-GO and the checks that say so; and the checks that warn."""
    failed, warned = ([check.name for check in verdict.checks if check.verdict == how] for how in ("fail", "warn"))
    warnings = f"; warnings: {', '.join(warned)}" if warned else ""
    return ("GO" if verdict.go else f"NO-GO: {', '.join(failed)}") + warnings


def check_lines(found: Iterable[Check]) -> list[str]:
    """Return a line a check: mark, number and limit, what it says; of those that fail or warn the worst offenders."""
    marks = {"pass": "ok", "warn": "warn", "fail": "FAIL", "skipped": "-"}
    rows = []
    for check in found:
        numbers = ""
        if check.value is not None or check.threshold is not None:
            value = "none" if check.value is None else f"{check.value:.4g}"
            numbers = f"{value} (limit {check.threshold:.4g} {check.unit})" if check.threshold is not None else value
        says = make_printable(check.says, keep_line_ends=False)
        rows.append(f"{marks[check.verdict]:<4}  {check.name:<19}  {numbers:<38}  {says}".rstrip())
        if check.verdict in ("fail", "warn") and check.offenders:
            more = check.n_offenders - min(LISTED, len(check.offenders))
            listed = ", ".join(check.offenders[:LISTED]) + (f" and {more:,} more" if more else "")
            rows.append(f"      {'':<19}  {listed}")
    return rows
