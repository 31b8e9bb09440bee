"""Type the commands that daskpipe suggests as they stand, with any names of paths in them."""

from __future__ import annotations

import io
import re
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from daskpipe.cli import dataset
from daskpipe.cli.progress import list_next_commands
from daskpipe.config import compose
from daskpipe.core.errors import ConfigError, InputError
from daskpipe.core.root_metadata import read_root
from daskpipe.runs import lease
from daskpipe.runs.run import Result
from daskpipe.store.formats.ase_db import check_name
from daskpipe.store.quality.verdict import Verdict

NAMES = ["plain", "$(touch canary)", "`touch canary`", "a; touch canary", "it's", "two  words", "$HOME", "a\\b", "*"]


def words_typed(command: str, folder: Path) -> list[str]:
    """Return the words that a shell makes of a command's arguments; fail if it does anything else."""
    programs = folder / ".programs"
    programs.mkdir(exist_ok=True)
    for name in ("daskpipe", "python"):
        (programs / name).write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
        (programs / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={"PATH": f"{programs}:/usr/bin:/bin", "HOME": "/nowhere"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not list(folder.rglob("canary"))
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("name", NAMES)
def test_commands_after_a_run(name: str, tmp_path: Path) -> None:
    root = tmp_path / name
    verdict = Verdict(go=True, dataset="d", dataset_key="k", n_structures=2, checks=())
    report, export, program = list_next_commands(Result(root, root / "dataset.zarr", {}, {}, 0.0, verdict))
    assert words_typed(report, tmp_path) == ["report", str(root)]
    assert words_typed(export, tmp_path)[:2] == ["export", str(root / "dataset.zarr")]
    option, text = words_typed(program, tmp_path)
    assert option == "-c"
    opened: list[str] = []
    exec(text.partition("; ")[2].replace("daskpipe.open_dataset", "opened.append"), {"opened": opened})
    assert opened == [str(root / "dataset.zarr")]


@pytest.mark.parametrize("name", NAMES)
def test_command_after_a_training(name: str, tmp_path: Path) -> None:
    model = str(tmp_path / name / "mace.model")
    printed = io.StringIO()
    console = Console(file=printed, width=80)
    dataset._show_training({"splits": {}, "model": model, "seconds": 1.0}, console)
    command = printed.getvalue().split("explore with it: ")[1].strip()
    verb, preset, choice = words_typed(command, tmp_path)
    assert (verb, preset) == ("run", "quickstart")
    assert compose.compose(preset, [choice])["explore"]["potential"]["params"]["model"] == model


@pytest.mark.parametrize("name", NAMES)
def test_commands_of_errors(name: str, tmp_path: Path) -> None:
    root = tmp_path / name
    (root / "dataset.zarr").mkdir(parents=True)
    with pytest.raises(InputError, match="is a run and not a dataset; type ") as caught:
        read_root(root)
    assert words_typed(f"daskpipe {str(caught.value).rpartition('; type ')[2]}", tmp_path) == [
        str(root / "dataset.zarr")
    ]
    with pytest.raises(ConfigError, match=r"knows SQLite by the ending .db; type ") as refused:
        check_name(root)
    assert words_typed(f"daskpipe {str(refused.value).rpartition('; type ')[2]}", tmp_path) == [f"{root}.db"]
    commands = re.findall(
        r"\((daskpipe (?:status|cancel) .*?)\)[,.]", str(lease.explain_busy(root, lease.LeaseHolder())) + "."
    )
    assert commands
    for command in commands:
        assert str(root) in words_typed(command, tmp_path)
