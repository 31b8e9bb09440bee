"""Hold the verdict of the quality gate, and format it for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daskpipe.core.text import make_printable
from daskpipe.store.quality.check import Check
from daskpipe.store.quality.settings import Profile

LISTED = 3
"""Offenders per check in the text for people."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Facts about a run that its structures do not contain; None means: read it from the attributes of the dataset.

    Parameters
    ----------
    failures
        Number of structures on which the teacher failed, by reason.
    elements
        Symbols of the elements that the run asked for.
    system_types
        System types that the run asked for; the attributes do not record them.
    """

    failures: Mapping[str, int] | None = None
    elements: Sequence[str] | None = None
    system_types: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Verdict of the gate on a dataset.

    Parameters
    ----------
    go
        Whether no check failed.
    dataset, dataset_key, n_structures
        Path, key and size of the dataset.
    checks
        In the order of `daskpipe.store.quality.check_table.CHECKS`.
    profile
        Profile that judged the data, see `daskpipe.store.quality.profiles`.
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


def format_verdict(verdict: Verdict) -> list[str]:
    """Format a verdict as plain lines for people; control characters of names are escaped."""
    head = f"{_escape_text(verdict.dataset)}: {verdict.n_structures:,} structures, judged as {verdict.profile}"
    return [head, *format_checks(verdict.checks), format_result(verdict)]


def format_result(verdict: Verdict) -> str:
    """Format GO, or NO-GO with the checks that failed, and the checks that warn.

    Examples
    --------
    >>> failed = Check(name="overlap", verdict="fail", says="two atoms too close")
    >>> format_result(Verdict(go=False, dataset="d.zarr", dataset_key="k", n_structures=1, checks=(failed,)))
    'NO-GO: overlap'
    """
    failed, warned = ([check.name for check in verdict.checks if check.verdict == how] for how in ("fail", "warn"))
    warnings = f"; warnings: {', '.join(warned)}" if warned else ""
    return ("GO" if verdict.go else f"NO-GO: {', '.join(failed)}") + warnings


def format_checks(checks: Iterable[Check]) -> list[str]:
    """Format one line per check, and the worst offenders of those that fail or warn."""
    marks = {"pass": "ok", "warn": "warn", "fail": "FAIL", "skipped": "-"}
    rows = []
    for check in checks:
        numbers = ""
        if check.value is not None or check.threshold is not None:
            value = "none" if check.value is None else f"{check.value:.4g}"
            numbers = f"{value} (limit {check.threshold:.4g} {check.unit})" if check.threshold is not None else value
        rows.append(f"{marks[check.verdict]:<4}  {check.name:<19}  {numbers:<38}  {_escape_text(check.says)}".rstrip())
        if check.verdict in ("fail", "warn") and check.offenders:
            more = check.n_offenders - min(LISTED, len(check.offenders))
            listed = ", ".join(check.offenders[:LISTED]) + (f" and {more:,} more" if more else "")
            rows.append(f"      {'':<19}  {listed}")
    return rows


def _escape_text(text: str) -> str:
    """Escape characters that do not print (control, bidirectional ...), line ends included."""
    return make_printable(text, keep_line_ends=False)
