"""The examples in docstrings run, and print what they show."""

from __future__ import annotations

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

import daskpipe

PACKAGE = Path(daskpipe.__file__).parent
PROMPT = re.compile(r"^ *>>> ", re.MULTILINE)
MODULES = sorted(
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for file in PACKAGE.rglob("*.py")
    if PROMPT.search(file.read_text())
)
"""Modules with examples: no other is imported for this."""

DATASET = "runs/q/dataset.zarr"
"""What examples call the dataset of a run."""


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    module = import_module(name)
    source = Path(str(module.__file__)).read_text()
    monkeypatch.chdir(tmp_path)
    if DATASET in source:
        reference: daskpipe.Result = request.getfixturevalue("reference")
        (tmp_path / DATASET).parent.mkdir(parents=True)
        (tmp_path / DATASET).symlink_to(reference.dataset)
    failed, run = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert failed == 0
    # An example that doctest does not see, such as one in a nested function, would be lost without a word.
    assert run == len(PROMPT.findall(source))
