"""Presets run to a dataset, with few structures and steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import daskpipe
from daskpipe.core.variables import decode_names

SHORT = [
    "explore.dynamics.steps=10",
    "explore.dynamics.equilibration=0",
    "explore.dynamics.stride=5",
    "explore.batch_size=4",
    "describe.dims=4",
    "describe.sample=8",
]


@pytest.mark.slow
def test_an_oxide_is_explored_and_labelled_by_chgnet(client: Client, tmp_path: Path) -> None:
    few = ["generate.n=4", "generate.sources.states.volumes=[0.95,1.05]", "explore.dynamics.temperatures=[800]"]
    smaller = ["generate.sources.bulk.n_atoms=[8,16]", "generate.sources.defects.n_atoms=[15,17]"]
    result = daskpipe.run("oxide", [*SHORT, *few, *smaller, "select.n=8"], run_dir=tmp_path / "run", client=client)
    ds = daskpipe.open_dataset(result.dataset).load()
    kinds = decode_names(ds["system_type"])
    assert {"crystal", "defect", "surface"} <= set(kinds.tolist())
    assert ds["reference"].values.sum() == 2  # crystals of the equation of state
    assert np.isfinite(ds["forces"].values).all()
    assert result.verdict.go or {check.name for check in result.verdict.checks if check.verdict == "fail"} <= {
        "type_balance", "splits", "diversity", "elements", "stress",
    }  # fmt: skip  # so few structures cannot be balanced


@pytest.mark.slow
def test_a_liquid_is_explored_and_labelled_by_xtb(client: Client, tmp_path: Path) -> None:
    few = ["generate.n=8", "generate.sources.clusters.n_molecules=[2,3]", "explore.dynamics.temperatures=[300]"]
    steps = ["explore.dynamics.steps=2", "explore.dynamics.stride=1"]
    # A thin liquid: 12 Å wide as tight binding needs, with fewer atoms.
    thin = ["generate.sources.boxes.density=0.6", "generate.sources.boxes.n_atoms=105"]
    result = daskpipe.run(
        "liquid", [*SHORT, *few, *steps, *thin, "select.n=8"], run_dir=tmp_path / "run", client=client
    )
    ds = daskpipe.open_dataset(result.dataset).load()
    kinds = decode_names(ds["system_type"])
    assert {"molecule", "molecular_cluster", "liquid"} == set(kinds.tolist())
    boxes = ds["pbc"].values.all(axis=1)
    assert boxes.sum() == (kinds == "liquid").sum()
    assert np.isfinite(ds["forces"].values).all()
