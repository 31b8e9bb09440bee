"""Test which workers units run on, and the errors for missing resources."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest
from distributed import Client, Future
from waiting import wait_until

from daskpipe.core.errors import ClusterError
from daskpipe.engine.dask_pool import GPU, DaskPool, Workers, describe_offers, gpu_stages, read_offers
from daskpipe.engine.dispatcher import UnitCall, UnitTask, WorkerLost
from daskpipe.engine.units import Receipt, Unit


def unit(stage: str, index: int = 0) -> Unit:
    return Unit(stage=stage, index=index, key=f"{index:032x}", n_inputs=1)


def where() -> str:
    """Return the address of the worker that runs this."""
    from distributed import get_worker

    return str(get_worker().address)


def task(stage: str, index: int = 0, work: object = where) -> UnitTask:
    return UnitTask(unit=unit(stage, index), make_call=lambda: UnitCall(f"{stage}-{index}", work))


def submitted(pool: DaskPool, item: UnitTask) -> object:
    return pool.submit_unit(item.unit, item.make_call())


def results(pool: DaskPool, tasks: list[UnitTask]) -> list[object]:
    handles = [submitted(pool, item) for item in tasks]
    left = set(handles)
    while left:
        left -= pool.wait_for_any(left, timeout=10)
    return [pool.take_receipt(handle) for handle in handles]


def test_offers_are_those_of_the_workers(client: Client) -> None:
    assert sorted(worker.get(GPU, 0) for worker in read_offers(client).values()) == [0, 1]


@pytest.mark.parametrize(
    ("devices", "on_gpu"),
    [
        ({"explore": "auto", "label": "cpu"}, {"explore"}),
        ({"explore": "cuda", "label": "auto"}, {"explore", "label"}),
        ({"explore": "cpu", "label": "cpu"}, set()),
    ],
)
def test_the_device_decides_which_stages_need_a_gpu(client: Client, devices: dict[str, str], on_gpu: set[str]) -> None:
    assert gpu_stages(Workers(client), devices) == on_gpu


def test_offers_are_described() -> None:
    assert describe_offers({}) == "no workers"
    assert (
        describe_offers({"tcp://b": {}, "tcp://a": {"GPU": 1.0, "MEM": 2.5}})
        == "tcp://a: GPU=1, MEM=2.5; tcp://b: nothing"
    )


def test_a_gpu_stage_has_a_slot_a_gpu_and_runs_there_only(client: Client) -> None:
    pool = DaskPool(Workers(client), frozenset({"explore"}))
    (gpu,) = [address for address, worker in read_offers(client).items() if worker.get(GPU)]
    assert pool.count_slots("explore") == 1
    assert set(results(pool, [task("explore", index) for index in range(8)])) == {gpu}


def test_other_stages_have_a_slot_a_thread_and_one_ahead(client: Client) -> None:
    pool = DaskPool(Workers(client), frozenset({"explore"}))
    assert pool.count_slots("label") == 4  # two workers of one thread
    assert set(results(pool, [task("label", index) for index in range(8)])) == set(read_offers(client))


def test_waiting_ends_after_its_time(client: Client) -> None:
    pool = DaskPool(Workers(client), frozenset())
    handle = submitted(pool, task("label", work=lambda: time.sleep(1)))
    assert pool.wait_for_any([handle], timeout=0.05) == set()
    assert pool.wait_for_any([handle], timeout=30) == {handle}
    pool.take_receipt(handle)


def test_a_receipt_that_is_on_disk_is_not_sent(client: Client) -> None:
    pool = DaskPool(Workers(client), frozenset())
    seen = iter(["read here", None])

    def work() -> UnitCall:
        return UnitCall("label", lambda: "sent", lambda: next(seen))

    items = [UnitTask(unit=unit("label", index), make_call=work) for index in range(2)]
    assert results(pool, items) == ["read here", "sent"]  # the second is not seen from here


def test_the_scheduler_keeps_nothing_of_units_that_are_done(client: Client) -> None:
    pool = DaskPool(Workers(client), frozenset())
    results(pool, [task("label", index) for index in range(8)])
    spans = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.extensions["spans"].spans)
    assert spans
    assert not any(span.metadata["collections"] for span in spans.values())


def test_the_error_of_a_unit_is_raised_by_the_driver(client: Client) -> None:
    def fail() -> Receipt:
        raise ClusterError("as said")

    pool = DaskPool(Workers(client), frozenset())
    with pytest.raises(ClusterError, match="as said"):
        results(pool, [task("label", work=fail)])


def test_a_unit_that_failed_is_computed_again(client: Client, tmp_path: Path) -> None:
    def fail_once() -> str:
        with suppress(FileExistsError):
            (tmp_path / "failed").touch(exist_ok=False)
            raise ClusterError("once")
        return "computed"

    pool = DaskPool(Workers(client), frozenset())
    item = task("label", work=fail_once)
    first = submitted(pool, item)
    # A client forgets a future in a thread of its own, at some time: hold it here as long as that may take.
    kept = Future(first.key, client)
    with pytest.raises(ClusterError, match="once"):
        pool.take_receipt(first)
    assert pool.take_receipt(submitted(pool, item)) == "computed"
    kept.release()


def test_a_cancelled_unit_counts_as_lost(client: Client) -> None:
    pool = DaskPool(Workers(client), frozenset())
    handle = submitted(pool, task("label", work=lambda: time.sleep(0.5)))
    pool.cancel_units([handle])
    with pytest.raises(WorkerLost):
        pool.take_receipt(handle)


def test_a_cancelled_unit_that_is_submitted_again_does_not_stay(client: Client) -> None:
    pool = DaskPool(Workers(client), frozenset())
    again = task("label", work=lambda: time.sleep(0.3) or 1)
    cancelled = submitted(pool, again)
    pool.cancel_units([cancelled])
    assert pool.take_receipt(submitted(pool, again)) == 1
    wait_until(lambda: not client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))
    assert cancelled is not None  # it is alive, as it is while an error's traceback holds it


def test_cancelling_nothing_or_after_the_end_raises_no_error(client: Client) -> None:
    DaskPool(Workers(client), frozenset()).cancel_units([])
    closed = Client(client.scheduler.address, set_as_default=False, security=client.security)
    pool = DaskPool(Workers(closed), frozenset())
    handle = submitted(pool, task("label"))
    closed.close()
    pool.cancel_units([handle])
