"""Read the progress of a run from its directory alone, on any machine that shares it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from daskpipe.core.errors import count_reasons
from daskpipe.engine.ledger import LedgerReader
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs import detached, lease

ASK_SECONDS = 30.0
"""Seconds between two queries of the queue in which a driver waits; the queue serves all users of the site."""

UNDER_WAY = ("running", "queued")
"""States of a run that can still change."""


@dataclass
class StageProgress:
    """Progress of a stage, as far as the ledger records it."""

    planned: int = 0
    committed: int = 0
    out: int = 0
    rejected: int = 0
    lost: int = 0
    suspect: int = 0
    yielded: int = 0

    def __post_init__(self) -> None:
        self._since = self._until = 0.0
        self._before = 0

    def begin_stage(self, n_units: int, n_committed: int, at: float) -> None:
        """Record that a driver began the stage, or resumed it."""
        self.planned, self.committed = n_units, n_committed
        self._since, self._until, self._before = at, at, n_committed

    def add_commit(self, at: float) -> None:
        """Record that a unit was committed."""
        self.committed += 1
        self._until = at

    @property
    def rate(self) -> float | None:
        """Units that this driver commits in a second; None before its first commit."""
        n_done, seconds = self.committed - self._before, self._until - self._since
        return n_done / seconds if n_done > 0 and seconds > 0 else None


@dataclass
class RunWatcher:
    """Reader of the progress of a run that reads only new lines of the ledger each time.

    Parameters
    ----------
    run_dir
        A run directory.

    Raises
    ------
    ConfigError
        If it is no run directory.
    """

    run_dir: Path | str
    stages: dict[str, StageProgress] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory = RunDirectory.open_existing(self.run_dir)
        self._journal = LedgerReader(self.directory)
        self._now: str | None = None
        self._finished = False
        self._drivers = 0
        self._workers: int | None = None
        self._notices: deque[str] = deque(maxlen=1)
        self._gone: dict[str, bool] = {}
        self._asked = -ASK_SECONDS

    def read_status(self) -> dict[str, Any]:
        """Return the present progress of the run, as `read_status` does."""
        for event in self._journal.read_new_events():
            self._apply_event(event)
        driver = lease.find_driver(self.directory.root)
        queued = self._find_queued() if driver is None else None
        if queued is not None:  # it may have begun during the query of the queue
            driver = lease.find_driver(self.directory.root)
        complete = self._finished and self.directory.dataset.exists()
        state = "running" if driver else "queued" if queued else "complete" if complete else "stopped"
        now = self.stages[self._now] if self._now is not None and state == "running" else None
        rate = None if now is None else now.rate
        return {
            "run_dir": str(self.directory.root),
            "state": state,
            "driver": None
            if driver is None
            else {"host": driver.host, "pid": driver.pid, "job_id": driver.job_id, "since": driver.since},
            "queued": None if queued is None or driver else {"job_id": queued.job_id, "since": queued.at},
            "log": None if (record := detached.read_record(self.directory.root)) is None else record.log,
            "workers": self._workers if driver else None,
            "stages": {stage: asdict(row) for stage, row in self.stages.items()},
            "stage": self._now if now is not None else None,
            "rate": None if rate is None else round(rate, 4),
            "seconds_left": None if now is None or rate is None else round((now.planned - now.committed) / rate),
            "notice": self._notices[-1] if self._notices and state == "running" else None,
            "quarantined": count_reasons(self.directory.read_quarantine()),
            "driver_starts": self._drivers,
            "dataset": str(self.directory.dataset) if self.directory.dataset.exists() else None,
        }

    def _apply_event(self, event: dict[str, Any]) -> None:
        at = datetime.fromisoformat(event["at"]).timestamp()
        row = self.stages.get(event.get("stage", ""), StageProgress())
        match event["event"]:
            case "RunStarted":
                self._finished, self._now = False, None
                self._drivers += 1
                self._workers = len(event["workers"])
            case "StageStarted":
                self._now = event["stage"]
                row = self.stages.setdefault(event["stage"], row)
                row.begin_stage(event["n_units"], event["n_committed"], at)
            case "UnitCommitted":
                row.add_commit(at)
            case "UnitLost" if event.get("kind") == "suspect":
                row.suspect += 1
            case "UnitLost":
                row.lost += 1
            case "UnitYielded":
                row.yielded += 1
            case "UnitForgotten":
                row.committed -= 1
                self._finished = False
            case "StageFinished":
                row.out, row.rejected = event["n_out"], event["n_rejected"]
                self._now = None
            case "RunFinished":
                self._finished = True
            case "Notice":
                self._notices.append(event["message"])

    def _find_queued(self) -> detached.DriverRecord | None:
        """Return the detached driver that waits in a queue; None if the queue no longer lists its job."""
        record = detached.find_waiting(self.directory.root)
        if record is None:
            return None
        if time.monotonic() - self._asked >= ASK_SECONDS:
            self._gone = {record.token: detached.is_queued(record) is False}
            self._asked = time.monotonic()
        return None if self._gone.get(record.token) else record


def read_status(run_dir: Path | str) -> dict[str, Any]:
    """Read the progress of a run.

    Parameters
    ----------
    run_dir
        A run directory; need not be complete.

    Returns
    -------
    dict
        ``state``: ``running``, ``queued`` (the job of a detached driver waits), ``complete`` or ``stopped``;
        ``driver``: host, pid, job_id and since; ``queued``: job_id and since; ``log`` of a detached driver;
        ``workers`` that were connected when the driver began; ``stages``: units planned and committed, outputs,
        rejected, units lost with their workers, units suspected of ending their workers, units that yielded; the
        present ``stage``, its ``rate`` in units a second and the estimate ``seconds_left``; the last ``notice``;
        ``quarantined`` by reason, ``driver_starts`` and ``dataset``. None where there is none. JSON types.

    Raises
    ------
    ConfigError
        If it is no run directory.
    """
    return RunWatcher(run_dir).read_status()


def is_driven(directory: RunDirectory) -> bool:
    """Tell whether a driver works in the run directory, on any machine."""
    return lease.find_driver(directory.root) is not None
