"""Budget of a run, hours of work and bytes on disk, and the subscriber that stops the run when it is spent."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from shlex import quote

from daskpipe.config.models import Config, parse_shard
from daskpipe.core.errors import Interrupted
from daskpipe.core.events import Event, StageStarted, UnitCommitted, UnitGivenUp, UnitLost, UnitYielded
from daskpipe.core.validation import in_bytes
from daskpipe.engine.ledger import LedgerReader
from daskpipe.engine.manifests import STAGE_ORDER
from daskpipe.engine.run_directory import RunDirectory

HOUR = 3600.0
"""Seconds of an hour."""

FRUITLESS = ("UnitLost", "UnitYielded", "UnitGivenUp")
"""Events that record work on a unit that its manifest does not count."""


@dataclass
class Spent:
    """Seconds of work and bytes of files that units took, by stage."""

    seconds: Counter[str] = field(default_factory=Counter)
    """Seconds of work on units, by stage; attempts that were lost, yielded or given up count too."""
    bytes: Counter[str] = field(default_factory=Counter)
    """Size of the files of units, without their manifests, by stage."""

    def add_work(self, stage: str, seconds: float, n_bytes: int) -> None:
        """Count a unit, or an attempt at one."""
        self.seconds[stage] += seconds  # type: ignore[assignment]  # a Counter of floats
        self.bytes[stage] += n_bytes


def measure_spent(directory: RunDirectory) -> Spent:
    """Measure the work of a run over all starts of its driver.

    Committed units are read from their manifests; attempts that did not end in a commit, from the ledger.
    """
    total = Spent()
    for path in directory.list_manifests():
        receipt = json.loads(path.read_bytes())["receipt"]
        total.add_work(receipt["stage"], receipt["seconds"], receipt["n_bytes"])
    for event in LedgerReader(directory).read_new_events():
        if event.get("event") in FRUITLESS:
            total.add_work(event["stage"], event.get("seconds", 0.0), 0)
    return total


def compute_limits(config: Config) -> tuple[float | None, int | None]:
    """Return the hours and bytes that a run may take; for a shard, its share. None where there is no limit."""
    n = parse_shard(config.shard)[1] if config.shard else 1
    hours, size = config.budget.hours, config.budget.bytes
    return (None if hours is None else hours / n, None if size is None else in_bytes(size) // n)


class BudgetLimiter:
    """Subscriber that stops a run when its budget of hours or bytes is spent and there is more to do.

    Units under way are given up; nothing that is committed is lost. Subscribe it last, so that the others receive the
    event that exceeds the budget.

    Parameters
    ----------
    directory
        The run directory; work done for earlier drivers counts too.
    config
        Config of the run.
    """

    def __init__(self, directory: RunDirectory, config: Config) -> None:
        self.directory, self.config = directory, config
        self.hours, self.bytes = compute_limits(config)
        self.spent = measure_spent(directory) if self.hours is not None or self.bytes is not None else Spent()
        self._stage, self._left, self._units = "", 0, 0

    def __call__(self, event: Event) -> None:
        """Count the work of an event, and stop the run if the budget is spent.

        Raises
        ------
        Interrupted
            If the budget is spent and units are left.
        """
        match event:
            case StageStarted():
                self._stage, self._units = event.stage, event.n_units
                self._left = event.n_units - event.n_committed
            case UnitCommitted():
                self.spent.add_work(event.stage, event.seconds, event.n_bytes)
                self._left -= 1
            case UnitLost() | UnitYielded() | UnitGivenUp():
                self.spent.add_work(event.stage, event.seconds, 0)
            case _:
                return
        if self._left > 0:
            self._check_limits()

    def _check_limits(self) -> None:
        """Stop the run if hours or bytes are spent."""
        hours, n_bytes = sum(self.spent.seconds.values()) / HOUR, self.spent.bytes.total()
        if self.hours is not None and hours >= self.hours:
            of_stages = ", ".join(f"{name} {value / HOUR:.3g}" for name, value in self.spent.seconds.most_common())
            self._stop_run("hours", f"{self.config.budget.hours:g}", f"{hours:.3g} h of work: {of_stages}")
        if self.bytes is not None and n_bytes >= self.bytes:
            of_stages = ", ".join(f"{name} {format_bytes(n)}" for name, n in self.spent.bytes.most_common())
            self._stop_run("bytes", str(self.config.budget.bytes), f"{format_bytes(n_bytes)}: {of_stages}")

    def _stop_run(self, what: str, limit: str, taken: str) -> None:
        """Raise Interrupted with what is left to do and the command that goes on."""
        share = f", of which shard {self.config.shard} has its share," if self.config.shard else ""
        later = STAGE_ORDER[STAGE_ORDER.index(self._stage) + 1 :] if self._stage in STAGE_ORDER else ()
        then = f", then {', '.join(name for name in later if name != 'describe-against')}" if later else ""
        raise Interrupted(
            f"budget.{what}={limit}{share} is spent ({taken}). Left to do: {self._left:,} of {self._units:,} units of "
            f"{self._stage}{then}. To go on type: "
            f"daskpipe resume {quote(str(self.directory.root))} budget.{what}={_double_limit(limit)}"
        )


def _double_limit(limit: str) -> str:
    """Return twice a limit such as ``8`` or ``50 GB``, in the same unit."""
    number = limit.rstrip("BiTGMk ")
    return f"{2 * float(number):g}{limit[len(number) :].strip()}"


def format_bytes(n_bytes: float) -> str:
    """Write a number of bytes for people.

    Examples
    --------
    >>> format_bytes(1_234_567_890)
    '1.23 GB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.3g} TB"
