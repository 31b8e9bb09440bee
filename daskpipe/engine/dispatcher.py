"""Dispatch the units of a stage: keep one under way for each slot of the pool, short ones a few ahead, and retry.

Faults come in classes, each with a limit of its own:

- infrastructure: the worker, its machine or the disk went away under the unit. The unit is tried again without limit,
  after pauses that grow; a stage that only loses units, without any progress, is stopped.
- yield: the worker ends soon. Another worker continues the unit.
- suspect: the process died under the unit, hung, or ran out of memory. The unit is tried again; the last attempt
  computes its inputs in isolation, each in a process of its own, and rejects those that kill it.
- everything else (config, integrity) stops the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

from daskpipe.core.errors import ClusterError, DaskpipeError, DiskError, DiskUnreachable, Suspect, Yielded
from daskpipe.core.events import Emit, UnitCommitted, UnitLost, UnitYielded
from daskpipe.engine.units import Receipt, Unit

NO_WORKER_SECONDS = 120.0
"""Seconds that a run waits without a living worker, where nothing starts workers, before it stops."""

FRUITLESS_LIMIT = 20
"""Losses in a row for each slot, without a commit or any progress in between, after which a run is stopped."""

DISK_LIMIT = 5
"""As `FRUITLESS_LIMIT`, for units that could not be written."""

YIELD_LIMIT = 5
"""Yields of a unit without progress after which a run is stopped: the walltime is too short for the unit."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""First and longest pause of a lost unit before it is tried again, s; each fruitless round of all slots doubles it."""

HANG_CHECK_SECONDS = 5.0
"""Seconds between two checks for units that hang."""

AHEAD_SECONDS, AHEAD_LIMIT = 0.1, 4
"""Most work, s, and most units for a slot that are submitted ahead, so that workers do not wait for the driver."""

MEAN_UNITS = 8
"""Number of recent units over which the mean time of a unit is taken, about."""


class UnitCall(NamedTuple):
    """Hold a function that computes and commits a unit on a worker.

    Parameters
    ----------
    name
        Name of its Dask task.
    function
        Takes no arguments, commits the unit and returns its receipt.
    find_receipt
        Reads the receipt of the committed unit on this machine, which is faster than to have it sent; returns ``None``
        if it is not visible here yet.
    """

    name: str
    function: Callable[[], Receipt]
    find_receipt: Callable[[], Receipt | None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class UnitTask:
    """Hold a unit and the functions that make the call which computes it.

    Parameters
    ----------
    unit
        The unit.
    make_call
        Makes the call, only when the unit is submitted: so a million tasks take no memory.
    make_isolated_call
        Makes a call that computes each input in a process of its own; None if the unit has no separate inputs.
    """

    unit: Unit
    make_call: Callable[[], UnitCall]
    make_isolated_call: Callable[[], UnitCall] | None = None


class WorkerLost(Exception):
    """Report that the process or the machine that computed a unit went away.

    Parameters
    ----------
    reason
        What happened, in words.
    worker
        Address of the worker, if it is known.
    """

    def __init__(self, reason: str, worker: str = "") -> None:
        super().__init__(reason)
        self.worker = worker


class UnitPool(Protocol):
    """Run units somewhere. `daskpipe.engine.dask_pool.DaskPool` is the pool of a run."""

    def count_slots(self, stage: str) -> int:
        """Return how many units of a stage keep all workers busy; 0 while no worker lives."""

    def request_workers(self, stage: str, n_units: int) -> bool:
        """Ask for workers for `n_units` units that are not committed (0 at the end of a stage).

        Returns
        -------
        bool
            Whether anything starts workers.
        """

    def submit_unit(self, unit: Unit, call: UnitCall) -> Any:
        """Start a call; return a handle."""

    def wait_for_any(self, handles: Iterable[Any], timeout: float) -> set[Any]:
        """Return the handles that are done, after at most `timeout` seconds."""

    def take_receipt(self, handle: Any) -> Receipt:
        """Return the receipt of a call that is done, and release the handle.

        Raises
        ------
        WorkerLost
            If its worker went away.
        Exception
            The error that the call raised.
        """

    def cancel_units(self, handles: Iterable[Any]) -> None:
        """Give up calls that are under way."""


class UnitMonitor(Protocol):
    """Answer the questions of the dispatcher about units. `daskpipe.engine.driver.Driver` is the monitor of a run."""

    def read_progress(self, unit: Unit) -> Any:
        """Return a value that changes when a unit makes progress: then the unit is not the cause of its losses."""

    def find_evidence(self, unit: Unit, lost: WorkerLost) -> str:
        """Return the evidence that the process died because of this unit; empty if there is none."""

    def end_if_hanging(self, unit: Unit) -> None:
        """End the process that computes a unit if it has given no sign of life for too long."""

    def check_run(self) -> None:
        """Raise the error that must stop the run, if any: another driver, a full disk, a budget that is spent."""


@dataclass
class PendingUnit:
    """Hold a unit that is not committed, and what has happened to it."""

    task: UnitTask
    attempts: int = 0
    """Attempts that made it suspect, since it last made progress."""
    losses: int = 0
    """Attempts that were lost, of any class."""
    yields: int = 0
    """Yields since it last made progress."""
    progress: Any = 0
    """Its progress when it was last lost, as `UnitMonitor.read_progress` gives it."""
    ready_at: float = 0.0
    """Clock time from which it may be tried again."""
    isolated: bool = False
    """Whether the next attempt computes each input in a process of its own."""


def dispatch_tasks(
    tasks: Sequence[UnitTask],
    pool: UnitPool,
    monitor: UnitMonitor,
    emit: Emit,
    *,
    attempts: int = 3,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run all tasks of a stage, as many at a time as the pool has slots.

    Parameters
    ----------
    tasks
        Units of one stage.
    pool
        Runs the units.
    monitor
        Answers questions about units.
    emit
        Called with each event.
    attempts
        Number of tries of a suspect unit; the last one is in isolation.
    clock
        Returns the time, s.

    Raises
    ------
    ClusterError
        If no worker lives and none can be started, or if units are only lost.
    DaskpipeError
        Any error that a unit or `monitor.check_run` raised.
    """
    if tasks:
        dispatcher = Dispatcher(tasks, pool, monitor, emit, attempts, clock)
        try:
            dispatcher.run_all()
        except BaseException:
            pool.cancel_units(dispatcher.under_way)
            raise


class Dispatcher:
    """Dispatch the tasks of one stage; the parameters are those of `dispatch_tasks`."""

    def __init__(
        self,
        tasks: Sequence[UnitTask],
        pool: UnitPool,
        monitor: UnitMonitor,
        emit: Emit,
        attempts: int,
        clock: Callable[[], float],
    ) -> None:
        self.stage = tasks[0].unit.stage
        self.pool, self.monitor, self.emit, self.attempts, self.clock = pool, monitor, emit, attempts, clock
        self.waiting = [PendingUnit(task) for task in reversed(tasks)]
        """Units that may be submitted; the next one stands last."""
        self.resting: list[PendingUnit] = []
        """Lost units whose pause is not over."""
        self.under_way: dict[Any, PendingUnit] = {}
        """Units that were submitted, by handle."""
        self.widest = 1
        """Most units that were under way at a time."""
        self.losses = 0
        """Losses since a unit was last committed or made progress."""
        self.mean_seconds = AHEAD_SECONDS
        """Mean time of the units committed of late."""

    @property
    def fruitless_rounds(self) -> float:
        """Losses in a row for each slot: all workers may go at once, and come back."""
        return self.losses / self.widest

    def run_all(self) -> None:
        """Run until all units are committed."""
        last_alive = last_hang_check = self.clock()
        while self.waiting or self.resting or self.under_way:
            self.monitor.check_run()
            n_units = len(self.waiting) + len(self.resting) + len(self.under_way)
            requested = self.pool.request_workers(self.stage, n_units)
            slots = self.pool.count_slots(self.stage)
            now = self.clock()
            if slots or requested:
                last_alive = now
            elif now - last_alive > NO_WORKER_SECONDS:
                raise ClusterError(
                    f"no worker has lived for {NO_WORKER_SECONDS:.0f} s; start workers, then resume the run"
                )
            self._wake_resting(now)
            while self.waiting and len(self.under_way) < slots * self._units_a_slot():
                self._submit_next()
            if not self.under_way:
                time.sleep(0.2)
                continue
            if now - last_hang_check > HANG_CHECK_SECONDS:
                last_hang_check = now
                for pending in self.under_way.values():
                    self.monitor.end_if_hanging(pending.task.unit)
            for handle in self.pool.wait_for_any(self.under_way, timeout=1.0):
                self._settle_unit(handle)
        self.pool.request_workers(self.stage, 0)

    def _units_a_slot(self) -> int:
        """Return how many units may be under way for each slot: several, if they are short."""
        return int(max(1, min(AHEAD_LIMIT, AHEAD_SECONDS / max(self.mean_seconds, 1e-9))))

    def _wake_resting(self, now: float) -> None:
        """Put lost units whose pause is over at the end of the queue."""
        for pending in [pending for pending in self.resting if pending.ready_at <= now]:
            self.resting.remove(pending)
            self.waiting.insert(0, pending)

    def _submit_next(self) -> None:
        pending = self.waiting.pop()
        make_call = pending.task.make_isolated_call if pending.isolated else pending.task.make_call
        assert make_call is not None  # only units with separate inputs are isolated
        self.under_way[self.pool.submit_unit(pending.task.unit, make_call())] = pending
        self.widest = max(self.widest, len(self.under_way))

    def _settle_unit(self, handle: Any) -> None:
        """Record that a unit was committed, or decide by the class of its fault what happens to it."""
        pending = self.under_way.pop(handle)
        unit = pending.task.unit
        try:
            receipt = self.pool.take_receipt(handle)
        except WorkerLost as error:
            evidence = self.monitor.find_evidence(unit, error)
            # In isolation the inputs have processes of their own: the unit did not kill the process of the worker.
            if evidence and not pending.isolated:
                self._settle_suspect(pending, evidence, error)
            else:
                self._settle_lost(pending, error, FRUITLESS_LIMIT)
        except Suspect as error:
            self._settle_suspect(pending, str(error), error)
        except DiskUnreachable as error:
            self._settle_lost(pending, error, FRUITLESS_LIMIT)
        except DiskError as error:
            self._settle_lost(pending, error, DISK_LIMIT)
        except Yielded as error:
            self._settle_yielded(pending, error)
        except DaskpipeError as error:
            raise type(error)(f"{unit}: {error}") from error
        else:
            self.losses = 0
            self.mean_seconds += (receipt.seconds - self.mean_seconds) / MEAN_UNITS
            self.emit(UnitCommitted(**asdict(receipt)))

    def _made_progress(self, pending: PendingUnit) -> bool:
        """Return whether a unit has made progress since it was last lost; if so, forget earlier faults."""
        before, pending.progress = pending.progress, self.monitor.read_progress(pending.task.unit)
        if pending.progress != before:
            self.losses = pending.yields = pending.attempts = 0
            return True
        return False

    def _settle_suspect(self, pending: PendingUnit, evidence: str, error: Exception) -> None:
        self._made_progress(pending)
        pending.attempts += 1
        self._report_loss(pending, "suspect", evidence, error)
        if pending.task.make_isolated_call is not None:
            pending.isolated = pending.attempts >= self.attempts - 1
        elif pending.attempts >= self.attempts:
            raise ClusterError(
                f"{pending.task.unit} lost its worker {pending.attempts} times: {evidence}. See the workers' logs; "
                "if memory ran out, give workers more (cluster.memory, or memory of the site's pool)"
            ) from error
        self._start_pause(pending)

    def _settle_lost(self, pending: PendingUnit, error: Exception, limit: int) -> None:
        if not self._made_progress(pending):
            self.losses += 1
        self._report_loss(pending, "infrastructure", str(error), error)
        if self.fruitless_rounds >= limit:
            if isinstance(error, DaskpipeError):
                raise type(error)(f"{pending.task.unit}: {error}") from error
            raise ClusterError(
                f"{self.losses} units of {self.stage} were lost in a row and none was committed; the last, "
                f"{pending.task.unit}: {error}. See the workers' logs, then resume the run"
            ) from error
        self._start_pause(pending)

    def _settle_yielded(self, pending: PendingUnit, error: Yielded) -> None:
        self._made_progress(pending)
        pending.yields += 1
        unit = pending.task.unit
        self.emit(UnitYielded(stage=unit.stage, index=unit.index, key=unit.key, seconds=round(error.seconds, 3)))
        if pending.yields >= YIELD_LIMIT:
            raise ClusterError(
                f"{unit} yielded {pending.yields} times without progress ({error}): the walltime of its workers is too "
                "short for it. Give the pool a longer walltime, or units fewer structures (batch_size)"
            ) from error
        self.waiting.insert(0, pending)

    def _report_loss(self, pending: PendingUnit, kind: str, reason: str, error: Exception) -> None:
        """Count a loss and emit its event."""
        pending.losses += 1
        unit = pending.task.unit
        self.emit(
            UnitLost(
                stage=unit.stage,
                index=unit.index,
                key=unit.key,
                losses=pending.losses,
                kind=kind,
                reason=reason,
                seconds=round(error.seconds, 3) if isinstance(error, DaskpipeError) else 0.0,
            )
        )

    def _start_pause(self, pending: PendingUnit) -> None:
        """Let a lost unit rest; the pause grows with the losses in a row."""
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** max(0, self.fruitless_rounds - 1))
        pending.ready_at = self.clock() + pause
        self.resting.append(pending)
