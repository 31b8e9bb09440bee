"""Damage of every kind to a finished run is reported and mended, and what is made again has the same bytes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from small_runs import SMALL, UNITS, committed, files_of, manifests

import daskpipe
from daskpipe.config.load import load_config
from daskpipe.config.saved import to_yaml
from daskpipe.core.errors import ConfigError, DiskUnreachable, IntegrityError, Rejection
from daskpipe.core.events import StageStarted, UnitCommitted
from daskpipe.engine.commit import commit
from daskpipe.engine.ledger import Ledger
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload, Unit, unit_key
from daskpipe.runs import lease
from daskpipe.runs.fsck import check_run
from daskpipe.runs.run import Result

N_UNITS = sum(UNITS.values())


@pytest.fixture
def run_dir(reference: Result, tmp_path: Path) -> Path:
    """A finished run that may be harmed; its dataset shares files with units, as that of the original does."""
    copy = tmp_path / "a run"
    subprocess.run(["cp", "-a", reference.run_dir, copy], check=True)  # -a keeps hard links
    return copy


def find_unit(run_dir: Path, stage: str) -> Path:
    """Return the folder of the first unit of a stage."""
    return next(path.parent for path in manifests(run_dir) if path.parts[-4] == stage)


def flip_bit(path: Path) -> None:
    """Change one bit in the middle of a file, in place."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def list_findings(run_dir: Path, **options: bool) -> list[str]:
    return [str(finding) for finding in check_run(run_dir, **options).findings]


def test_a_finished_run_is_clean_and_left_as_it_is(run_dir: Path) -> None:
    before = files_of(run_dir)
    report = check_run(run_dir, rehash=True)
    assert (report.findings, report.leftovers, report.waiting, report.next) == ([], [], [], [])
    assert {stage: row["units"] for stage, row in report.stages.items()} == UNITS
    assert {row["pending"] for row in report.stages.values()} == {0}
    assert report.stages["explore"]["out"] == report.stages["select"]["inputs"] == 8
    assert files_of(run_dir) == before


def remove_file(path: Path) -> None:
    path.unlink()


def cut_file(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 7)


def move_shard(path: Path) -> None:
    """Put the unit into the folder of another shard."""
    target = path.parent.parent.with_name("zz")
    target.mkdir()
    path.parent.rename(target / path.parent.name)


def move_stage(path: Path) -> None:
    """Put the unit where those of another stage stand."""
    target = path.parents[2].with_name("label") / path.parent.parent.name
    target.mkdir(exist_ok=True)
    path.parent.rename(target / path.parent.name)


def add_file(path: Path) -> None:
    (path.parent / "notes.txt").write_text("mine")


def tear_ledger(path: Path) -> None:
    (path.parent / "manifest.json").write_text((path.parent / "manifest.json").read_text()[:80])


def rename_unit(path: Path) -> None:
    """Give the unit the name of another key."""
    path.parent.rename(path.parent.with_name(path.parent.name[:2] + 30 * "0"))


@pytest.mark.parametrize("stage", ["generate", "explore", "describe-fit", "select", "label", "store-sort"])
def test_a_flipped_byte_is_found_by_rehash_alone_and_its_unit_alone_made_again(
    stage: str, run_dir: Path, reference: Result, client: Client
) -> None:
    harmed = find_unit(run_dir, stage)
    before = committed(run_dir)
    flip_bit(harmed / "payload.npz")
    assert list_findings(run_dir) == []
    (said,) = list_findings(run_dir, rehash=True)
    assert said.startswith(f"{harmed.relative_to(run_dir)}/payload.npz of {stage} unit ")
    assert "expected sha256 " in said
    mended = check_run(run_dir, rehash=True, mend=True)
    assert mended.findings == []
    assert [name.split(" ")[:2] for name in mended.waiting] == [[stage, "unit"]]
    assert not harmed.exists()
    daskpipe.resume(run_dir, client=client)
    after = committed(run_dir)
    assert {key: state for key, state in after.items() if key != harmed.name} == {
        key: state for key, state in before.items() if key != harmed.name
    }
    assert after.keys() == before.keys()
    assert after[harmed.name] != before[harmed.name]
    assert files_of(run_dir / "dataset.zarr") == files_of(reference.dataset)
    assert files_of(harmed)["payload.npz"] == files_of(find_unit(reference.run_dir, stage))["payload.npz"]
    report = check_run(run_dir, rehash=True)
    assert (report.findings, report.waiting) == ([], [])
    assert [left["path"] for left in report.leftovers] == ["damaged"]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (remove_file, r"payload.npz of explore unit \d .*: expected a file of \d+ bytes, found no such file"),
        (cut_file, r"payload.npz of explore unit \d .*: expected \d+ bytes, found \d+ bytes"),
        (
            add_file,
            r"notes.txt of explore unit \d .*: expected no such file, found one that the manifest does not name",
        ),
        (tear_ledger, r"manifest.json: expected the manifest of a unit, found JSONDecodeError"),
        (move_shard, r"units/explore/zz/.*: expected it at units/explore/.*, found it here"),
        (move_stage, r"units/label/.*: expected it at units/explore/.*, found it here"),
        (rename_unit, r"0{30} of explore unit \d .*: expected it at units/explore/.*, found it here"),
    ],
)
def test_damage_that_needs_no_rehash(
    harm: Callable[[Path], None], said: str, run_dir: Path, reference: Result, client: Client
) -> None:
    harmed = find_unit(run_dir, "explore")
    before = committed(run_dir)
    harm(harmed / "payload.npz")
    report = check_run(run_dir)
    assert re.search(said, "\n".join(map(str, report.findings)))
    assert report.next == [f"daskpipe fsck '{run_dir}' --rehash --mend", f"daskpipe resume '{run_dir}'"]
    mended = check_run(run_dir, mend=True)
    assert mended.findings == []
    assert mended.next == [f"daskpipe resume '{run_dir}'"]
    daskpipe.resume(run_dir, client=client)
    after = committed(run_dir)
    assert {key for key in before if after[key] != before[key]} == {harmed.name}
    assert files_of(run_dir / "dataset.zarr") == files_of(reference.dataset)
    assert list_findings(run_dir, rehash=True) == []


@pytest.mark.parametrize("name", ["positions", "positions cut"])
def test_what_harms_a_chunk_harms_the_dataset_and_both_are_made_again(
    name: str, run_dir: Path, reference: Result, client: Client
) -> None:
    harmed = next(path for path in run_dir.glob("units/store-write/*/*/positions"))
    (cut_file if "cut" in name else flip_bit)(harmed)
    findings = list_findings(run_dir, rehash="cut" not in name)
    assert [line.split(" ")[0].partition("/")[0] for line in findings] == ["units", "dataset.zarr"]
    assert "dataset.zarr/positions/c/0/0: expected it as written, found differs" in findings
    before = committed(run_dir)
    assert check_run(run_dir, rehash=True, mend=True).findings == []
    assert not (run_dir / "dataset.zarr").exists()
    daskpipe.resume(run_dir, client=client)
    after = committed(run_dir)
    again = {harmed.parent.name, find_unit(reference.run_dir, "store").name}
    assert {key for key in before if after[key] != before[key]} == again
    assert files_of(run_dir / "dataset.zarr") == files_of(reference.dataset)
    assert list_findings(run_dir, rehash=True) == []


@pytest.mark.parametrize("place", ["units/notes.txt", "units/explore/notes.txt", "units/explore/00/notes.txt"])
def test_foreign_files_are_moved_aside(place: str, run_dir: Path) -> None:
    (run_dir / place).parent.mkdir(exist_ok=True)
    (run_dir / place).write_text("mine")
    assert list_findings(run_dir) == [f"{place}: expected nothing, found a foreign file"]
    assert check_run(run_dir, mend=True).mended == [f"moved {place} to damaged/{place}"]
    assert (run_dir / "damaged" / place).read_text() == "mine"
    assert list_findings(run_dir, rehash=True) == []


def test_a_link_out_of_the_run_is_no_unit(run_dir: Path, tmp_path: Path) -> None:
    folder = find_unit(run_dir, "label")
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert "expected nothing, found a foreign file" in list_findings(run_dir)[0]
    check_run(run_dir, mend=True)
    assert (tmp_path / "elsewhere" / "payload.npz").exists()


def test_a_unit_whose_source_is_gone_is_named(run_dir: Path, client: Client) -> None:
    gone = find_unit(run_dir, "generate")
    shutil.rmtree(gone)
    findings = list_findings(run_dir)
    assert any(f"expected the unit {gone.name} that it was made from, found no such unit" in line for line in findings)
    assert any(line.startswith(f"units/generate/{gone.name[:2]}/{gone.name} of generate unit") for line in findings)
    daskpipe.resume(run_dir, client=client)
    assert list_findings(run_dir, rehash=True) == []


def test_what_is_made_again_and_differs_takes_what_stands_on_it_with_it(
    run_dir: Path, reference: Result, client: Client
) -> None:
    harmed = find_unit(run_dir, "describe")
    before = committed(run_dir)
    flip_bit(harmed / "payload.npz")
    check_run(run_dir, rehash=True, mend=True)
    daskpipe.resume(run_dir, client=client)
    assert list_findings(run_dir) == []
    # As if it had been another one before: on a GPU sums run in no fixed order.
    aside = run_dir / "damaged" / harmed.relative_to(run_dir) / "manifest.json"
    content = json.loads(aside.read_text())
    content["files"]["payload.npz"]["sha256"] = 64 * "0"
    aside.write_text(json.dumps(content))
    (said,) = list_findings(run_dir)
    assert "had before it was damaged, found others; what stands on that unit must be made again: " in said
    assert "1 of select, 6 of label, 1 of store-sort, 1 of store-plan, 2 of store-write, 1 of store" in said
    report = check_run(run_dir, mend=True)
    assert report.findings == []
    assert report.mended == ["removed 12 units that stood on units which are others now, and the dataset"]
    assert not (run_dir / "dataset.zarr").exists()
    daskpipe.resume(run_dir, client=client)
    after = committed(run_dir)
    stages = {path.parent.name: path.parts[-4] for path in manifests(run_dir)}
    assert {stages[key] for key in after if after[key] == before[key]} == {
        "generate", "explore", "describe-fit", "describe"
    }  # fmt: skip
    assert files_of(run_dir / "dataset.zarr") == files_of(reference.dataset)
    assert list_findings(run_dir, rehash=True) == []


def test_a_manifest_that_lied_takes_nothing_with_it(run_dir: Path, client: Client) -> None:
    """A digit of a checksum was changed: the bytes were right all the time."""
    harmed = find_unit(run_dir, "explore")
    manifest = harmed / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"]["payload.npz"]["sha256"] = 64 * "0"
    manifest.write_text(json.dumps(content))
    check_run(run_dir, rehash=True, mend=True)
    daskpipe.resume(run_dir, client=client)
    assert list_findings(run_dir, rehash=True) == []


def test_nothing_is_mended_while_a_driver_works(run_dir: Path) -> None:
    flip_bit(find_unit(run_dir, "explore") / "payload.npz")
    before = {name for name in files_of(run_dir) if "drivers" not in name}
    with lease.hold_lease(run_dir), pytest.raises(ConfigError, match="another daskpipe works in"):
        check_run(run_dir, rehash=True, mend=True)
    assert {name for name in files_of(run_dir) if "drivers" not in name} == before


def test_the_error_of_a_run_says_what_to_type_and_that_works(run_dir: Path, client: Client) -> None:
    flip_bit(find_unit(run_dir, "generate") / "payload.npz")
    shutil.rmtree(find_unit(run_dir, "explore"))
    with pytest.raises(IntegrityError, match="type: daskpipe fsck '.*/a run' --rehash --mend, then: daskpipe resume '"):
        daskpipe.resume(run_dir, client=client)
    assert check_run(run_dir, rehash=True, mend=True).findings == []
    daskpipe.resume(run_dir, client=client)
    assert list_findings(run_dir, rehash=True) == []


# --- the ledger -----------------------------------------------------------------------------------------


def read_segment(run_dir: Path) -> Path:
    return sorted((run_dir / "ledger").glob("*.jsonl"))[0]


def test_half_a_line_at_the_end_of_the_ledger_is_what_a_crash_leaves(run_dir: Path) -> None:
    with read_segment(run_dir).open("a") as file:
        file.write('{"at": "2026-')
    assert list_findings(run_dir) == []


@pytest.mark.parametrize(
    "line",
    ['{"at": "2026-', "[1, 2]", "{}", "\0", "[" * 100_000, '{"event": "UnitCommitted", "stage": "../..", "key": "/"}'],
)
def test_half_a_line_elsewhere_is_taken_out(line: str, run_dir: Path) -> None:
    path = read_segment(run_dir)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], line, *lines[3:]]) + "\n")
    assert list_findings(run_dir) == [f"ledger/{path.name}: expected an event on each line, found none on line 4"]
    assert check_run(run_dir, mend=True).mended == [f"took 1 lines out of ledger/{path.name}"]
    assert path.read_text().splitlines() == lines
    assert list_findings(run_dir) == []


@pytest.mark.parametrize(
    ("change", "said"), [({"n_out": 77}, "found n_out 2"), ({"key": 32 * "a"}, "found no such unit")]
)
def test_a_ledger_that_disagrees_with_the_tree(change: dict[str, Any], said: str, run_dir: Path) -> None:
    path = read_segment(run_dir)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    number = next(n for n, event in enumerate(events) if event["event"] == "UnitCommitted" and event["n_out"] == 2)
    events[number] |= change
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    (finding,) = list_findings(run_dir)
    assert f"expected what line {number + 1} of ledger/{path.name} says of it, {said}" in finding
    assert check_run(run_dir, mend=True).findings == []


def test_a_ledger_that_is_gone_is_no_damage(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "ledger")
    report = check_run(run_dir, rehash=True)
    assert report.findings == []
    assert {row["pending"] for row in report.stages.values()} == {None}


# --- quarantine and counts: a small directory made by hand ---------------------------------------------------


def test_a_disk_that_fails_is_no_damage(run_dir: Path) -> None:
    """Nothing may be moved aside that could not be read."""
    manifest = manifests(run_dir)[0]
    manifest.rename(run_dir / "kept")
    manifest.symlink_to("/proc/self/mem")  # of which each read fails
    with pytest.raises(DiskUnreachable, match=r"cannot use .*/manifest.json: Input/output error. Have the dis"):
        check_run(run_dir, mend=True)
    (run_dir / "kept").replace(manifest)
    assert check_run(run_dir, rehash=True).findings == []
    assert not (run_dir / "damaged").exists()


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A run directory with a config and without units."""
    made = RunDirectory(tmp_path / "run")
    made.root.mkdir()
    made.config.write_text(to_yaml(load_config("emt_alloy", SMALL)))
    return made


def commit_unit(
    directory: RunDirectory, stage: str, index: int, n_inputs: int, n_out: int, rejected: list[Rejection], salt: int = 0
) -> Unit:
    """Commit a unit, and quarantine what it rejected."""
    unit = Unit(stage=stage, index=index, key=unit_key(stage, 1, {}, [index, salt], 0), n_inputs=n_inputs)
    arrays = {"step": np.arange(n_out)}
    receipt = commit(directory.root, unit, Payload(arrays=arrays, n_out=n_out, rejected=rejected))
    directory.write_quarantine(rejected)
    Ledger(directory)(UnitCommitted(**asdict(receipt)))
    return unit


def planned(directory: RunDirectory, stage: str, n_units: int, n_inputs: int) -> None:
    Ledger(directory)(StageStarted(stage=stage, n_units=n_units, n_committed=0, n_inputs=n_inputs, what="frames"))


def bad(structure: str = "00ff", stage: str = "label", evidence: str = "60 eV/Å") -> Rejection:
    return Rejection(stage=stage, structure=structure, reason="force", evidence=evidence)


def test_quarantine_and_units_agree(directory: RunDirectory) -> None:
    commit_unit(directory, "label", 0, 3, 2, [bad("a")])
    commit_unit(directory, "label", 1, 2, 1, [bad("b")])
    # The same structure failed in two units, in two ways: the quarantine holds the first.
    commit_unit(directory, "label", 2, 1, 0, [bad("a", evidence="another")])
    duplicate = Rejection(stage="generate", structure="ff/0", reason="duplicate", evidence="equals the seed ee")
    directory.write_quarantine([duplicate])
    assert list_findings(directory.root) == []
    one, other = (directory.quarantine_file(bad(name)) for name in "ab")
    one.unlink()
    other.write_text(other.read_text().replace("60", "61"))
    stranger, torn = directory.quarantine_file(bad("stranger")), one.with_name("torn.json")
    directory.write_quarantine([bad("stranger")])
    torn.write_text("{")
    bomb = one.with_name("bomb.json")
    bomb.write_text("[" * 200_000)
    findings = list_findings(directory.root)
    assert f"quarantine/{one.name}: expected label/force of a, found no such file" in findings
    assert any(
        line.startswith(f"quarantine/{other.name}: expected the rejection that the unit holds") for line in findings
    )
    explained = "expected no file that no unit explains, found label/force of stranger"
    assert f"quarantine/{stranger.name}: {explained}" in findings
    assert f"quarantine/{torn.name}: expected a rejection, found something else" in findings
    assert len(findings) == 5
    report = check_run(directory.root, mend=True)
    assert report.findings == []
    assert {item.structure for item in directory.read_quarantine()} == {"a", "b", "ff/0"}
    assert directory.read_quarantine() == sorted(
        [bad("a"), bad("b"), duplicate], key=lambda item: directory.quarantine_file(item)
    )


@pytest.mark.parametrize(
    ("units", "plan", "said"),
    [
        ([("label", 0, 3, 1, 1)], None, "expected as many as its 3 inputs, found 1 outputs and 1 rejections"),
        ([("generate", 0, 3, 1, 1)], None, "expected as many as its 3 inputs, found 1 outputs and 1 rejections"),
        ([("label", 0, 2, 1, 1), ("label", 0, 3, 2, 1)], None, "expected one unit 0 of label, found 2: "),
        ([("explore", 0, 2, 5, 0)], ("explore", 1, 1), "expected 1 inputs, as planned, found 2 inputs"),
        (
            [("explore", 0, 2, 5, 0), ("explore", 1, 2, 5, 0)],
            ("explore", 1, 4),
            "expected 1 units, as planned, found 2",
        ),
    ],
)
def test_what_is_not_conserved_is_named(
    units: list[tuple[str, int, int, int, int]], plan: tuple[str, int, int] | None, said: str, directory: RunDirectory
) -> None:
    if plan:
        planned(directory, *plan)
    for salt, (stage, index, n_inputs, n_out, n_rejected) in enumerate(units):
        rejected = [bad(f"{salt} {number}", stage) for number in range(n_rejected)]
        commit_unit(directory, stage, index, n_inputs, n_out, rejected, salt)
    assert said in " ".join(list_findings(directory.root))


def test_what_is_pending_is_counted(directory: RunDirectory) -> None:
    planned(directory, "label", 3, 10)
    commit_unit(directory, "label", 0, 4, 3, [bad()])
    report = check_run(directory.root, rehash=True)
    assert report.findings == []
    assert report.stages["label"] == {"units": 1, "inputs": 4, "out": 3, "rejected": 1, "pending": 6}


def test_stages_are_compared_with_each_other(directory: RunDirectory) -> None:
    planned(directory, "select", 1, 8)
    commit_unit(directory, "select", 0, 8, 6, [])
    planned(directory, "label", 2, 5)
    assert list_findings(directory.root) == ["units/label: expected 6 inputs, the outputs of select, found 5 inputs"]


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../../../canary": {"size": 0, "sha256": ""}}},
        {"files": []},
        {"unit": {"stage": "../..", "index": 0, "key": "x", "n_inputs": 0}},
        {"receipt": {}},
        {"unit": None},
        {"files": {"payload.npz": {"size": "1", "sha256": 0}, "rejected.json": {}}},
    ],
)
def test_a_hostile_manifest_is_damage(change: dict[str, Any], directory: RunDirectory) -> None:
    unit = commit_unit(directory, "label", 0, 3, 3, [])
    manifest = directory.unit_dir("label", unit.key) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    (directory.root.parent / "canary").write_text("")
    (said,) = list_findings(directory.root, rehash=True)
    assert "expected the manifest of a unit, found ValueError" in said
    check_run(directory.root, mend=True)
    assert (directory.root.parent / "canary").exists()
    assert list_findings(directory.root) == []


def test_what_attempts_leave_behind_is_listed_with_its_bytes(directory: RunDirectory) -> None:
    unit = commit_unit(directory, "label", 0, 3, 3, [])
    shard = directory.unit_dir("label", unit.key).parent
    (shard / f".{unit.key}-0123abcd-attempt").mkdir()
    (shard / f".{unit.key}-0123abcd-attempt" / "payload.npz").write_bytes(bytes(1000))
    work = directory.work_dir("label", "0" * 32)
    work.mkdir(parents=True)
    (work / "checkpoint-1.npz").write_bytes(bytes(50))
    (directory.root / "keys-abc").mkdir()
    (directory.root / "keys-abc" / "ca.pem").write_bytes(bytes(20))
    (directory.root / ".config.yaml-0123abcd").write_bytes(bytes(3))
    report = check_run(directory.root)
    assert report.findings == []
    assert sorted((left["what"], left["bytes"]) for left in report.leftovers) == [
        ("attempt", 1000), ("checkpoints", 50), ("keys", 20), ("temporary", 3)
    ]  # fmt: skip


# --- the command ----------------------------------------------------------------------------------------


def test_the_command(type_command: Callable[..., Any], run_dir: Path) -> None:
    typed = type_command("fsck", run_dir, "--rehash")
    assert typed.code == 0
    assert f"clean; {N_UNITS} units (every byte read)" in typed.out
    flip_bit(find_unit(run_dir, "label") / "payload.npz")
    assert type_command("fsck", run_dir).code == 0
    typed = type_command("fsck", run_dir, "--rehash")
    assert typed.code == 1
    assert f"type: daskpipe fsck '{run_dir}' --rehash --mend\ntype: daskpipe resume '{run_dir}'" in typed.out
    answer = json.loads(type_command("fsck", run_dir, "--rehash", "--json").out)
    assert not answer["clean"]
    assert answer["findings"][0]["says"] in typed.out
    typed = type_command("fsck", run_dir, "--rehash", "--mend")
    assert typed.code == 0
    assert "mended: moved units/label/" in typed.out
    assert "moved aside and not made again yet: label unit" in typed.out


def test_what_is_no_run_is_refused(type_command: Callable[..., Any], tmp_path: Path) -> None:
    typed = type_command("fsck", tmp_path)
    assert typed.code == 2
    assert "is no run directory (it has no config.yaml and no units)" in typed.err


def test_a_config_that_is_gone_is_named(run_dir: Path) -> None:
    (run_dir / "config.yaml").unlink()
    (said,) = list_findings(run_dir)
    assert said.startswith("config.yaml: expected the config of the run; put it back, found")
