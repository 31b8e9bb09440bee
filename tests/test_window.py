"""The driver's window: how many units are under way, and what becomes of those that fail."""

import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import daskpipe.window
import daskpipe.work
from daskpipe.errors import ClusterError, ConfigError, DiskError, IntegrityError, Rejection, Yielded
from daskpipe.events import Event, UnitCommitted, UnitLost, UnitYielded
from daskpipe.window import LOSS_LIMIT, NO_WORKER_SECONDS, Task, WorkerLost, drive
from daskpipe.work import Payload, Receipt, Tree, Unit, commit, key_of


def unit(index: int = 0, stage: str = "explore") -> Unit:
    return Unit(stage=stage, index=index, key=key_of(stage, 1, {}, [index], 0), n_inputs=3)


def payload(value: float = 1.0, n: int = 100, rejected: Iterable[Rejection] = ()) -> Payload:
    arrays = {"positions": np.full((n, 3), value), "system_type": np.array(["alloy", "surface"] * (n // 2))}
    return Payload(arrays=arrays, n_out=n, rejected=list(rejected), seconds=0.5)


class Threads:
    """Pool that runs tasks, which are functions, in threads of this process."""

    def __init__(self, n_slots: int) -> None:
        self.n_slots = n_slots
        self.executor = ThreadPoolExecutor(max(n_slots, 1))
        self.open: set[Future[Receipt]] = set()
        self.widest = 0
        self.order: list[int] = []
        self.cancelled: list[Future[Receipt]] = []

    def want(self, stage: str, n_units: int) -> None:
        self.wanted = (stage, n_units)

    def slots(self, stage: str) -> int:
        assert stage == "explore"
        return self.n_slots

    def submit(self, task: Task) -> Future[Receipt]:
        handle: Future[Receipt] = self.executor.submit(task.work)
        self.open.add(handle)
        self.widest = max(self.widest, len(self.open))
        self.order.append(task.unit.index)
        return handle

    def wait(self, handles: Iterable[Any], timeout: float) -> set[Any]:
        return wait(list(handles), timeout, return_when=FIRST_COMPLETED).done

    def result(self, handle: Future[Receipt]) -> Receipt:
        self.open.remove(handle)
        return handle.result()

    def cancel(self, handles: Iterable[Any]) -> None:
        self.cancelled = list(handles)
        for handle in self.cancelled:
            handle.cancel()


class Work:
    """Commits a unit, after it raised what it was told to raise, and counts its runs."""

    def __init__(self, root: Path, index: int, *errors: Exception) -> None:
        self.unit, self.root, self.errors, self.n_runs = unit(index), root, list(errors), 0

    def __call__(self) -> Receipt:
        self.n_runs += 1
        if self.errors:
            raise self.errors.pop(0)
        return commit(self.root, self.unit, payload(self.unit.index))


def tasks(works: list[Work]) -> list[Task]:
    return [Task(unit=work.unit, work=work) for work in works]


@pytest.mark.parametrize("n_slots", [1, 3, 50])
def test_all_tasks_run_once_in_a_window_no_wider_than_the_slots(tmp_path, n_slots):
    n_tasks = 20
    works = [Work(tmp_path, index) for index in range(n_tasks)]
    pool, events = Threads(n_slots), list[Event]()
    drive(tasks(works), pool, events.append)
    assert [work.n_runs for work in works] == [1] * n_tasks
    assert pool.widest == min(n_slots, n_tasks)
    assert pool.open == set()
    assert pool.order == list(range(n_tasks))
    assert pool.cancelled == []
    committed = [event for event in events if isinstance(event, UnitCommitted)]
    assert sorted(event.index for event in committed) == list(range(n_tasks))
    tree = Tree(tmp_path)
    assert all(tree.receipt(work.unit) is not None for work in works)


def test_no_tasks_are_done_at_once(tmp_path):
    pool = Threads(0)
    drive([], pool, lambda _: pytest.fail("nothing happened, and an event was sent"))


def test_a_lost_unit_goes_to_the_end_of_the_queue_and_is_counted(tmp_path):
    lost = [WorkerLost("killed by the scheduler"), WorkerLost("killed by the scheduler")]
    works = [Work(tmp_path, 0, *lost), Work(tmp_path, 1), Work(tmp_path, 2)]
    pool, events = Threads(1), list[Event]()
    drive(tasks(works), pool, events.append)
    assert pool.order == [0, 1, 2, 0, 0]
    losses = [event for event in events if isinstance(event, UnitLost)]
    assert [(event.index, event.key, event.losses) for event in losses] == [(0, unit(0).key, 1), (0, unit(0).key, 2)]
    assert {event.reason for event in losses} == {"killed by the scheduler"}
    assert sum(isinstance(event, UnitCommitted) for event in events) == 3


def test_a_unit_that_is_lost_again_and_again_ends_the_run(tmp_path):
    works = [Work(tmp_path, 0), Work(tmp_path, 1, *[WorkerLost("segmentation fault")] * (LOSS_LIMIT + 1))]
    events = list[Event]()
    with pytest.raises(ClusterError, match=rf"explore unit 1 \({unit(1).key[:8]}\) lost its worker 10 times: segm"):
        drive(tasks(works), Threads(1), events.append)
    assert works[1].n_runs == LOSS_LIMIT
    assert [event.losses for event in events if isinstance(event, UnitLost)] == list(range(1, LOSS_LIMIT + 1))
    assert Tree(tmp_path).receipt(unit(0)) is not None


def test_a_unit_that_comes_on_between_its_losses_is_not_at_fault(tmp_path):
    n_losses = 2 * LOSS_LIMIT
    works = [Work(tmp_path, 0, *[WorkerLost("preempted")] * n_losses)]
    checkpoints, events = iter(range(100)), list[Event]()
    drive(tasks(works), Threads(1), events.append, reached=lambda _: next(checkpoints))
    assert [event.losses for event in events if isinstance(event, UnitLost)] == [1] * n_losses
    assert works[0].n_runs == n_losses + 1
    stuck = [Work(tmp_path, 1, *[WorkerLost("segmentation fault")] * n_losses)]
    with pytest.raises(ClusterError, match="lost its worker 10 times"):
        drive(tasks(stuck), Threads(1), events.append, reached=lambda _: 7)


def test_a_unit_that_yields_goes_to_the_end_of_the_queue_and_is_not_counted(tmp_path):
    works = [Work(tmp_path, 0, *[Yielded("the worker ends in 5 s")] * (LOSS_LIMIT + 1)), Work(tmp_path, 1)]
    pool, events = Threads(1), list[Event]()
    drive(tasks(works), pool, events.append)
    assert pool.order[:3] == [0, 1, 0]
    yielded = [event for event in events if isinstance(event, UnitYielded)]
    assert {(event.stage, event.index, event.key) for event in yielded} == {("explore", 0, unit(0).key)}
    assert len(yielded) == LOSS_LIMIT + 1
    assert not any(isinstance(event, UnitLost) for event in events)


@pytest.mark.parametrize("error", [IntegrityError("bytes differ"), DiskError("no space"), ConfigError("bad model")])
def test_an_error_names_its_unit_keeps_its_kind_and_cancels_the_rest(tmp_path, error):
    let_go = threading.Event()

    class Held(Work):
        def __call__(self) -> Receipt:
            let_go.wait(30)
            return super().__call__()

    works = [Work(tmp_path, 0, error), Held(tmp_path, 1), Held(tmp_path, 2), Held(tmp_path, 3)]
    pool = Threads(2)
    try:
        with pytest.raises(type(error), match=rf"explore unit 0 \({unit(0).key[:8]}\): {error}"):
            drive(tasks(works), pool, lambda _: None)
    finally:
        let_go.set()
    assert pool.order == [0, 1]
    assert set(pool.cancelled) == pool.open
    assert len(pool.cancelled) == 1


def test_an_error_that_is_not_ours_is_raised_as_it_is_and_cancels_the_rest(tmp_path):
    pool = Threads(1)
    works = [Work(tmp_path, 0, ZeroDivisionError("division by zero")), Work(tmp_path, 1)]
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        drive(tasks(works), pool, lambda _: None)
    assert works[1].n_runs == 0


class Clock:
    """Half a minute later at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 30
        return self.now


def test_a_run_without_workers_gives_up_after_a_while(tmp_path):
    clock = Clock()
    with pytest.raises(ClusterError, match="no worker has lived for 120 s; start workers, then resume the run"):
        drive(tasks([Work(tmp_path, 0)]), Threads(0), lambda _: None, clock=clock)
    assert NO_WORKER_SECONDS < clock.now <= NO_WORKER_SECONDS + 90


def test_workers_that_come_back_in_time_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(daskpipe.window.time, "sleep", lambda _: None)

    class Flickering(Threads):
        """Three looks without a worker, one with, and so on: never long enough to give up."""

        n_looks = 0

        def slots(self, stage: str) -> int:
            self.n_looks += 1
            return 0 if self.n_looks % 4 else 1

    works = [Work(tmp_path, index) for index in range(5)]
    drive(tasks(works), Flickering(1), lambda _: None, clock=Clock())
    assert [work.n_runs for work in works] == [1] * 5


def test_a_pool_that_loses_its_workers_under_way_gives_up_and_cancels(tmp_path):
    let_go = threading.Event()

    class Dying(Threads):
        def slots(self, stage: str) -> int:
            return 0 if self.open else 1

        def wait(self, handles, timeout):
            return super().wait(handles, 0.01)

    pool = Dying(1)
    try:
        with pytest.raises(ClusterError, match="no worker has lived"):
            drive([Task(unit=unit(0), work=partial(let_go.wait, 30))], pool, lambda _: None, clock=Clock())
    finally:
        let_go.set()
    assert len(pool.cancelled) == 1
