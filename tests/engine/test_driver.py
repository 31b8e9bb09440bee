"""Test the driver on a shared disk: units that are visible late, clocks that differ, disks that fail."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client
from waiting import wait_until

from daskpipe.core import shared_disk
from daskpipe.core.errors import ClusterError, DaskpipeError, DiskError, DiskUnreachable
from daskpipe.core.events import Event, Notice, UnitLost
from daskpipe.core.notices import send_notice
from daskpipe.engine import attempts
from daskpipe.engine.attempts import Silence, mark_attempt, read_marks
from daskpipe.engine.checkpoints import Checkpoints
from daskpipe.engine.commit import commit
from daskpipe.engine.dask_pool import DaskPool, Workers
from daskpipe.engine.dispatcher import FRUITLESS_LIMIT, UnitCall
from daskpipe.engine.driver import Driver, PlannedUnit, check_disk
from daskpipe.engine.isolation import InputLimits, IsolatedInputs, compute_isolated
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.settings import Faults
from daskpipe.engine.units import Payload, Receipt, Unit, unit_key
from daskpipe.stages.generate.reading.files import rejection_of

LATE_SECONDS = 0.5
"""Time after which a unit that is committed elsewhere can be seen here."""

HOURS = 3600.0
"""By how much clocks differ, s; far more than `faults.hang`."""


def unit(index: int = 0) -> Unit:
    return Unit(stage="label", index=index, key=unit_key("label", 1, {}, [index], 0), n_inputs=1)


class Elsewhere:
    """Pool whose units are committed where the driver cannot see them before some time has passed."""

    def __init__(self, directory: RunDirectory, hidden: Path, seconds: float) -> None:
        self.directory, self.hidden, self.seconds = directory, hidden, seconds
        self.ended: list[Path] = []
        self.timers: list[threading.Timer] = []

    def request_workers(self, stage: str, n_units: int) -> bool:
        return False

    def count_slots(self, stage: str) -> int:
        return 1

    def take_notices(self) -> list[str]:
        return []

    def submit_unit(self, unit: Unit, call: UnitCall) -> Unit:
        return unit

    def wait_for_any(self, handles: Iterable[Any], timeout: float) -> set[Any]:
        return set(handles)

    def take_receipt(self, handle: Unit) -> Receipt:
        receipt = commit(self.hidden, handle, Payload(arrays={"energy": np.zeros(1)}, n_out=1))
        there, here = (
            RunDirectory(root).unit_dir(handle.stage, handle.key) for root in (self.hidden, self.directory.root)
        )
        here.parent.mkdir(parents=True, exist_ok=True)
        self.timers.append(threading.Timer(self.seconds, os.rename, (there, here)))
        self.timers[-1].start()
        return receipt

    def cancel_units(self, handles: Iterable[Any]) -> None:
        """Nothing is under way."""

    def end_process(self, mark: attempts.Mark) -> None:
        self.ended.append(mark.path)


def run_of(root: Path, pool: Any, events: list[Event] | None = None, hang: float = 3600.0) -> Driver:
    return Driver(RunDirectory(root), pool, [].append if events is None else events.append, Faults(hang=hang))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Elsewhere]:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "run").mkdir()
    pool = Elsewhere(RunDirectory(tmp_path / "run"), tmp_path / "hidden", LATE_SECONDS)
    yield pool
    for timer in pool.timers:
        timer.join()


# --- units that are seen late -----------------------------------------------------------------------------


def test_units_that_another_machine_has_committed_are_waited_for(elsewhere: Elsewhere) -> None:
    run = run_of(elsewhere.directory.root, elsewhere)
    receipts = run.run_stage("label", [(unit(index), lambda: None) for index in range(3)], "frames")
    assert [receipt.index for receipt in receipts] == [0, 1, 2]
    assert run.stages["label"]["out"] == 3


def test_units_that_never_become_visible_raise_an_error(elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_disk, "PATIENCE_SECONDS", 0.2)
    elsewhere.seconds = 5.0
    run = run_of(elsewhere.directory.root, elsewhere)
    with pytest.raises(DaskpipeError, match=r"label unit 0 .* gave a receipt and is not on disk; is .* shared by"):
        run.run_stage("label", [(unit(), lambda: None)], "frames")


def test_a_driver_that_waits_for_a_unit_can_be_stopped(elsewhere: Elsewhere) -> None:
    elsewhere.seconds = 5.0
    run = run_of(elsewhere.directory.root, elsewhere)

    def go_on() -> None:
        if elsewhere.timers:
            raise ClusterError("another driver")

    run.check_stop = go_on
    with pytest.raises(ClusterError, match="another driver"):
        run.run_stage("label", [(unit(), lambda: None)], "frames")


# --- clocks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [-HOURS, 0.0, HOURS])
def test_a_process_with_heartbeats_is_not_ended_whatever_the_clocks_say(tmp_path, elsewhere, skew):
    run = run_of(tmp_path, elsewhere, hang=0.4)
    with mark_attempt(tmp_path, unit(), worker="tcp://w", nanny="") as mark:
        for beat in range(8):
            at = time.time() + skew + beat
            os.utime(mark, (at, at))
            run.end_if_hanging(unit())
            time.sleep(0.1)
    assert elsewhere.ended == []


@pytest.mark.parametrize("skew", [-HOURS, 0.0, HOURS])
def test_a_silent_process_is_ended_whatever_the_clocks_say(tmp_path, elsewhere, skew):
    run = run_of(tmp_path, elsewhere, hang=0.4)
    with mark_attempt(tmp_path, unit(), worker="tcp://w", nanny="") as mark:
        at = time.time() + skew
        os.utime(mark, (at, at))
        run.end_if_hanging(unit())
        assert elsewhere.ended == [], "it was seen for the first time"
        time.sleep(0.5)
        for _ in range(2):
            run.end_if_hanging(unit())
        assert elsewhere.ended == [mark]
        assert run._hung[mark].endswith("(faults.hang is 0.4 s)")


def test_a_checkpoint_is_a_sign_of_life(tmp_path, elsewhere):
    run = run_of(tmp_path, elsewhere, hang=0.4)
    saved = Checkpoints(root=tmp_path, unit=unit()).begin_attempt()
    with mark_attempt(tmp_path, unit(), worker="tcp://w", nanny=""):
        for beat in range(8):
            saved.save(bytes([beat]))
            run.end_if_hanging(unit())
            time.sleep(0.1)
    assert elsewhere.ended == []


def test_silence_counts_from_the_last_change():
    silence = Silence()
    silence.measure_seconds("a")
    time.sleep(0.3)
    assert (long := silence.measure_seconds("a")) >= 0.3
    assert silence.measure_seconds("b") < long


# --- disks that fail --------------------------------------------------------------------------------------


def test_progress_can_be_read_while_files_come_and_go(tmp_path, elsewhere):
    """Of 57,857 rounds of questions 118 raised FileNotFoundError before; 500 rounds of files are about 15,000."""
    run, over = run_of(tmp_path, elsewhere), threading.Event()
    folder = RunDirectory(tmp_path).work_dir("label", unit().key)

    def come_and_go() -> None:
        for _ in range(500):
            for name in "abc":
                (folder / f"{name}-checkpoint").mkdir(parents=True)
                (folder / f"{name}-checkpoint" / "state").write_bytes(b"x")
            shutil.rmtree(folder)
        over.set()

    worker = threading.Thread(target=come_and_go)
    worker.start()
    places = set()
    while not over.is_set():
        places.add(run.read_progress(unit()) > 0)
        assert read_marks(tmp_path, unit()) == []
    worker.join()
    assert places == {True, False}, "it was seen with and without files"


def test_a_disk_that_does_not_answer_is_not_full(tmp_path, monkeypatch):
    def fail(path: Any) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "statvfs", fail)
    check_disk(tmp_path, 10**18)


def plan_reading(client: Client, root: Path, read: Callable[[], Any]) -> tuple[Driver, list[PlannedUnit], list[Event]]:
    """Return a run with one unit that reads before it commits."""
    events: list[Event] = []
    run = run_of(root, DaskPool(Workers(client), frozenset()), events)
    return run, [PlannedUnit(unit(), partial(dask.delayed(_payload), read))], events


def _payload(read: Callable[[], Any]) -> Payload:
    return Payload(arrays={"energy": np.asarray(read())}, n_out=1)


def _read_upstream(root: Path) -> np.ndarray:
    return RunDirectory(root).load_arrays("label", unit(1).key)["energy"]


def _fail(flag: Path, n_times: int, number: int) -> list[float]:
    """Fail some times, as a file server that is away for a while, then read."""
    n_calls = int(flag.read_text()) if flag.exists() else 0
    flag.write_text(str(n_calls + 1))
    if n_calls < n_times:
        raise OSError(number, os.strerror(number), "upstream")
    return [1.0]


def _tell() -> list[float]:
    send_notice("the model is compiled")
    send_notice("the model is compiled")
    return [1.0]


def test_what_a_unit_tells_is_emitted_once(client: Client, tmp_path: Path) -> None:
    run, plan, events = plan_reading(client, tmp_path, _tell)
    run.run_stage("label", plan, "frames")

    def told() -> list[str]:
        run.check_run()
        return [event.message for event in events if isinstance(event, Notice)]

    wait_until(lambda: bool(told()))
    assert told() == ["the model is compiled"]


def test_outside_of_units_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    send_notice("the model is compiled")
    assert caplog.messages == ["the model is compiled"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN])
def test_a_read_that_fails_is_a_loss_and_not_the_end(client: Client, tmp_path: Path, number: int) -> None:
    run, plan, events = plan_reading(client, tmp_path, partial(_fail, tmp_path / "calls", 2, number))
    (receipt,) = run.run_stage("label", plan, "frames")
    assert receipt.n_out == 1
    lost = [event for event in events if isinstance(event, UnitLost)]
    assert [event.kind for event in lost] == ["infrastructure"] * 2
    assert lost[0].reason.startswith(f"cannot use upstream: {os.strerror(number)}. Have the disk or its server looked")


def test_a_disk_that_never_answers_ends_the_run_in_order(client, tmp_path, monkeypatch):
    monkeypatch.setattr("daskpipe.engine.dispatcher.LONGEST_PAUSE", 0.05)
    read = partial(_fail, tmp_path / "calls", 10**6, errno.ESTALE)
    run, plan, events = plan_reading(client, tmp_path, read)
    with pytest.raises(DiskUnreachable, match=r"label unit 0 .*Stale file handle. Have the disk or its server look"):
        run.run_stage("label", plan, "frames")
    assert len([event for event in events if isinstance(event, UnitLost)]) == FRUITLESS_LIMIT


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOENT, FileNotFoundError), (errno.EACCES, PermissionError)])
def test_a_file_that_is_not_there_or_closed_ends_the_run_at_once(client, tmp_path, number, kind):
    run, plan, events = plan_reading(client, tmp_path, partial(_fail, tmp_path / "calls", 1, number))
    with pytest.raises(kind, match="upstream"):
        run.run_stage("label", plan, "frames")
    assert [event for event in events if isinstance(event, UnitLost)] == []


def test_a_worker_waits_for_what_another_machine_has_just_committed(client: Client, tmp_path: Path) -> None:
    commit(tmp_path, unit(1), Payload(arrays={"energy": np.arange(2.0)}, n_out=1))
    folder = RunDirectory(tmp_path).unit_dir("label", unit(1).key)
    os.rename(folder, tmp_path / "hidden")
    timer = threading.Timer(LATE_SECONDS, os.rename, (tmp_path / "hidden", folder))
    run, plan, events = plan_reading(client, tmp_path, partial(_read_upstream, tmp_path))
    timer.start()
    (receipt,) = run.run_stage("label", plan, "frames")
    assert RunDirectory(tmp_path).load_arrays("label", receipt.key)["energy"].tolist() == [0, 1]
    assert [event for event in events if isinstance(event, UnitLost)] == []


def _raise(error: Exception) -> Payload:
    raise error


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOSPC])
def test_a_disk_error_in_isolation_rejects_no_structure(tmp_path, monkeypatch, number):
    # Its process unpickles a function of this file.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]))
    inputs = IsolatedInputs(
        names=lambda: ["a seed"], compute=[partial(_raise, OSError(number, os.strerror(number), "upstream"))]
    )
    with (
        mark_attempt(tmp_path, unit(), worker="tcp://w", nanny="") as mark,
        pytest.raises(DiskError, match=rf"upstream: {os.strerror(number)}"),
    ):
        compute_isolated(tmp_path, unit(), inputs, InputLimits(hang=60.0, memory=0, attempts=3), mark)


def test_a_disk_error_rejects_no_file():
    with pytest.raises(OSError, match="Stale file handle"):
        rejection_of(OSError(errno.ESTALE, os.strerror(errno.ESTALE)), "a.xyz#0")
    assert rejection_of(PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "a.xyz#0").reason == "unreadable"


def test_a_mark_names_the_process_that_computes_a_unit(tmp_path):
    with mark_attempt(tmp_path, unit(), worker="tcp://w", nanny="tcp://n") as path:
        (mark,) = read_marks(tmp_path, unit())
        assert (mark.path, mark.worker, mark.nanny, mark.pid) == (path, "tcp://w", "tcp://n", os.getpid())
        assert mark.touched_ns == path.stat().st_mtime_ns
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert mark.touched_ns == 0
    assert read_marks(tmp_path, unit()) == []
