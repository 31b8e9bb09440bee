"""Define what happens in a run as events, to which progress bars, logs and the ledger subscribe.

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
"""A function that is called with each event."""


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """A driver began to work on a run directory."""

    run_dir: str
    name: str
    dashboard: str | None
    workers: list[str]
    versions: dict[str, str] = field(default_factory=dict)
    """Versions, where the driver runs, of the packages that decide the numbers."""


@dataclass(frozen=True, kw_only=True)
class StageStarted(Event):
    """A stage was planned; `n_committed` of its `n_units` units are committed already."""

    stage: str
    n_units: int
    n_committed: int
    n_inputs: int
    what: str


@dataclass(frozen=True, kw_only=True)
class UnitCommitted(Event):
    """A unit was committed by a task of this driver; units committed earlier give no event."""

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
    """Seconds of work of the attempt."""


@dataclass(frozen=True, kw_only=True)
class UnitYielded(Event):
    """A unit stopped at a checkpoint because its worker ends soon; another worker continues it."""

    stage: str
    index: int
    key: str
    seconds: float = 0.0
    """Seconds of work of the attempt."""


@dataclass(frozen=True, kw_only=True)
class UnitGivenUp(Event):
    """An attempt at a unit ended with its driver; the next driver reports it."""

    stage: str
    key: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class UnitForgotten(Event):
    """A committed unit was removed on purpose and will be made again: it was damaged, or what it read will change."""

    stage: str
    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class UnitSuperseded(Event):
    """A committed unit was made by an earlier version of its stage; it is kept and no longer counted."""

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
    """A person should know of something that the run has dealt with itself: a job that failed, a host left out."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Insecure(Event):
    """A scheduler listens beyond this machine without TLS, as the config asks; the screen shows it as well."""

    address: str


def fan_out(*subscribers: Emit) -> Emit:
    """Return one function that passes each event to all subscribers, in order."""

    def emit(event: Event) -> None:
        for subscriber in subscribers:
            subscriber(event)

    return emit
