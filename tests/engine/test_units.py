import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st

from daskpipe.core.deadline import DEADLINE, seconds_left
from daskpipe.core.errors import DiskError, IntegrityError, Rejection, Yielded
from daskpipe.core.events import StageFinished
from daskpipe.core.structures import from_atoms, hex_ids
from daskpipe.engine.checkpoints import Checkpoints
from daskpipe.engine.commit import commit
from daskpipe.engine.ledger import Ledger, read_ledger
from daskpipe.engine.rows import UnitRows, dataset_to_arrays, read_rows
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload, Receipt, Unit, unit_key


def unit(index: int = 0, stage: str = "explore") -> Unit:
    return Unit(stage=stage, index=index, key=unit_key(stage, 1, {}, [index], 0), n_inputs=3)


def payload(value: float = 1.0, n: int = 100, rejected: Iterable[Rejection] = ()) -> Payload:
    arrays = {"positions": np.full((n, 3), value), "system_type": np.array(["alloy", "surface"] * (n // 2))}
    return Payload(arrays=arrays, n_out=n, rejected=list(rejected))


def rejection(structure: str = "00ff", reason: str = "overlap") -> Rejection:
    return Rejection(
        stage="explore", structure=structure, reason=reason, evidence="Cu-Cu at 0.3 Å", details={"step": 4}
    )


def files(root: Path) -> set[str]:
    return {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}


# --- keys -------------------------------------------------------------------------------------------

PARTS: dict[str, Any] = {
    "stage": "explore",
    "version": 1,
    "params": {"dynamics": {"steps": 10, "stride": 5}, "potential": "abc"},
    "upstream": [["aa", 0, 1], ["bb", 2]],
    "seed": 7,
}


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "label"},
        {"version": 2},
        {"params": {"dynamics": {"steps": 10, "stride": 6}, "potential": "abc"}},
        {"params": {"dynamics": {"steps": 10, "stride": 5}}},
        {"upstream": [["bb", 2], ["aa", 0, 1]]},
        {"upstream": [["aa", 0], [1, "bb", 2]]},
        {"upstream": [["aa", 0, 1], ["bb", 2], []]},
        {"seed": 8},
    ],
)
def test_key_depends_on_each_part(change):
    assert unit_key(**PARTS) == unit_key(**PARTS)
    assert len(unit_key(**PARTS)) == 32
    assert unit_key(**(PARTS | change)) != unit_key(**PARTS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def backwards(value: Any) -> Any:
    """Return the value with the keys of all dicts inserted in the opposite order."""
    if isinstance(value, dict):
        return {key: backwards(item) for key, item in reversed(value.items())}
    return [backwards(item) for item in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(max_size=4), json_values, min_size=2, max_size=5))
def test_key_does_not_depend_on_the_order_of_a_dict(params):
    assert list(backwards(params)) == list(params)[::-1]
    assert unit_key("explore", 1, backwards(params), [], 0) == unit_key("explore", 1, params, [], 0)


def test_key_takes_tuples_for_lists_and_refuses_nan():
    assert unit_key("explore", 1, {"a": (1, 2)}, (("k", 1),), 0) == unit_key("explore", 1, {"a": [1, 2]}, [["k", 1]], 0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        unit_key("explore", 1, {"a": float("nan")}, [], 0)


def test_key_is_the_same_in_every_release():
    """A changed key would make every run on disk start anew."""
    assert unit_key(**PARTS) == "9a8be9445b263cf972f5406229b3161c"


# --- commit -----------------------------------------------------------------------------------------


def test_manifest_holds_sizes_and_digests_of_all_files(tmp_path):
    receipt = commit(tmp_path, unit(), payload(rejected=[rejection()]), seconds=0.5)
    folder = RunDirectory(tmp_path).unit_dir("explore", unit().key)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert files(folder) == {"manifest.json", "payload.npz", "rejected.json"}
    assert set(manifest["files"]) == {"payload.npz", "rejected.json"}
    for name, facts in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert facts == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert manifest["unit"] == {"stage": "explore", "index": 0, "key": unit().key, "n_inputs": 3, "upstream": []}
    assert Receipt(**manifest["receipt"]) == receipt == RunDirectory(tmp_path).read_receipt(unit())
    assert receipt.n_bytes == sum(facts["size"] for facts in manifest["files"].values())
    assert (receipt.n_inputs, receipt.n_out, receipt.n_rejected, receipt.seconds) == (3, 100, 1, 0.5)
    assert receipt.counts == {"alloy": 50, "surface": 50}


def test_the_committed_payload_is_read_back(tmp_path):
    made = payload(2.5, rejected=[rejection()])
    commit(tmp_path, unit(), made)
    directory = RunDirectory(tmp_path)
    loaded = directory.load_arrays("explore", unit().key)
    assert set(loaded) == set(made.arrays)
    for name, array in made.arrays.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)
    assert list(directory.load_arrays("explore", unit().key, ["positions"])) == ["positions"]
    assert directory.read_rejections("explore", unit().key) == made.rejected
    assert directory.read_receipt(unit(1)) is None


def test_a_run_directory_that_was_removed_is_not_made_again(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        commit(tmp_path / "gone", unit(), payload())
    assert list(tmp_path.iterdir()) == []


def test_equal_payloads_are_equal_bytes(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        commit(tmp_path / name, unit(), payload())
    one, other = (RunDirectory(tmp_path / name).unit_dir("explore", unit().key) for name in ("one", "other"))
    assert (one / "payload.npz").read_bytes() == (other / "payload.npz").read_bytes()


def test_second_attempt_loses_and_leaves_nothing(tmp_path):
    first = commit(tmp_path, unit(), payload(1.0))
    before = files(tmp_path)
    second = commit(tmp_path, unit(), payload(2.0, n=50))
    assert second == first
    assert files(tmp_path) == before
    assert RunDirectory(tmp_path).load_arrays("explore", unit().key)["positions"][0, 0] == 1.0
    assert RunDirectory(tmp_path).remove_leftovers() == 0


def test_of_many_attempts_at_once_one_wins(tmp_path):
    n_attempts = 8
    together = threading.Barrier(n_attempts)

    def attempt(number: int) -> Receipt:
        together.wait()
        return commit(tmp_path, unit(), payload(number, n=2 * (number + 1)))

    with ThreadPoolExecutor(n_attempts) as threads:
        receipts = list(threads.map(attempt, range(n_attempts)))
    assert len({receipt.n_out for receipt in receipts}) == 1
    won = receipts[0].n_out // 2 - 1
    assert set(RunDirectory(tmp_path).load_arrays("explore", unit().key)["positions"].ravel()) == {won}
    assert len(files(tmp_path)) == 3


def test_a_forgotten_unit_is_made_again(tmp_path):
    commit(tmp_path, unit(), payload(1.0))
    RunDirectory(tmp_path).forget_unit(unit().stage, unit().key)
    assert RunDirectory(tmp_path).read_receipt(unit()) is None
    assert files(tmp_path) == set()
    commit(tmp_path, unit(), payload(2.0))
    assert RunDirectory(tmp_path).load_arrays("explore", unit().key)["positions"][0, 0] == 2.0


def test_receipt_pickles_below_2_kb(tmp_path):
    kinds = [f"a_long_name_of_a_kind_of_system_{number}" for number in range(20)]
    arrays = {"system_type": np.array(kinds * 500), "positions": np.zeros((10_000, 3))}
    receipt = commit(tmp_path, unit(), Payload(arrays=arrays, n_out=10_000, rejected=[rejection()] * 100))
    assert receipt.counts == dict.fromkeys(kinds, 500)
    assert len(pickle.dumps(receipt)) < 2048


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from daskpipe.engine.commit import commit
from daskpipe.engine.units import Payload, Unit, unit_key

root, n_kills = Path(sys.argv[1]), int(sys.argv[2])
clock = random.Random(0)
for kill in range(n_kills):
    pid = os.fork()
    if pid == 0:
        for index in range(1000):
            unit = Unit(stage="explore", index=index, key=unit_key("explore", 1, {}, [kill, index], 0), n_inputs=1)
            commit(root, unit, Payload(arrays={"positions": np.full((20_000, 3), index)}, n_out=1))
    time.sleep(clock.uniform(0, 0.05))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""


def test_a_process_killed_while_it_commits_leaves_units_absent_or_whole(tmp_path):
    n_kills = 25
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(n_kills)], check=True, env=environment)
    directory = RunDirectory(tmp_path)
    committed = [path for path in tmp_path.glob("units/*/*/*") if not path.name.startswith(".")]
    assert committed
    for folder in committed:
        manifest = json.loads((folder / "manifest.json").read_text())
        positions = directory.load_arrays("explore", folder.name)["positions"]
        assert (positions == manifest["unit"]["index"]).all()
    n_torn = len(list(tmp_path.glob("units/*/*/.*-attempt")))
    assert n_torn > 0, "no kill fell into an attempt, which shows nothing"
    assert directory.remove_leftovers() == n_torn
    assert directory.remove_leftovers() == 0
    assert files(tmp_path) == {
        str((folder / name).relative_to(tmp_path))
        for folder in committed
        for name in ("manifest.json", "payload.npz", "rejected.json")
    }


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 256 kB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mounted)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted: {done.stderr.decode().strip()}")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


def test_a_full_disk_is_named_and_left_as_it_was(small_disk):
    commit(small_disk, unit(0), payload(n=100))
    before = files(small_disk)
    with pytest.raises(DiskError, match=r"cannot write .*-attempt: No space left on device. Make room, then: daskpipe"):
        commit(small_disk, unit(1), payload(n=100_000))
    assert files(small_disk) == before, "an attempt that failed must not fill the disk"
    assert RunDirectory(small_disk).read_receipt(unit(1)) is None
    commit(small_disk, unit(2), payload(n=100))
    assert RunDirectory(small_disk).load_arrays("explore", unit(0).key)["positions"].shape == (100, 3)


def test_a_file_over_the_limit_is_a_disk_error(tmp_path):
    """The kernel answers a file beyond RLIMIT_FSIZE, or a quota of that kind, with EFBIG."""
    code = (
        "import resource, sys; from pathlib import Path; import numpy as np\n"
        "from daskpipe.core.errors import DiskError; from daskpipe.engine.commit import commit\n"
        "from daskpipe.engine.units import Payload, Unit, unit_key\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, {resource.RLIM_INFINITY}))\n"
        "unit = Unit(stage='explore', index=0, key=unit_key('explore', 1, {}, [], 0), n_inputs=1)\n"
        "try: commit(Path(sys.argv[1]), unit, Payload(arrays={'a': np.zeros(10_000)}, n_out=1))\n"
        "except DiskError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    assert "File too large. Make room, then: daskpipe resume" in done.stdout.decode()
    assert files(tmp_path) == set()


@pytest.mark.parametrize("position", [0, 0.5, -1])
@pytest.mark.parametrize("name", ["payload.npz", "rejected.json"])
def test_a_flipped_byte_is_detected(tmp_path, name, position):
    commit(tmp_path, unit(), payload(rejected=[rejection()]))
    directory = RunDirectory(tmp_path)
    file = directory.unit_dir("explore", unit().key) / name
    data = bytearray(file.read_bytes())
    data[int(position * len(data)) if position >= 0 else -1] ^= 1
    file.write_bytes(data)
    read = directory.load_arrays if name == "payload.npz" else directory.read_rejections
    with pytest.raises(IntegrityError, match=f"{name} is not what was committed .its sha256 differs.. .*fsck .*--mend"):
        read("explore", unit().key)


def test_a_missing_file_and_a_torn_manifest_are_detected(tmp_path):
    commit(tmp_path, unit(), payload())
    directory = RunDirectory(tmp_path)
    folder = directory.unit_dir("explore", unit().key)
    (folder / "payload.npz").unlink()
    with pytest.raises(IntegrityError, match="payload.npz is not what was committed .it is missing"):
        directory.load_arrays("explore", unit().key)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    for read in (lambda: directory.read_receipt(unit()), lambda: directory.load_arrays("explore", unit().key)):
        with pytest.raises(IntegrityError, match="manifest.json is not what was committed .JSONDecodeError"):
            read()


def test_rows_are_read_in_the_order_asked_for(tmp_path, monkeypatch):
    structures = [Atoms("Cu" * (index + 1), positions=np.full((index + 1, 3), index)) for index in range(4)]
    for index, half in enumerate((structures[:2], structures[2:])):
        commit(tmp_path, unit(index), Payload(arrays=dataset_to_arrays(from_atoms(half)), n_out=2))
    reads = []
    load = RunDirectory.load_arrays
    monkeypatch.setattr(RunDirectory, "load_arrays", lambda *args: reads.append(args[2]) or load(*args))
    one, other = unit(0).key, unit(1).key
    wanted = [(other, (1,)), (other, (0, 1)), (one, (1,)), (other, (0,))]
    ds = read_rows(tmp_path, [UnitRows(stage="explore", key=key, rows=rows) for key, rows in wanted])
    assert hex_ids(ds) == hex_ids(from_atoms([structures[index] for index in (3, 2, 3, 1, 2)]))
    assert reads == [other, one, other], "neighbouring rows of one unit are read together"


# --- quarantine and lock ----------------------------------------------------------------------------


def test_quarantine_twice_is_quarantine_once(tmp_path):
    directory = RunDirectory(tmp_path)
    rows = [rejection("aa"), rejection("bb", "force")]
    directory.write_quarantine(rows)
    first = {file: (tmp_path / file).stat().st_mtime_ns for file in files(tmp_path)}
    directory.write_quarantine(rows[::-1])
    assert {file: (tmp_path / file).stat().st_mtime_ns for file in files(tmp_path)} == first
    assert len(first) == 2
    assert sorted(directory.read_quarantine(), key=lambda item: item.structure) == rows


@pytest.mark.parametrize("name", ["../../escape", "/etc/passwd", "a b\n<script>", "x" * 5000])
def test_names_from_outside_do_not_become_paths(tmp_path, name):
    directory = RunDirectory(tmp_path / "run")
    directory.root.mkdir()
    directory.write_quarantine([rejection(name)])
    (file,) = files(tmp_path)
    assert file.startswith("run/quarantine/")
    assert directory.read_quarantine() == [rejection(name)]


def test_the_same_structure_in_two_stages_is_two_rejections(tmp_path):
    rows = [rejection(), Rejection(stage="label", structure="00ff", reason="force", evidence="60 eV/Å")]
    RunDirectory(tmp_path).write_quarantine(rows)
    assert len(RunDirectory(tmp_path).read_quarantine()) == 2


# --- the ledger -------------------------------------------------------------------------------------


def finished(seconds: float) -> StageFinished:
    return StageFinished(stage="explore", seconds=seconds, n_out=1, n_rejected=0)


def test_each_driver_writes_its_own_segment(tmp_path):
    directory = RunDirectory(tmp_path)
    for start in range(3):
        ledger = Ledger(directory)
        for number in range(2):
            ledger(finished(10 * start + number))
    assert files(tmp_path) == {f"ledger/000{number}.jsonl" for number in (1, 2, 3)}
    events = read_ledger(directory)
    assert [event["seconds"] for event in events] == [0, 1, 10, 11, 20, 21]
    assert [event["segment"] for event in events] == ["0001", "0001", "0002", "0002", "0003", "0003"]
    assert {event["event"] for event in events} == {"StageFinished"}
    for event in events:
        time.strptime(event["at"], "%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize("n_kept", [0, 1, 40, -2])
def test_a_torn_last_line_is_left_out(tmp_path, n_kept):
    directory = RunDirectory(tmp_path)
    torn = Ledger(directory)
    torn(finished(1))
    whole = torn.path.stat().st_size
    torn(finished(2))
    last_line = torn.path.read_bytes()[whole:]
    torn.path.write_bytes(torn.path.read_bytes()[:whole] + last_line[:n_kept])
    Ledger(directory)(finished(3))
    assert [event["seconds"] for event in read_ledger(directory)] == [1, 3]


def test_a_run_without_a_ledger_has_no_events(tmp_path):
    assert read_ledger(RunDirectory(tmp_path)) == []


# --- checkpoints ------------------------------------------------------------------------------------


def checkpoints(root: Path, index: int = 0) -> Checkpoints:
    """Return the checkpoints of a new attempt."""
    return Checkpoints(root=root, unit=unit(index)).begin_attempt()


def test_a_new_attempt_continues_from_the_newest_checkpoint_of_all(tmp_path):
    first, twin = checkpoints(tmp_path), checkpoints(tmp_path)
    assert first.read_newest() is None
    first.save(b"one")
    assert checkpoints(tmp_path).read_newest() == b"one"
    first.save(b"two")
    assert len(first.list_files()) == 1, "each attempt keeps one"
    twin.save(b"three")
    assert checkpoints(tmp_path).read_newest() == twin.read_newest() == first.read_newest() == b"three"
    assert len(first.list_files()) == 1, "the older ones are not needed any more"
    first.save(b"four")  # it still runs, and its folder was taken away
    assert checkpoints(tmp_path).read_newest() == b"four"
    assert checkpoints(tmp_path, 1).read_newest() is None


def test_a_checkpoint_that_is_torn_or_changed_is_skipped(tmp_path):
    first, twin = checkpoints(tmp_path), checkpoints(tmp_path)
    first.save(b"sane")
    (sane,) = first.list_files()
    broken = sane.parent.with_name(f".{unit().key}-beef-checkpoint")
    broken.mkdir()
    for content in (b"", sane.read_bytes()[:-1], sane.read_bytes() + b"!"):
        (broken / "state").write_bytes(content)
        os.utime(broken / "state", ns=(2**62, 2**62))
        assert twin.list_files()[0].parent == broken
        assert twin.read_newest() == b"sane"


def test_leftovers_of_a_killed_driver_are_removed(tmp_path):
    (tmp_path / "quarantine").mkdir()
    kept = [tmp_path / "config.yaml", tmp_path / "quarantine" / "00ff.json", tmp_path / ".hidden"]
    torn = [tmp_path / ".config.yaml-0123abcd", tmp_path / "quarantine" / ".00ff.json-0123abcd"]
    for file in [*kept, *torn]:
        file.write_text("{")
    RunDirectory(tmp_path).remove_leftovers()
    assert [file.exists() for file in kept] == [True] * 3
    assert [file.exists() for file in torn] == [False] * 2


def test_a_commit_removes_checkpoints_and_those_of_a_twin_are_leftovers(tmp_path):
    one, other = checkpoints(tmp_path, 0), checkpoints(tmp_path, 1)
    one.save(b"x")
    other.save(b"y")
    commit(tmp_path, unit(0), payload())
    assert one.list_files() == []
    one.save(b"late")
    directory = RunDirectory(tmp_path)
    assert directory.remove_leftovers() == 1
    assert one.list_files() == []
    assert other.read_newest() == b"y", "a unit that is not committed goes on from it"
    assert directory.remove_leftovers() == 0


def test_a_checkpoint_in_a_run_that_was_removed_makes_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoints(tmp_path / "gone").save(b"x")
    assert not (tmp_path / "gone").exists()


def test_a_full_disk_keeps_the_checkpoint_before(small_disk):
    kept = checkpoints(small_disk)
    kept.save(b"small")
    with pytest.raises(DiskError, match=r"cannot write .*-checkpoint: No space left on device. Make room, then: daskp"):
        kept.save(bytes(2**20))
    assert kept.read_newest() == b"small"
    assert sum(path.stat().st_size for path in small_disk.rglob("*") if path.is_file()) < 100


def test_the_end_of_a_worker_is_read_from_its_environment(monkeypatch, tmp_path):
    for name in DEADLINE:
        monkeypatch.delenv(name, raising=False)
    assert seconds_left() == float("inf")
    handle = checkpoints(tmp_path)
    handle.yield_if_ending()
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3600))
    assert 3590 < seconds_left() < 3601
    handle.yield_if_ending()
    monkeypatch.setenv("DASKPIPE_DEADLINE", str(time.time() + 30))
    assert handle.ends_soon()
    with pytest.raises(Yielded, match=r"the worker ends in (29|30) s"):
        handle.yield_if_ending()
