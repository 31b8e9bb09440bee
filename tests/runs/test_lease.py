"""A run directory has one driver at a time, on any machine; and the reasons for which it stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from waiting import PATIENCE, wait_until

from daskpipe.core.errors import ConfigError, DiskError
from daskpipe.runs import lease
from daskpipe.runs.lease import Cancelled, TakenOver, WalltimeNear, find_driver, hold_lease, read_last_driver

SHORT = 0.6
"""Lease of the tests, s; twelve renewals are in it."""

HOLDER = """
import sys, time
from pathlib import Path
from daskpipe.runs.lease import hold_lease
with hold_lease(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", SHORT)


@pytest.fixture
def other_driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the directory."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def read_newest(root: Path) -> Path:
    return max(file for file in (root / "drivers").iterdir() if file.suffix == ".json")


def change_newest(root: Path, **values: object) -> Path:
    """Write other values into the newest lease, as on another machine."""
    file = read_newest(root)
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return file


def hold_until_stopped(root: Path, happens: Callable[[], object] = lambda: None) -> None:
    """Hold a directory, let something happen, and work until the lease stops the driver."""
    with hold_lease(root) as held:
        held.check_stop()
        happens()
        wait_until(lambda: held.stop is not None)
        held.check_stop()


def test_a_second_driver_is_kept_out_until_the_first_dies(tmp_path: Path, other_driver: subprocess.Popen[str]) -> None:
    driver = find_driver(tmp_path)
    assert driver is not None
    assert (driver.host, driver.pid) == (os.uname().nodename, other_driver.pid)
    refused = (
        rf"another daskpipe works in {tmp_path} \(.*, process {other_driver.pid}, since .*\). Wait for it \(daskpipe st"
    )
    with pytest.raises(ConfigError, match=refused), hold_lease(tmp_path):
        pass
    other_driver.kill()
    wait_until(lambda: find_driver(tmp_path) is None)  # it was not reaped: a zombie holds nothing
    for _ in range(2):
        with hold_lease(tmp_path):
            assert find_driver(tmp_path) is not None
        assert find_driver(tmp_path) is None
    assert sorted(file.name for file in (tmp_path / "drivers").iterdir()) == ["0003.json", "clock"]


def test_one_of_many_wins(tmp_path: Path) -> None:
    won: list[int] = []
    refused: list[str] = []
    together, over = threading.Barrier(8), threading.Event()

    def contend(number: int) -> None:
        together.wait()
        try:
            with hold_lease(tmp_path):
                won.append(number)
                over.wait(PATIENCE)
        except ConfigError as error:
            refused.append(str(error))

    for _ in range(5):  # each finds the lease of the one before
        won.clear(), refused.clear(), over.clear()
        threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(won) + len(refused) == 8)
        assert len(won) == 1
        over.set()
        for thread in threads:
            thread.join()


def test_a_number_of_a_process_that_is_used_again(tmp_path: Path, other_driver: subprocess.Popen[str]) -> None:
    assert find_driver(tmp_path) is not None
    change_newest(tmp_path, born="1")
    assert find_driver(tmp_path) is None


def test_a_fresh_lease_of_another_host_refuses_and_an_old_one_is_taken_over(
    tmp_path: Path, other_driver: subprocess.Popen[str]
) -> None:
    other_driver.kill()
    other_driver.wait()
    file = change_newest(tmp_path, host="node17", machine="node17 boot pid", job_id="4711")
    with pytest.raises(ConfigError, match=r"\(node17, process \d+, job 4711, since"), hold_lease(tmp_path):
        pass
    silent = time.time() - lease.LEASE_SECONDS - 1
    os.utime(file, (silent, silent))
    assert find_driver(tmp_path) is None
    with hold_lease(tmp_path):
        pass


def test_age_is_told_by_the_clock_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold_lease(tmp_path):
        change_newest(tmp_path, host="node17", machine="node17 boot pid")
        ahead = time.time() + 1e6
        monkeypatch.setattr(time, "time", lambda: ahead)  # the clock of this login node
        assert find_driver(tmp_path) is not None


def test_patience_waits_for_silence(tmp_path: Path, other_driver: subprocess.Popen[str]) -> None:
    other_driver.kill()
    other_driver.wait()
    change_newest(tmp_path, machine="node17 boot pid", seconds=2.0)
    with pytest.raises(ConfigError, match="another daskpipe works in"), hold_lease(tmp_path):
        pass
    with hold_lease(tmp_path, patience=PATIENCE, token="t"):
        assert read_last_driver(tmp_path).token == "t"


def test_a_torn_lease_counts_as_one_until_it_is_old(tmp_path: Path) -> None:
    (tmp_path / "drivers").mkdir()
    file = tmp_path / "drivers" / "0001.json"
    file.write_text('{"host": "nod')
    with pytest.raises(ConfigError, match=r"\(an unknown host, process 0, since just now\)"), hold_lease(tmp_path):
        pass
    os.utime(file, (0, 0))
    with hold_lease(tmp_path):
        pass


def test_it_is_renewed(tmp_path: Path, short: None) -> None:
    with hold_lease(tmp_path) as held:
        change_newest(tmp_path, machine="node17 boot pid")  # only its age tells that it lives
        for _ in range(5):
            time.sleep(SHORT)
            assert find_driver(tmp_path) is not None
        held.check_stop()


def test_one_that_slept_finds_that_it_was_taken_over(tmp_path: Path, short: None) -> None:
    with ExitStack() as stack:

        def take_over() -> None:
            change_newest(tmp_path, machine="node17 boot pid")
            os.utime(read_newest(tmp_path), (0, 0))
            stack.enter_context(hold_lease(tmp_path))

        with pytest.raises(TakenOver, match=rf"another driver took over {tmp_path} \(.*this one stood still"):
            hold_until_stopped(tmp_path, take_over)
        assert find_driver(tmp_path) is not None  # the first one gave back what was its own, and nothing else
        assert sorted(file.name for file in (tmp_path / "drivers").iterdir()) == ["0002.json", "clock"]


def test_a_run_directory_that_is_removed_ends_the_driver(tmp_path: Path, short: None) -> None:
    with pytest.raises(TakenOver, match="0001.json, was removed. To go on type"):
        hold_until_stopped(tmp_path, lambda: (tmp_path / "drivers" / "0001.json").unlink())
    assert list((tmp_path / "drivers").iterdir()) == []


def test_a_request_to_cancel_is_honoured_and_removed(tmp_path: Path, short: None) -> None:
    with pytest.raises(Cancelled, match=rf"cancelled from \S+ at \S+. To go on type: daskpipe resume {tmp_path}"):
        hold_until_stopped(tmp_path, lambda: lease.request_stop(tmp_path))
    assert lease.read_request(tmp_path) is None


def test_a_request_can_be_made_by_hand(tmp_path: Path, short: None) -> None:
    with pytest.raises(Cancelled, match="cancelled by hand. To go on"):
        hold_until_stopped(tmp_path, (tmp_path / "cancel").touch)


def test_a_request_of_before_is_not_for_this_driver(tmp_path: Path, short: None) -> None:
    lease.request_stop(tmp_path)
    os.utime(tmp_path / "cancel", (0, 0))
    with hold_lease(tmp_path) as held:
        wait_until(lambda: lease.read_request(tmp_path) is None)
        held.check_stop()


def test_one_that_waits_is_woken_and_says_why(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEED_SECONDS", 0.1)

    def wait_for_the_queue() -> None:
        with hold_lease(tmp_path):
            lease.request_stop(tmp_path)
            time.sleep(60 * SHORT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    try:
        with pytest.raises(Cancelled, match="cancelled from") as caught:
            wait_for_the_queue()
    finally:
        signal.signal(signal.SIGINT, before)
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)


def test_it_stops_before_its_job_ends(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASKPIPE_DEADLINE", str(time.time() + 4))
    started = time.monotonic()
    with pytest.raises(WalltimeNear, match=r"the job of this driver ends in [12] s. To go on"):
        hold_until_stopped(tmp_path)
    assert time.monotonic() - started > 1.8  # half is kept to close, and no more


def test_a_deadline_that_has_passed_is_none(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1000000000")
    with hold_lease(tmp_path) as held:
        time.sleep(2 * SHORT)
        held.check_stop()


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold_lease(tmp_path):
        _ = 1 / 0
    assert find_driver(tmp_path) is None


def test_a_full_disk_leaves_no_lease(tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(DiskError, match="cannot write .*drivers: File too large. Make room"), hold_lease(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert find_driver(tmp_path) is None
    with hold_lease(tmp_path):
        pass
