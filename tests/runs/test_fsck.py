"""Damage of every kind to a finished run is reported and mended, and what is made again has the same bytes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from small_runs import UNITS, committed, files_of, manifests

import daskpipe
from daskpipe.core.errors import ConfigError, IntegrityError
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
    assert (
        "1 of select, 6 of label, 5 of label-check, 1 of label-judge, 2 of label-atoms, 1 of store-sort, "
        "1 of store-plan, 2 of store-write, 1 of store" in said
    )
    report = check_run(run_dir, mend=True)
    assert report.findings == []
    assert report.mended == ["removed 20 units that stood on units which are others now, and the dataset"]
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
