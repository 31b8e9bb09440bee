"""The driver's window: it keeps a unit under way for each slot of the pool, short ones a few ahead, and owns retries.

What goes wrong has a class, and each class its own budget:

- infrastructure: the worker, its machine or the disk went away under the unit. Tried again without limit, later and
  later; a stage that only loses and never comes on is stopped.
- yield: the worker ends soon. The unit goes on elsewhere.
- suspect: the process died under the unit, hung, or ran out of memory. Tried again; the last attempt takes the unit's
  inputs one by one, each in a process of its own, and rejects those that kill it.
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
"""How long a run waits without a single living worker, where nothing brings any, before it gives up."""

FRUITLESS_LIMIT = 20
"""Units lost in a row for each slot, none committed or come on in between, after which a run is stopped."""

DISK_LIMIT = 5
"""The same for units that could not be written."""

YIELD_LIMIT = 5
"""How often a unit may yield without having come on; a walltime is too short for it."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds that a lost unit waits before it is tried again; each fruitless round of all slots doubles them."""

LOOK_SECONDS = 5.0
"""Time between two looks for units that hang."""

AHEAD_SECONDS, AHEAD_LIMIT = 0.1, 4
"""Short units are sent ahead, up to so much work and so many a slot, so that workers do not wait for the driver."""

MEMORY = 8
"""How many units back the mean time of a unit reaches, about."""


class Call(NamedTuple):
    """A function without arguments that commits a unit and returns its receipt, and what its Dask tasks are called.

    `find` reads the receipt of the committed unit here, which takes less than to have it sent; ``None`` if this
    machine does not see it yet.
    """

    name: str
    function: Callable[[], Receipt]
    find: Callable[[], Receipt | None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Task:
    """A unit and the work that commits it and gives its receipt.

    Parameters
    ----------
    unit
        What is computed.
    work
        Makes the call; when the unit is submitted, so that a million of them take no memory.
    one_by_one
        The same, with each input in a process of its own; none for units whose inputs cannot be taken apart.
    """

    unit: Unit
    work: Callable[[], Call]
    one_by_one: Callable[[], Call] | None = None


class WorkerLost(Exception):
    """The process or machine under a unit went away.

    Parameters
    ----------
    reason
        In words.
    worker
        Address of the worker, if it is known.
    """

    def __init__(self, reason: str, worker: str = "") -> None:
        super().__init__(reason)
        self.worker = worker


class Pool(Protocol):
    """Where tasks run. `daskpipe.engine.dask_pool.DaskPool` is the one that runs use."""

    def slots(self, stage: str) -> int:
        """How many units of a stage keep all workers at work; 0 while no worker lives."""

    def want(self, stage: str, n_units: int) -> bool:
        """Tell how many units of a stage are not committed, 0 when it is over; whether anything brings workers."""

    def submit(self, unit: Unit, call: Call) -> Any:
        """Start a call; return a handle."""

    def wait(self, handles: Iterable[Any], timeout: float) -> set[Any]:
        """Return the handles that are done, after at most `timeout` seconds."""

    def result(self, handle: Any) -> Receipt:
        """Return the receipt of a done task, release it, and raise what it raised; `WorkerLost` if it was lost."""

    def cancel(self, handles: Iterable[Any]) -> None:
        """Give up tasks that are under way."""


class Watch(Protocol):
    """What the window asks about units. `daskpipe.engine.driver.Run` is the one that runs use."""

    def reached(self, unit: Unit) -> Any:
        """Tell how far a unit has come; one that has come farther since it was last lost is not at fault."""

    def evidence(self, unit: Unit, lost: WorkerLost) -> str:
        """Say what speaks for the process having died under this unit; empty if nothing does."""

    def end_hanging(self, unit: Unit) -> None:
        """End the process that computes a unit if it has not come on for too long."""

    def check(self) -> None:
        """Raise what speaks against going on: another driver, a full disk, a budget that is spent."""


@dataclass
class _Turn:
    """A unit that is not committed, and what became of it so far."""

    task: Task
    attempts: int = 0
    """How often it was suspect."""
    losses: int = 0
    yields: int = 0
    place: Any = 0
    """How far it had come when it was last lost."""
    ready: float = 0.0
    """Clock time from which it may be tried again."""
    alone: bool = False


def drive(
    tasks: Sequence[Task],
    pool: Pool,
    watch: Watch,
    emit: Emit,
    *,
    attempts: int = 3,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run all tasks through a window as wide as the pool has slots.

    Parameters
    ----------
    tasks
        Units of one stage.
    pool, watch, emit
        Where they run; what is asked about them; called with each event.
    attempts
        How often a suspect unit is tried, the last time one by one.
    clock
        Seconds.

    Raises
    ------
    ClusterError
        If no worker lives and none comes, or if units are only lost.
    DaskpipeError
        Whatever a unit or `watch.check` raised.
    """
    if tasks:
        window = _Window(tasks, pool, watch, emit, attempts, clock)
        try:
            window.run()
        except BaseException:
            pool.cancel(window.under_way)
            raise


class _Window:
    def __init__(
        self,
        tasks: Sequence[Task],
        pool: Pool,
        watch: Watch,
        emit: Emit,
        attempts: int,
        clock: Callable[[], float],
    ) -> None:
        self.stage = tasks[0].unit.stage
        self.pool, self.watch, self.emit, self.attempts, self.clock = pool, watch, emit, attempts, clock
        self.waiting = [_Turn(task) for task in reversed(tasks)]
        self.resting: list[_Turn] = []
        self.under_way: dict[Any, _Turn] = {}
        self.widest = 1
        """Most units that were under way at once."""
        self.losses = 0
        """Losses since a unit was last committed or had come on."""
        self.seconds = AHEAD_SECONDS
        """Mean time of the units committed of late."""

    @property
    def fruitless(self) -> float:
        """The same a slot: all workers may go at once and come back."""
        return self.losses / self.widest

    def run(self) -> None:
        last_alive = last_look = self.clock()
        while self.waiting or self.resting or self.under_way:
            self.watch.check()
            coming = self.pool.want(self.stage, len(self.waiting) + len(self.resting) + len(self.under_way))
            slots = self.pool.slots(self.stage)
            now = self.clock()
            if slots or coming:
                last_alive = now
            elif now - last_alive > NO_WORKER_SECONDS:
                raise ClusterError(
                    f"no worker has lived for {NO_WORKER_SECONDS:.0f} s; start workers, then resume the run"
                )
            self._wake(now)
            while self.waiting and len(self.under_way) < slots * self._ahead():
                self._submit(self.waiting.pop())
            if not self.under_way:
                time.sleep(0.2)
                continue
            if now - last_look > LOOK_SECONDS:
                last_look = now
                for turn in self.under_way.values():
                    self.watch.end_hanging(turn.task.unit)
            for handle in self.pool.wait(self.under_way, timeout=1.0):
                self._settle(handle)
        self.pool.want(self.stage, 0)

    def _ahead(self) -> int:
        """How many units a slot may be under way."""
        return int(max(1, min(AHEAD_LIMIT, AHEAD_SECONDS / max(self.seconds, 1e-9))))

    def _wake(self, now: float) -> None:
        """Put lost units whose pause is over at the end of the queue."""
        for turn in [turn for turn in self.resting if turn.ready <= now]:
            self.resting.remove(turn)
            self.waiting.insert(0, turn)

    def _submit(self, turn: _Turn) -> None:
        work = turn.task.one_by_one if turn.alone else turn.task.work
        assert work is not None  # only units that can be taken apart are alone
        self.under_way[self.pool.submit(turn.task.unit, work())] = turn
        self.widest = max(self.widest, len(self.under_way))

    def _settle(self, handle: Any) -> None:
        """Take note of what became of a unit."""
        turn = self.under_way.pop(handle)
        unit = turn.task.unit
        try:
            receipt = self.pool.result(handle)
        except WorkerLost as error:
            evidence = self.watch.evidence(unit, error)
            # Alone, its inputs have processes of their own: what killed this one was not the unit.
            if evidence and not turn.alone:
                self._suspect(turn, evidence, error)
            else:
                self._lost(turn, error, FRUITLESS_LIMIT)
        except Suspect as error:
            self._suspect(turn, str(error), error)
        except DiskUnreachable as error:
            self._lost(turn, error, FRUITLESS_LIMIT)
        except DiskError as error:
            self._lost(turn, error, DISK_LIMIT)
        except Yielded as error:
            self._yielded(turn, error)
        except DaskpipeError as error:
            raise type(error)(f"{unit}: {error}") from error
        else:
            self.losses = 0
            self.seconds += (receipt.seconds - self.seconds) / MEMORY
            self.emit(UnitCommitted(**asdict(receipt)))

    def _came_on(self, turn: _Turn) -> bool:
        before, turn.place = turn.place, self.watch.reached(turn.task.unit)
        if turn.place != before:
            self.losses = turn.yields = turn.attempts = 0
            return True
        return False

    def _suspect(self, turn: _Turn, evidence: str, error: Exception) -> None:
        self._came_on(turn)
        turn.attempts += 1
        self._tell(turn, "suspect", evidence, error)
        if turn.task.one_by_one is not None:
            turn.alone = turn.attempts >= self.attempts - 1
        elif turn.attempts >= self.attempts:
            raise ClusterError(
                f"{turn.task.unit} lost its worker {turn.attempts} times: {evidence}. See the workers' logs; "
                "if memory ran out, give workers more (cluster.memory, or memory of the site's pool)"
            ) from error
        self._pause(turn)

    def _lost(self, turn: _Turn, error: Exception, limit: int) -> None:
        if not self._came_on(turn):
            self.losses += 1
        self._tell(turn, "infrastructure", str(error), error)
        if self.fruitless >= limit:
            if isinstance(error, DaskpipeError):
                raise type(error)(f"{turn.task.unit}: {error}") from error
            raise ClusterError(
                f"{self.losses} units of {self.stage} were lost in a row and none was committed; the last, "
                f"{turn.task.unit}: {error}. See the workers' logs, then resume the run"
            ) from error
        self._pause(turn)

    def _yielded(self, turn: _Turn, error: Yielded) -> None:
        self._came_on(turn)
        turn.yields += 1
        unit = turn.task.unit
        self.emit(UnitYielded(stage=unit.stage, index=unit.index, key=unit.key, seconds=round(error.seconds, 3)))
        if turn.yields >= YIELD_LIMIT:
            raise ClusterError(
                f"{unit} yielded {turn.yields} times without coming on ({error}): the walltime of its workers is too "
                "short for it. Give the pool a longer walltime, or units fewer structures (batch_size)"
            ) from error
        self.waiting.insert(0, turn)

    def _tell(self, turn: _Turn, kind: str, reason: str, error: Exception) -> None:
        turn.losses += 1
        unit = turn.task.unit
        self.emit(
            UnitLost(
                stage=unit.stage,
                index=unit.index,
                key=unit.key,
                losses=turn.losses,
                kind=kind,
                reason=reason,
                seconds=round(error.seconds, 3) if isinstance(error, DaskpipeError) else 0.0,
            )
        )

    def _pause(self, turn: _Turn) -> None:
        turn.ready = self.clock() + min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** max(0, self.fruitless - 1))
        self.resting.append(turn)
