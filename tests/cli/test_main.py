"""The command line as a whole: config, export, help, and the entry point."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import pytest
import typer
from cli.conftest import list_states

from daskpipe.cli.main import app
from daskpipe.runs.run import Result

Command = Callable[..., Any]


HEAVY = ("torch", "dask", "distributed", "numba", "ase", "xarray", "zarr", "sklearn", "hydra", "numpy")
"""Packages that help must not import."""


def test_config_show_is_yaml_that_runs(type_command: Command, here: Path) -> None:
    shown = type_command("config", "show", "emt_alloy", "select.n=3")
    assert shown.code == 0
    (here / "mine.yaml").write_text(shown.out)
    again = type_command("config", "show", "mine.yaml")
    assert again.out == shown.out
    as_json = type_command("config", "show", "mine.yaml", "--json")
    assert json.loads(as_json.out)["select"]["n"] == 3


def test_config_schema_is_json(type_command: Command) -> None:
    typed = type_command("config", "schema")
    assert typed.code == 0
    assert "generate" in json.loads(typed.out)["properties"]


def test_export_writes_extxyz_and_does_not_overwrite(type_command: Command, reference: Result, here: Path) -> None:
    typed = type_command("export", str(reference.run_dir), "out.extxyz")
    assert typed.code == 0
    assert "6 structures in out.extxyz" in typed.out
    assert len(ase.io.read("out.extxyz", ":")) == 6
    before = list_states(here)
    typed = type_command("export", str(reference.run_dir), "out.xyz", "--to", "extxzy")
    assert typed.code == 2
    assert "'extxzy'. Did you mean 'extxyz'?" in typed.err
    typed = type_command("export", str(reference.run_dir), "out.extxyz")
    assert typed.code == 2
    assert "out.extxyz" in typed.err
    assert list_states(here) == before
    assert json.loads(type_command("export", str(reference.dataset), "out.extxyz", "--force", "--json").out) == {
        "out": "out.extxyz", "to": "extxyz", "structures": 6, "files": 1, "reader": "ase.io.iread",
    }  # fmt: skip


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["-h"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["daskpipe", *{words!r}]
from daskpipe.cli.main import main
try:
    main()
except SystemExit as stop:
    print(stop.code, [name for name in {HEAVY!r} if name in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "0 []"
    assert "Usage" in said


VERBS = sorted(
    words
    for name, verb in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    for words in ([(name, each) for each in verb.commands] if hasattr(verb, "commands") else [(name,)])
)


@pytest.mark.parametrize("words", [(), ("config",), *VERBS], ids=" ".join)
def test_help_names_no_type_of_flags(
    words: tuple[str, ...], type_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    typed = type_command(*words, "--help")
    assert typed.code == 0
    assert "--help" in typed.out
    assert "bool" not in typed.out
    assert "--no-" not in typed.out
    assert "[[" not in typed.out
    assert not [line for line in typed.out.splitlines() if len(line) > 80]


def test_python_m_daskpipe_is_the_command() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "daskpipe", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "Exit codes: 0 complete" in " ".join(said.split())
