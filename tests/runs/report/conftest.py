"""A run with rejections, a dataset with hostile names, and Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from report_browser import CHROMIUM, Page, browser
from report_samples import FRACTIONS, HOSTILE, N_STRUCTURES, structure

import daskpipe
from daskpipe.core.errors import Rejection
from daskpipe.core.structures import from_atoms
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.store import arrange_and_write


@pytest.fixture(scope="session")
def structures() -> list[Atoms]:
    rng = np.random.default_rng(0)
    return [structure(index, rng) for index in range(N_STRUCTURES)]


@pytest.fixture(scope="session")
def hostile_dataset(structures: list[Atoms], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset without a run: labelled, with features, strata, and names that try to be scripts. Read only."""
    path = tmp_path_factory.mktemp("hostile") / "dataset.zarr"
    attrs = {
        "dataset_key": "k1",
        "seed": 0,
        "config": f'{{"name": "{HOSTILE}"}}',
        "quarantined": f'{{"label/{HOSTILE}": 3, "generate/duplicate": 1}}',
        "run_counts": '{"generate": 12, "explore": 90, "describe": 90, "select": 33, "label": 30, "store": 30}',
        "selection": '{"duplicates": {"against_pool": 5, "against_dataset": 0}}',
    }
    arrange_and_write(from_atoms(structures), path, seed=0, fractions=FRACTIONS, attrs=attrs)
    return path


@pytest.fixture(scope="session")
def run_dir(reference: daskpipe.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run with rejected structures, one of a name that tries to be a script. Read only."""
    path = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(reference.run_dir, path)
    (path / "quality.json").unlink()
    rejections = [
        Rejection(stage="generate", structure=f"files/{HOSTILE}.xyz", reason="unreadable", evidence=f"found {HOSTILE}"),
        Rejection(stage="explore", structure="0f" * 16, reason="force", evidence="120 eV/Å", details={"step": 7}),
    ]
    RunDirectory(path).write_quarantine(rejections)
    return path


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed; type: apt-get install chromium")
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page
