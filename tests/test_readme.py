"""What the README shows is true."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import daskpipe
from daskpipe import config

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    """Code blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_two_commands_come_first() -> None:
    run, test = blocks("sh")
    assert run.strip().endswith("daskpipe run quickstart")
    assert test.strip().endswith("pytest")


def test_python_example_runs(reference: daskpipe.Result) -> None:
    (example,) = blocks("python")
    assert "runs/quickstart/dataset.zarr" in example
    names: dict[str, object] = {}
    exec(example.replace("runs/quickstart/dataset.zarr", str(reference.dataset)), names)
    assert names["ds"].sizes["structure"] == reference.stages["store"]["out"]  # type: ignore[attr-defined]
    assert names["atoms"].get_potential_energy() == float(names["ds"]["energy"][0])  # type: ignore[attr-defined]
    assert 0 < len(names["train"]) < reference.stages["store"]["out"]  # type: ignore[arg-type]


def test_config_example_is_valid(tmp_path: Path) -> None:
    (example,) = blocks("yaml")
    assert yaml.safe_load(example)["explore"]["potential"]["params"]["model"] == "/path/to/my.model"
    file = tmp_path / "my.yaml"
    file.write_text(example)
    loaded = config.load(str(file))
    assert loaded.name == "mine"
    assert loaded.explore.dynamics.temperatures == [300, 900]
    assert loaded.select.n == 200


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"daskpipe ([a-z]+)\b", README.read_text())) - {"makes"}))
def test_commands_exist(verb: str, type_command: Callable[..., object]) -> None:
    answer = type_command(verb, "--help")
    assert answer.code == 0  # type: ignore[attr-defined]
