"""Define the outcome of a check of the quality gate: verdict, value, limit and offenders."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

MOST_OFFENDERS = 1000
"""Most offending structures that a check lists, the worst first; their number is exact in any case."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Outcome of one check.

    Parameters
    ----------
    name
        Name in `daskpipe.store.quality.check_table.CHECKS`.
    verdict
        ``warn`` for a failure that the profile or the settings allow; ``skipped`` if the check is turned off, or the
        dataset lacks the data that it needs.
    value, threshold, unit
        Measured value and its limit; a value that is not finite is None.
    says
        One sentence for people.
    offenders
        Ids in hex of the structures at fault, the worst first, at most `MOST_OFFENDERS`.
    n_offenders
        Number of all structures at fault.
    hard
        Whether the fault is wrong in any data, such as a number that is not finite, so that no setting turns it into a
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
    """Return a check that was not made.

    Examples
    --------
    >>> skip_check("diversity", "turned off").verdict
    'skipped'
    """
    return Check(name=name, verdict="skipped", says=why)


def name_offenders(ids: np.ndarray, rows: np.ndarray, badness: np.ndarray) -> dict[str, Any]:
    """List offenders, the worst first and equals by id, so that the order of the dataset does not matter.

    Parameters
    ----------
    ids
        Shape (structure,), 16 bytes each.
    rows, badness
        Offending structures, and a number for each that is larger the worse it is.

    Returns
    -------
    dict
        ``offenders`` and ``n_offenders`` of `Check`.
    """
    names = [ids[row].tobytes() for row in rows]
    order = sorted(range(len(names)), key=lambda index: (-float(badness[index]), names[index]))
    return {"offenders": tuple(names[index].hex() for index in order[:MOST_OFFENDERS]), "n_offenders": len(names)}


def make_check(
    name: str, failed: bool, says: str, value: float, threshold: float | None, unit: str, **rest: Any
) -> Check:
    """Make a check that fails or passes; a value that is not finite becomes None.

    Examples
    --------
    >>> check = make_check("forces", 12.0 > 10.0, "99 % of the forces are below 12 eV/Å", 12.0, 10.0, "eV/Å")
    >>> check.verdict, check.value
    ('fail', 12.0)
    """
    number = float(value) if math.isfinite(value) else None
    verdict: Literal["fail", "pass"] = "fail" if failed else "pass"
    return Check(name=name, verdict=verdict, value=number, threshold=threshold, unit=unit, says=says, **rest)


def format_count(n: int) -> str:
    """Format a number of structures.

    Examples
    --------
    >>> format_count(1), format_count(1200)
    ('1 structure', '1,200 structures')
    """
    return f"{n:,} structure{'s' if n != 1 else ''}"
