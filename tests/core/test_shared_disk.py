"""Files that other machines have written: late, on a disk that does not answer, or refused."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from waiting import PATIENCE

from daskpipe.core import shared_disk
from daskpipe.core.errors import DiskError, DiskUnreachable, IntegrityError
from daskpipe.core.shared_disk import (
    TRANSIENT,
    call_patiently,
    disk_error,
    disk_time,
    explain_disk_errors,
    numbered_files,
    wait_until_visible,
)
from daskpipe.engine.commit import commit
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload, Unit, unit_key

LATE_SECONDS = 0.5
"""Time after which a late file appears, or a broken one is mended."""

DEAD = Path("/proc/self/mem")
"""A file that exists, and of which each read fails with EIO."""

UNIT = Unit(stage="label", index=0, key=unit_key("label", 1, {}, [], 0), n_inputs=3)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A run directory with one committed unit."""
    commit(tmp_path, UNIT, Payload(arrays={"energy": np.arange(3.0)}, n_out=3, files={"numbers.npy": b"123"}))
    return RunDirectory(tmp_path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a moment only."""
    monkeypatch.setattr(shared_disk, "PATIENCE_SECONDS", 0.3)


@pytest.fixture
def later() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Call a function after `LATE_SECONDS`, as another machine would."""
    timers = []

    def call_later(function: Callable[[], object]) -> None:
        timers.append(threading.Timer(LATE_SECONDS, function))
        timers[-1].start()

    yield call_later
    for timer in timers:
        timer.join()


def hide(directory: RunDirectory) -> Callable[[], None]:
    """Move the committed unit away; return what brings it back in one step, as a commit does."""
    folder = directory.unit_dir(UNIT.stage, UNIT.key)
    hidden = directory.root / "elsewhere"
    os.rename(folder, hidden)
    return lambda: os.rename(hidden, folder)


def break_file(directory: RunDirectory, name: str) -> Callable[[], None]:
    """Let each read of a file of the unit fail; return what mends it."""
    file = directory.unit_dir(UNIT.stage, UNIT.key) / name
    kept = file.with_name("kept")
    os.rename(file, kept)
    file.symlink_to(DEAD)
    return lambda: os.replace(kept, file)


USES: dict[str, Callable[[RunDirectory], object]] = {
    "load": lambda directory: directory.load_arrays(UNIT.stage, UNIT.key)["energy"].tolist(),
    "file": lambda directory: directory.unit_file(UNIT.stage, UNIT.key, "numbers.npy").read_bytes(),
    "rejected": lambda directory: directory.read_rejections(UNIT.stage, UNIT.key),
    "names": lambda directory: directory.list_files(UNIT.stage, UNIT.key),
}


@pytest.mark.parametrize("use", USES)
def test_a_unit_that_cannot_be_seen_yet_is_waited_for(directory, later, use):
    expected = USES[use](directory)
    later(hide(directory))
    assert USES[use](directory) == expected


@pytest.mark.parametrize("use", USES)
def test_a_unit_that_never_appears_is_damaged(directory, impatient, use):
    hide(directory)
    with pytest.raises(IntegrityError, match=r"is not what was committed \(it is missing\). To have that unit"):
        USES[use](directory)


def test_a_file_that_lacks_in_a_folder_that_is_there_is_not_waited_for(directory, monkeypatch):
    """The folder was renamed into place with all its files."""
    monkeypatch.setattr(shared_disk.time, "sleep", lambda _: pytest.fail("it waited"))
    (directory.unit_dir(UNIT.stage, UNIT.key) / "payload.npz").unlink()
    with pytest.raises(IntegrityError, match=r"payload.npz is not what was committed \(it is missing\)"):
        directory.load_arrays(UNIT.stage, UNIT.key)


@pytest.mark.parametrize("name", ["manifest.json", "payload.npz"])
def test_a_read_that_fails_is_tried_again(directory, later, name):
    with pytest.raises(OSError, match="Input/output error"):
        DEAD.read_bytes()
    later(break_file(directory, name))
    assert directory.load_arrays(UNIT.stage, UNIT.key)["energy"].tolist() == [0, 1, 2]


def test_a_disk_that_does_not_answer_is_no_damage(directory, impatient):
    break_file(directory, "payload.npz")
    with pytest.raises(OSError, match="Input/output error"):
        directory.load_arrays(UNIT.stage, UNIT.key)


def test_while_waiting_the_caller_can_end_it(tmp_path):
    def check() -> None:
        raise InterruptedError("another driver")

    with pytest.raises(InterruptedError, match="another driver"):
        wait_until_visible(tmp_path / "never", tmp_path, check)

    def fail() -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with pytest.raises(InterruptedError, match="another driver"):
        call_patiently(fail, check)


def test_a_run_directory_that_was_removed_is_not_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_disk, "REMOVED_SECONDS", 0.2)
    monkeypatch.setattr(shared_disk, "PATIENCE_SECONDS", 1e6)
    with ThreadPoolExecutor() as pool:
        gone = pool.submit(wait_until_visible, tmp_path / "gone" / "units" / "key", tmp_path / "gone")
        assert gone.result(PATIENCE) is False
        (tmp_path / "here").mkdir()
        late = pool.submit(wait_until_visible, tmp_path / "here" / "late", tmp_path / "here")
        time.sleep(2 * 0.2)
        assert not late.done()  # the directory is there, so its file may come
        (tmp_path / "here" / "late").touch()
        assert late.result(PATIENCE) is True


@pytest.mark.parametrize("number", sorted(TRANSIENT))
def test_errors_that_say_nothing_of_the_file_are_tried_again(number):
    answers = [OSError(number, os.strerror(number)), None]

    def call() -> str:
        if error := answers.pop(0):
            raise error
        return "read"

    assert call_patiently(call) == "read"
    assert isinstance(disk_error(OSError(number, os.strerror(number), "file")), DiskUnreachable)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENOSPC, errno.EISDIR])
def test_other_errors_are_raised_at_once(number):
    answers = [OSError(number, os.strerror(number))]

    def call() -> None:
        raise answers.pop(0)

    with pytest.raises(OSError, match=os.strerror(number)):
        call_patiently(call)


def test_what_a_disk_says_is_explained(tmp_path):
    def told(number: int, **how: bool) -> None:
        with explain_disk_errors(tmp_path / "a run", tmp_path / "file", **how):
            raise OSError(number, os.strerror(number))

    with pytest.raises(DiskError, match=r"cannot write .*/file: No space left on device. Make room, then: .*/a run'"):
        told(errno.ENOSPC)
    with pytest.raises(DiskUnreachable, match=r"cannot use .*/file: Stale file handle. Have the disk or its"):
        told(errno.ESTALE)
    with pytest.raises(DiskError, match=r"cannot use .*: Permission denied. You are \S+, and \S+ belongs to \S+ \(d"):
        told(errno.EACCES)
    with pytest.raises(PermissionError, match="Permission denied"):
        told(errno.EACCES, permissions=False)
    with pytest.raises(FileNotFoundError, match="No such file"):
        told(errno.ENOENT)
    with pytest.raises(TimeoutError, match="a peer"), explain_disk_errors(tmp_path, tmp_path):
        raise TimeoutError("a peer")  # of a connection: no number, and no matter of the disk


def test_the_clock_is_that_of_the_file_system(tmp_path):
    before = disk_time(tmp_path)
    (tmp_path / "file").touch()
    assert before <= (tmp_path / "file").stat().st_mtime <= disk_time(tmp_path)


def test_files_of_others_are_left_out(tmp_path):
    ours = ["0002.jsonl", "0010.jsonl", "0001.jsonl", "10000.jsonl"]
    for name in [*ours, "._0001.jsonl", "notes.jsonl", "notes.txt", "0003.jsonl~", "0004 copy.jsonl", "²²²².jsonl"]:
        (tmp_path / name).touch()
    files = numbered_files(tmp_path, ".jsonl")
    assert list(files) == [1, 2, 10, 10000]
    assert {path.name for path in files.values()} == set(ours)
    assert numbered_files(tmp_path / "gone", ".jsonl") == {}
