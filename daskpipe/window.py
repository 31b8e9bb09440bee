"""The driver's window: it owns retries, and keeps as many units under way as the pool has slots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from daskpipe.errors import ClusterError, DaskpipeError, Yielded
from daskpipe.events import Emit, UnitCommitted, UnitLost, UnitYielded
from daskpipe.work import Receipt, Unit

LOSS_LIMIT = 10
"""How often a unit may be lost with its worker before the run stops; a preemption is rare, a crash repeats."""

NO_WORKER_SECONDS = 120.0
"""How long a run waits without a single living worker before it gives up."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A unit and the lazy work that commits it and gives its receipt."""

    unit: Unit
    work: Any


class WorkerLost(Exception):
    """The process or machine under a unit went away."""


class Pool(Protocol):
    """Where tasks run. `daskpipe.placement.DaskPool` is the one that runs use."""

    def slots(self, stage: str) -> int:
        """How many units of a stage may be under way at once; 0 while no worker lives."""

    def want(self, stage: str, n_units: int) -> None:
        """Tell how many units of a stage are not committed; 0 when it is over."""

    def submit(self, task: Task) -> Any:
        """Start a task; return a handle."""

    def wait(self, handles: Iterable[Any], timeout: float) -> set[Any]:
        """Return the handles that are done, after at most `timeout` seconds."""

    def result(self, handle: Any) -> Receipt:
        """Return the receipt of a done task, release it, and raise what it raised; `WorkerLost` if it was lost."""

    def cancel(self, handles: Iterable[Any]) -> None:
        """Give up tasks that are under way."""


def drive(
    tasks: Sequence[Task],
    pool: Pool,
    emit: Emit,
    *,
    reached: Callable[[Unit], Any] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run all tasks through a window as wide as the pool has slots.

    A unit whose worker is lost goes back to the end of the queue; any other error ends the run. `reached` tells how
    far a unit has come: one that has come farther since it was last lost is not at fault.

    Raises
    ------
    ClusterError
        If no worker lives for two minutes, or one unit loses its worker again and again.
    DaskpipeError
        Whatever a unit raised.
    """
    waiting = list(reversed(tasks))
    under_way: dict[Any, Task] = {}
    losses: dict[str, int] = {}
    lost_at: dict[str, Any] = {}
    last_alive = clock()
    try:
        while waiting or under_way:
            pool.want(tasks[0].unit.stage, len(waiting) + len(under_way))
            slots = pool.slots(tasks[0].unit.stage)
            if slots:
                last_alive = clock()
            elif clock() - last_alive > NO_WORKER_SECONDS:
                raise ClusterError(
                    f"no worker has lived for {NO_WORKER_SECONDS:.0f} s; start workers, then resume the run"
                )
            while waiting and len(under_way) < slots:
                task = waiting.pop()
                under_way[pool.submit(task)] = task
            if not under_way:
                time.sleep(0.2)
                continue
            for handle in pool.wait(under_way, timeout=1.0):
                task = under_way.pop(handle)
                try:
                    receipt = pool.result(handle)
                except WorkerLost as error:
                    place, before = reached(task.unit), lost_at.get(task.unit.key)
                    lost_at[task.unit.key] = place
                    losses[task.unit.key] = 1 if place != before else losses.get(task.unit.key, 0) + 1
                    emit(_lost(task.unit, losses[task.unit.key], str(error)))
                    if losses[task.unit.key] >= LOSS_LIMIT:
                        raise ClusterError(
                            f"{task.unit} lost its worker {LOSS_LIMIT} times: {error}. See the workers' logs; "
                            "if one of its structures crashes the potential, take that structure out"
                        ) from error
                    waiting.insert(0, task)
                except Yielded:
                    emit(UnitYielded(stage=task.unit.stage, index=task.unit.index, key=task.unit.key))
                    waiting.insert(0, task)
                except DaskpipeError as error:
                    raise type(error)(f"{task.unit}: {error}") from error
                else:
                    emit(UnitCommitted(**asdict(receipt)))
    except BaseException:
        pool.cancel(under_way)
        raise


def _lost(unit: Unit, losses: int, reason: str) -> UnitLost:
    return UnitLost(stage=unit.stage, index=unit.index, key=unit.key, losses=losses, reason=reason)
