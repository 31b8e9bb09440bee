"""Test the dispatcher: how many units are under way, and what happens to those that fail."""

import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import daskpipe.engine.dispatcher
import daskpipe.engine.units
from daskpipe.core.errors import ClusterError, ConfigError, DiskError, IntegrityError, Rejection, Suspect, Yielded
from daskpipe.core.events import Event, UnitCommitted, UnitLost, UnitYielded
from daskpipe.engine.commit import commit
from daskpipe.engine.dispatcher import (
    AHEAD_LIMIT,
    AHEAD_SECONDS,
    DISK_LIMIT,
    FIRST_PAUSE,
    FRUITLESS_LIMIT,
    NO_WORKER_SECONDS,
    YIELD_LIMIT,
    UnitCall,
    UnitTask,
    WorkerLost,
    dispatch_tasks,
)
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload, Receipt, Unit, unit_key


def unit(index: int = 0, stage: str = "explore") -> Unit:
    return Unit(stage=stage, index=index, key=unit_key(stage, 1, {}, [index], 0), n_inputs=3)


def payload(value: float = 1.0, n: int = 100, rejected: Iterable[Rejection] = ()) -> Payload:
    arrays = {"positions": np.full((n, 3), value), "system_type": np.array(["alloy", "surface"] * (n // 2))}
    return Payload(arrays=arrays, n_out=n, rejected=list(rejected))


class Threads:
    """Run units, whose calls are functions, in threads of this process."""

    def __init__(self, n_slots: int) -> None:
        self.n_slots = n_slots
        self.executor = ThreadPoolExecutor(max(n_slots, 1))
        self.open: set[Future[Receipt]] = set()
        self.widest = 0
        self.order: list[int] = []
        self.cancelled: list[Future[Receipt]] = []

    def request_workers(self, stage: str, n_units: int) -> bool:
        self.wanted = (stage, n_units)
        return False

    def count_slots(self, stage: str) -> int:
        assert stage == "explore"
        return self.n_slots

    def submit_unit(self, unit: Unit, call: UnitCall) -> Future[Receipt]:
        handle: Future[Receipt] = self.executor.submit(call.function)
        self.open.add(handle)
        self.widest = max(self.widest, len(self.open))
        self.order.append(unit.index)
        return handle

    def wait_for_any(self, handles: Iterable[Any], timeout: float) -> set[Any]:
        return wait(list(handles), timeout, return_when=FIRST_COMPLETED).done

    def take_receipt(self, handle: Future[Receipt]) -> Receipt:
        self.open.remove(handle)
        return handle.result()

    def cancel_units(self, handles: Iterable[Any]) -> None:
        self.cancelled = list(handles)
        for handle in self.cancelled:
            handle.cancel()


class Monitor:
    """Answer the questions of the dispatcher: a loss whose reason begins with "died" is evidence."""

    def __init__(self, *progress: int) -> None:
        self.progress, self.n_checks, self.checked = list(progress), 0, set[int]()

    def read_progress(self, unit: Unit) -> int:
        return self.progress.pop(0) if self.progress else 0

    def find_evidence(self, unit: Unit, lost: WorkerLost) -> str:
        return str(lost) if str(lost).startswith("died") else ""

    def end_if_hanging(self, unit: Unit) -> None:
        self.checked.add(unit.index)

    def check_run(self) -> None:
        self.n_checks += 1


class Work:
    """Raise the given errors, one a run, then commit a unit; count the runs."""

    seconds = 0.5

    def __init__(self, root: Path, index: int, *errors: Exception) -> None:
        self.unit, self.root, self.errors, self.n_runs = unit(index), root, list(errors), 0
        self.n_isolated = 0

    def __call__(self, *, isolated: bool = False) -> Receipt:
        self.n_runs += 1
        self.n_isolated += isolated
        if self.errors:
            raise self.errors.pop(0)
        return commit(self.root, self.unit, payload(self.unit.index), seconds=self.seconds)


def tasks(works: list[Work], *, isolated: bool = True) -> list[UnitTask]:
    return [
        UnitTask(
            unit=work.unit,
            make_call=partial(UnitCall, "work", work),
            make_isolated_call=partial(UnitCall, "isolated", partial(work, isolated=True)) if isolated else None,
        )
        for work in works
    ]


class Clock:
    """Return a time 30 s later at each call."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 30
        return self.now


@pytest.mark.parametrize("n_slots", [1, 3, 50])
def test_all_tasks_run_once_and_no_more_at_a_time_than_there_are_slots(tmp_path, n_slots):
    n_tasks = 20
    works = [Work(tmp_path, index) for index in range(n_tasks)]
    pool, events = Threads(n_slots), list[Event]()
    dispatch_tasks(tasks(works), pool, Monitor(), events.append)
    assert [work.n_runs for work in works] == [1] * n_tasks
    assert pool.widest == min(n_slots, n_tasks)
    assert pool.open == set()
    assert pool.order == list(range(n_tasks))
    assert pool.cancelled == []
    committed = [event for event in events if isinstance(event, UnitCommitted)]
    assert sorted(event.index for event in committed) == list(range(n_tasks))
    directory = RunDirectory(tmp_path)
    assert all(directory.read_receipt(work.unit) is not None for work in works)


@pytest.mark.parametrize(("seconds", "ahead"), [(0.001, AHEAD_LIMIT), (0.4 * AHEAD_SECONDS, 2), (AHEAD_SECONDS, 1)])
def test_short_units_are_sent_ahead(tmp_path, seconds, ahead):
    works = [Work(tmp_path, index) for index in range(60)]
    for work in works:
        work.seconds = seconds
    pool = Threads(2)
    dispatch_tasks(tasks(works), pool, Monitor(), list[Event]().append)
    assert [work.n_runs for work in works] == [1] * len(works)
    assert pool.widest == 2 * ahead


def test_no_tasks_need_no_time(tmp_path):
    pool = Threads(0)
    dispatch_tasks([], pool, Monitor(), lambda _: pytest.fail("nothing happened, and an event was sent"))


def lost_events(events: list[Event]) -> list[UnitLost]:
    return [event for event in events if isinstance(event, UnitLost)]


def test_a_lost_unit_goes_to_the_end_of_the_queue_and_gives_an_event(tmp_path):
    lost = [WorkerLost("its machine went away"), WorkerLost("its machine went away")]
    works = [Work(tmp_path, 0, *lost), Work(tmp_path, 1), Work(tmp_path, 2)]
    pool, events = Threads(1), list[Event]()
    dispatch_tasks(tasks(works), pool, Monitor(), events.append)
    assert sorted(pool.order) == [0, 0, 0, 1, 2]
    assert pool.order[:3] == [0, 1, 2]
    told = lost_events(events)
    assert [(event.index, event.key, event.losses) for event in told] == [(0, unit(0).key, 1), (0, unit(0).key, 2)]
    assert {(event.kind, event.reason) for event in told} == {("infrastructure", "its machine went away")}
    assert sum(isinstance(event, UnitCommitted) for event in events) == 3
    assert works[0].n_isolated == 0


def test_all_workers_may_go_at_once_and_come_back(tmp_path):
    n_slots, n_losses = 4, FRUITLESS_LIMIT - 5
    works = [Work(tmp_path, index, *[WorkerLost("preempted")] * n_losses) for index in range(n_slots)]
    dispatch_tasks(tasks(works), Threads(n_slots), Monitor(), lambda _: None, clock=Clock())
    assert [(work.n_runs, work.n_isolated) for work in works] == [(n_losses + 1, 0)] * n_slots


def test_a_stage_that_only_loses_is_stopped(tmp_path):
    works = [Work(tmp_path, 0), *(Work(tmp_path, i, *[WorkerLost("gone")] * FRUITLESS_LIMIT) for i in (1, 2))]
    events = list[Event]()
    with pytest.raises(ClusterError, match=rf"{FRUITLESS_LIMIT} units of explore were lost in a row.*gone. See"):
        dispatch_tasks(tasks(works), Threads(1), Monitor(), events.append, clock=Clock())
    assert len(lost_events(events)) == FRUITLESS_LIMIT
    assert RunDirectory(tmp_path).read_receipt(unit(0)) is not None


def test_pauses_between_fruitless_losses_grow(tmp_path, monkeypatch):
    monkeypatch.setattr(daskpipe.engine.dispatcher.time, "sleep", lambda _: None)

    class Waiting(Threads):
        """Record when units are submitted, by a clock of its own."""

        now = 0.0

        def submit_unit(self, unit, call):
            times.append(self.now)
            return super().submit_unit(unit, call)

    pool, times = Waiting(1), list[float]()

    def clock() -> float:
        pool.now += 0.01
        return pool.now

    dispatch_tasks(tasks([Work(tmp_path, 0, *[WorkerLost("gone")] * 4)]), pool, Monitor(), lambda _: None, clock=clock)
    pauses = np.diff(times)
    assert all(late > 1.5 * early for early, late in pairwise(pauses))
    assert pauses[0] >= FIRST_PAUSE


def test_a_unit_that_makes_progress_between_its_losses_is_not_at_fault(tmp_path):
    n_losses = 2 * FRUITLESS_LIMIT
    for reason in ("preempted", "died"):
        work = Work(tmp_path / reason, 0, *[WorkerLost(reason)] * n_losses)
        work.root.mkdir()
        dispatch_tasks(tasks([work]), Threads(1), Monitor(*range(1, 100)), lambda _: None, clock=Clock())
        assert (work.n_runs, work.n_isolated) == (n_losses + 1, 0)


@pytest.mark.parametrize("attempts", [2, 3, 5])
@pytest.mark.parametrize("error", [WorkerLost("died of a segmentation fault"), Suspect("memory ran out")])
def test_a_suspect_unit_is_isolated_at_its_last_attempt(tmp_path, attempts, error):
    work, events = Work(tmp_path, 0, *[error] * (attempts - 1)), list[Event]()
    dispatch_tasks(tasks([work]), Threads(1), Monitor(), events.append, attempts=attempts, clock=Clock())
    assert (work.n_runs, work.n_isolated) == (attempts, 1)
    assert [(event.kind, event.losses) for event in lost_events(events)] == [
        ("suspect", number + 1) for number in range(attempts - 1)
    ]
    assert {event.reason for event in lost_events(events)} == {str(error)}


def test_a_loss_in_isolation_is_not_the_fault_of_the_unit(tmp_path):
    work = Work(tmp_path, 0, *[WorkerLost("died of a segmentation fault")] * 5)
    events = list[Event]()
    dispatch_tasks(tasks([work]), Threads(1), Monitor(), events.append, clock=Clock())
    assert [event.kind for event in lost_events(events)] == ["suspect"] * 2 + ["infrastructure"] * 3
    assert work.n_isolated == 4


def test_a_suspect_unit_without_separate_inputs_stops_the_run(tmp_path):
    work = Work(tmp_path, 0, *[WorkerLost("died of a segmentation fault")] * 9)
    with pytest.raises(ClusterError, match=rf"explore unit 0 \({unit(0).key[:8]}\) lost its worker 3 times: died of a"):
        dispatch_tasks(tasks([work], isolated=False), Threads(1), Monitor(), lambda _: None, clock=Clock())
    assert work.n_runs == 3


def test_a_full_disk_is_tried_again_for_a_while(tmp_path):
    work = Work(tmp_path, 0, *[DiskError("cannot write x: no space left")] * (DISK_LIMIT - 1))
    dispatch_tasks(tasks([work]), Threads(1), Monitor(), lambda _: None, clock=Clock())
    assert work.n_runs == DISK_LIMIT
    full = Work(tmp_path, 1, *[DiskError("cannot write x: no space left")] * DISK_LIMIT)
    with pytest.raises(DiskError, match=rf"explore unit 1 \({unit(1).key[:8]}\): cannot write x: no space left"):
        dispatch_tasks(tasks([full]), Threads(1), Monitor(), lambda _: None, clock=Clock())
    assert full.n_runs == DISK_LIMIT


def test_a_unit_that_yields_goes_to_the_end_of_the_queue_and_is_not_lost(tmp_path):
    works = [Work(tmp_path, 0, *[Yielded("the worker ends in 5 s")] * (YIELD_LIMIT - 1)), Work(tmp_path, 1)]
    pool, events = Threads(1), list[Event]()
    dispatch_tasks(tasks(works), pool, Monitor(), events.append)
    assert pool.order[:3] == [0, 1, 0]
    yielded = [event for event in events if isinstance(event, UnitYielded)]
    assert {(event.stage, event.index, event.key) for event in yielded} == {("explore", 0, unit(0).key)}
    assert len(yielded) == YIELD_LIMIT - 1
    assert lost_events(events) == []


def test_a_unit_that_yields_may_do_so_as_often_as_it_makes_progress(tmp_path):
    n_yields = 3 * YIELD_LIMIT
    on = Work(tmp_path, 0, *[Yielded("the worker ends in 5 s")] * n_yields)
    dispatch_tasks(tasks([on]), Threads(1), Monitor(*range(1, 100)), lambda _: None)
    assert on.n_runs == n_yields + 1
    stuck = Work(tmp_path, 1, *[Yielded("the worker ends in 5 s")] * n_yields)
    with pytest.raises(ClusterError, match=rf"yielded {YIELD_LIMIT} times without progress \(the worker ends"):
        dispatch_tasks(tasks([stuck]), Threads(1), Monitor(), lambda _: None)


def test_an_error_of_the_check_ends_the_stage_and_cancels(tmp_path):
    let_go = threading.Event()

    class Full(Monitor):
        def check_run(self) -> None:
            super().check_run()
            if self.n_checks == 3:
                raise DiskError("0.1 GB left")

    class Impatient(Threads):
        def wait_for_any(self, handles, timeout):
            return super().wait_for_any(handles, 0.01)

    pool = Impatient(1)
    blocked = UnitTask(unit=unit(0), make_call=lambda: UnitCall("blocked", partial(let_go.wait, 30)))
    try:
        with pytest.raises(DiskError, match="0.1 GB left"):
            dispatch_tasks([blocked], pool, Full(), lambda _: None, clock=Clock())
    finally:
        let_go.set()
    assert len(pool.cancelled) == 1


def test_units_under_way_are_checked_for_hanging_and_workers_are_requested(tmp_path):
    monitor, pool = Monitor(), Threads(1)
    dispatch_tasks(tasks([Work(tmp_path, index) for index in range(3)]), pool, monitor, lambda _: None, clock=Clock())
    assert monitor.checked == {0, 1, 2}
    assert pool.wanted == ("explore", 0)


@pytest.mark.parametrize("error", [IntegrityError("bytes differ"), ConfigError("bad model")])
def test_an_error_names_its_unit_keeps_its_kind_and_cancels_the_rest(tmp_path, error):
    let_go = threading.Event()

    class Blocked(Work):
        def __call__(self, *, isolated: bool = False) -> Receipt:
            let_go.wait(30)
            return super().__call__(isolated=isolated)

    works = [Work(tmp_path, 0, error), Blocked(tmp_path, 1), Blocked(tmp_path, 2), Blocked(tmp_path, 3)]
    pool = Threads(2)
    try:
        with pytest.raises(type(error), match=rf"explore unit 0 \({unit(0).key[:8]}\): {error}"):
            dispatch_tasks(tasks(works), pool, Monitor(), lambda _: None)
    finally:
        let_go.set()
    assert pool.order == [0, 1]
    assert set(pool.cancelled) == pool.open
    assert len(pool.cancelled) == 1


def test_an_error_that_is_not_ours_is_raised_unchanged_and_cancels_the_rest(tmp_path):
    pool = Threads(1)
    works = [Work(tmp_path, 0, ZeroDivisionError("division by zero")), Work(tmp_path, 1)]
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        dispatch_tasks(tasks(works), pool, Monitor(), lambda _: None)
    assert works[1].n_runs == 0


def test_a_run_without_workers_gives_up_after_a_while(tmp_path):
    clock = Clock()
    with pytest.raises(ClusterError, match="no worker has lived for 120 s; start workers, then resume the run"):
        dispatch_tasks(tasks([Work(tmp_path, 0)]), Threads(0), Monitor(), lambda _: None, clock=clock)
    assert NO_WORKER_SECONDS < clock.now <= NO_WORKER_SECONDS + 90


def test_workers_that_come_back_in_time_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(daskpipe.engine.dispatcher.time, "sleep", lambda _: None)

    class Flickering(Threads):
        """Have a worker at each fourth count only, which is often enough to go on."""

        n_counts = 0

        def count_slots(self, stage: str) -> int:
            self.n_counts += 1
            return 0 if self.n_counts % 4 else 1

    works = [Work(tmp_path, index) for index in range(5)]
    dispatch_tasks(tasks(works), Flickering(1), Monitor(), lambda _: None, clock=Clock())
    assert [work.n_runs for work in works] == [1] * 5


def test_a_pool_that_loses_its_workers_under_way_gives_up_and_cancels(tmp_path):
    let_go = threading.Event()

    class Dying(Threads):
        def count_slots(self, stage: str) -> int:
            return 0 if self.open else 1

        def wait_for_any(self, handles, timeout):
            return super().wait_for_any(handles, 0.01)

    pool = Dying(1)
    blocked = UnitTask(unit=unit(0), make_call=lambda: UnitCall("blocked", partial(let_go.wait, 30)))
    try:
        with pytest.raises(ClusterError, match="no worker has lived"):
            dispatch_tasks([blocked], pool, Monitor(), lambda _: None, clock=Clock())
    finally:
        let_go.set()
    assert len(pool.cancelled) == 1
