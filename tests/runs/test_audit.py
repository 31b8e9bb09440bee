"""An audit compares the quarantine, the ledger and the counts of a run directory with its units."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import SMALL, manifests

from daskpipe.config.load import load_config
from daskpipe.config.saved import to_yaml
from daskpipe.core.errors import DiskUnreachable, Rejection
from daskpipe.core.events import StageStarted, UnitCommitted
from daskpipe.engine.commit import commit
from daskpipe.engine.ledger import Ledger
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload, Unit, unit_key
from daskpipe.runs.fsck import check_run
from daskpipe.runs.run import Result


@pytest.fixture
def run_dir(reference: Result, tmp_path: Path) -> Path:
    """A finished run that may be harmed; its dataset shares files with units, as that of the original does."""
    copy = tmp_path / "a run"
    subprocess.run(["cp", "-a", reference.run_dir, copy], check=True)  # -a keeps hard links
    return copy


def list_findings(run_dir: Path, **options: bool) -> list[str]:
    return [str(finding) for finding in check_run(run_dir, **options).findings]


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
