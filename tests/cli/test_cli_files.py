"""The command line with files of other users, and with files in a run directory that are no part of the run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import SMALL

from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs.fsck import check_run
from daskpipe.runs.run import Result

OTHER_USER = 54321
"""A user that no machine knows."""

TYPE_ALL = """
import contextlib, io, json, sys
from daskpipe.cli.main import main

answers = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["daskpipe", *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            answers.append([stop.code or 0, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""


def type_without_privileges(commands: list[list[str]], folder: Path) -> list[tuple[int, str, str]]:
    """Type commands in one process of root that the permissions of files bind as they bind everybody."""
    bound = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]
    done = subprocess.run(
        [*bound, sys.executable, "-c", TYPE_ALL, json.dumps(commands)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return [(code, out, " ".join(err.split())) for code, out, err in json.loads(done.stdout.splitlines()[-1])]


def give_away(folder: Path, mode: int) -> None:
    """Give a folder with all in it to another user."""
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, OTHER_USER, OTHER_USER)
    folder.chmod(mode)


@pytest.fixture
def run_dir(reference: Result, tmp_path: Path) -> Path:
    """A copy of a complete run."""
    return Path(shutil.copytree(reference.run_dir, tmp_path / "a run"))


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root to give files to another user"
)


@pytest.mark.slow
@needs_root
def test_files_of_another_user_may_be_looked_at_and_not_changed(run_dir: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    (theirs / "empty").mkdir(parents=True)
    give_away(theirs, 0o755)
    give_away(run_dir, 0o755)
    run, small = str(run_dir), ["run", "emt_alloy", *SMALL, "cluster.workers=1", "--run-dir"]
    allowed = [["status", run], ["fsck", run], ["quarantine", run]]
    forbidden = [
        ["fsck", run, "--mend"],
        ["cancel", run],
        ["resume", run],
        ["report", run],
        [*small, run],
        [*small, str(theirs / "empty")],
        [*small, str(theirs / "new")],
        ["export", f"{run}/dataset.zarr", "--to", "csv", str(theirs / "out.csv")],
    ]
    answers = type_without_privileges([*allowed, *forbidden, ["cancel", run, "--json"]], tmp_path)
    assert [code for code, _, _ in answers] == [0] * len(allowed) + [5] * (len(forbidden) + 1)
    said = [err for _, _, err in answers[len(allowed) : -1]] + [json.loads(answers[-1][1])["error"]]
    for words, text in zip([*forbidden, ["cancel"]], said, strict=True):
        assert f"You are root, and {tmp_path}" in text, words
        assert "Permission denied" in text or "Operation not permitted" in text, words
        assert f"belongs to user {OTHER_USER} (drwxr-xr-x). Type the command as its owner" in text, words
        assert "Traceback" not in text
        assert "internal error" not in text
    assert os.listdir(theirs / "empty") == []


@needs_root
def test_a_run_of_another_user_that_is_closed_is_not_looked_at(run_dir: Path, tmp_path: Path) -> None:
    give_away(run_dir, 0o700)
    verbs = ["status", "resume", "fsck", "cancel", "quarantine", "report"]
    answers = type_without_privileges([[verb, str(run_dir), "--json"] for verb in verbs], tmp_path)
    for verb, (code, out, err) in zip(verbs, answers, strict=True):
        said = json.loads(out)["error"]
        refused = "is not readable" in said or f"{run_dir} belongs to user {OTHER_USER} (drwx------)" in said
        assert refused, (verb, out, err)
        assert code in (2, 5), verb
        assert "Traceback" not in err


# --- foreign files --------------------------------------------------------------------------------------

FOREIGN = [
    "._config.yaml",
    "ledger/._0001.jsonl",
    "ledger/notes.txt",
    "ledger/notes.jsonl",
    "drivers/._0001.json",
    "drivers/notes.json",
    "quarantine/._0123456789abcdef0123456789abcdef.json",
    "units/.DS_Store",
    "units/explore/.DS_Store",
    "units/explore/00/._unit",
    "dataset.zarr/.DS_Store",
]
"""What a file manager, an archiver or a person leaves in folders."""


def test_foreign_files_change_nothing(run_dir: Path, reference: Result, type_command: Callable[..., Any]) -> None:
    before = check_run(run_dir)
    unit = next(RunDirectory(run_dir).list_manifests()).parent.relative_to(run_dir)
    foreign = [*FOREIGN, f"{unit}/.DS_Store"]
    for name in foreign:
        file = run_dir / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"\x00\x05\x16\x07\x00\xff{")
    status = json.loads(type_command("status", run_dir, "--json").out)
    assert status["state"] == "complete"
    assert status["driver_starts"] == 1
    looked = check_run(run_dir, rehash=True)
    assert looked.findings == []
    assert looked.stages == before.stages
    assert check_run(run_dir, mend=True).mended == []
    assert type_command("quarantine", run_dir).code == 0
    assert type_command("report", run_dir).code == 0
    assert type_command("verify", run_dir / "dataset.zarr").code == 0
    assert all((run_dir / name).exists() for name in foreign)


def test_a_copy_of_a_unit_beside_it_is_no_unit(run_dir: Path) -> None:
    unit = next(RunDirectory(run_dir).list_manifests()).parent
    n_units = len(list(RunDirectory(run_dir).list_manifests()))
    shutil.copytree(unit, unit.with_name(f"{unit.name} copy"))
    assert len(list(RunDirectory(run_dir).list_manifests())) == n_units
    findings = check_run(run_dir).findings
    assert {str(Path(each.path).parts[3]) for each in findings} == {f"{unit.name} copy"}
