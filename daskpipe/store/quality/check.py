"""Define a check of the quality gate: its verdict, value, limit and offenders."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

MOST_OFFENDERS = 1000
"""Most offending structures that a check names, the worst first; their number is exact in any case."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Outcome of one check.

    Parameters
    ----------
    name
        As the threshold in `daskpipe.store.quality.settings.Quality`.
    verdict
        ``warn`` if it fails, and the profile or the settings say that this is no NO-GO; ``skipped`` if it is turned
        off, or the dataset does not hold what it needs.
    value, threshold, unit
        What was measured and what it is held against; a value that is not finite is None.
    says
        One sentence for people.
    offenders
        Ids in hex of the structures it is about, the worst first, `MOST_OFFENDERS` at most.
    n_offenders
        How many there are in all.
    hard
        Whether what fails is wrong in any data, such as a number that is not finite, so that no setting makes it a
        warning.
    """

    name: str
    verdict: Literal["pass", "warn", "fail", "skipped"]
    value: float | None = None
    threshold: float | None = None
    unit: str = "1"
    says: str
    offenders: tuple[str, ...] = ()
    n_offenders: int = 0
    hard: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the check as JSON types."""
        facts = {name: value for name, value in asdict(self).items() if name != "hard"}
        return {**facts, "offenders": list(self.offenders)}


def skip_check(name: str, why: str) -> Check:
    """Return a check that was not made."""
    return Check(name=name, verdict="skipped", says=why)


def name_offenders(ids: np.ndarray, rows: np.ndarray, badness: np.ndarray) -> dict[str, Any]:
    """Name offenders: the worst first, and among equals by id, so that the order of the dataset does not matter.

    Parameters
    ----------
    ids
        Shape (structure,), 16 bytes each.
    rows, badness
        Offending structures, and how bad each is; larger is worse.
    """
    names = [ids[row].tobytes() for row in rows]
    order = sorted(range(len(names)), key=lambda index: (-float(badness[index]), names[index]))
    return {"offenders": tuple(names[index].hex() for index in order[:MOST_OFFENDERS]), "n_offenders": len(names)}


def make_check(
    name: str, failed: bool, says: str, value: float, threshold: float | None, unit: str, **rest: Any
) -> Check:
    """Make a check with the verdict that follows from whether it failed; a value that is not finite becomes None."""
    number = float(value) if math.isfinite(value) else None
    verdict: Literal["fail", "pass"] = "fail" if failed else "pass"
    return Check(name=name, verdict=verdict, value=number, threshold=threshold, unit=unit, says=says, **rest)


def format_count(n: int) -> str:
    """Format a number of structures, e.g. ``1 structure`` or ``1,200 structures``."""
    return f"{n:,} structure{'s' if n != 1 else ''}"
