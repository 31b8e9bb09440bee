"""What happens in a run, as dataclasses that progress bars, logs and the ledger subscribe to.

The core never prints: it calls ``emit(event)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events."""

    def as_json(self) -> dict[str, Any]:
        """Return the event as JSON types, its class name under ``event``."""
        return {"event": type(self).__name__, **asdict(self)}


Emit = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """A driver began to work on a run directory."""

    run_dir: str
    name: str
    dashboard: str | None
    workers: list[str]
    versions: dict[str, str] = field(default_factory=dict)
    """Of the packages that the numbers come from, where the driver runs."""


@dataclass(frozen=True, kw_only=True)
class StageStarted(Event):
    """A stage was planned; `n_committed` of its `n_units` units stand already."""

    stage: str
    n_units: int
    n_committed: int
    n_inputs: int
    what: str


@dataclass(frozen=True, kw_only=True)
class UnitCommitted(Event):
    """A unit was committed (by this driver's tasks, not found committed)."""

    stage: str
    index: int
    key: str
    n_inputs: int
    n_out: int
    n_rejected: int
    counts: dict[str, int]
    n_bytes: int
    seconds: float
    worker: str
    tallies: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class UnitLost(Event):
    """A unit was lost with its worker and is tried again; `kind` is ``infrastructure`` or ``suspect``."""

    stage: str
    index: int
    key: str
    losses: int
    kind: str
    reason: str
    seconds: float = 0.0
    """Of work that the attempt took."""


@dataclass(frozen=True, kw_only=True)
class UnitYielded(Event):
    """A unit stopped at a checkpoint because its worker ends soon; it goes on elsewhere."""

    stage: str
    index: int
    key: str
    seconds: float = 0.0
    """Of work that the attempt took."""


@dataclass(frozen=True, kw_only=True)
class UnitGivenUp(Event):
    """An attempt at a unit ended with its driver; the next driver tells."""

    stage: str
    key: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class UnitForgotten(Event):
    """A committed unit was taken away on purpose and will be made again: it was damaged, or stood on what changes."""

    stage: str
    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class UnitSuperseded(Event):
    """A committed unit was made by an earlier version of its stage; it stays, and counts no longer."""

    stage: str
    key: str


@dataclass(frozen=True, kw_only=True)
class StageFinished(Event):
    """All units of a stage are committed."""

    stage: str
    seconds: float
    n_out: int
    n_rejected: int
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """The dataset is in place."""

    dataset: str
    seconds: float
    quarantined: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """Something that a person should know and that is mended without them: a job that failed, a host left out."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Insecure(Event):
    """A scheduler listens beyond this machine without TLS, as the config says; it was said on the screen, too."""

    address: str


def fan_out(*subscribers: Emit) -> Emit:
    """Return one function that hands each event to all subscribers in order."""

    def emit(event: Event) -> None:
        for subscriber in subscribers:
            subscriber(event)

    return emit
