"""SevenNet-0 in an environment of its own, beside MACE."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from small_runs import SMALL

import daskpipe
from daskpipe.core.structures import to_atoms
from daskpipe.potentials.isolated import environments
from daskpipe.store import open_dataset

SAME = 1e-5
"""eV an atom: SevenNet computes in float32."""

DIRECT = """
import json, sys
from ase.io import read
from sevenn.calculator import SevenNetCalculator
calculator = SevenNetCalculator("7net-0", device="cpu")
out = []
for atoms in read(sys.argv[1], ":"):
    atoms.calc = calculator
    out.append([atoms.get_potential_energy(), atoms.get_forces().tolist()])
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make the environment of SevenNet; return its Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        # torch and its CUDA libraries are not installed a second time; e3nn is, in the version that SevenNet wants.
        found = environments.create_environment(environments.read_teacher("sevennet"), share=True)
        assert found.packages["sevenn"] == "0.13.0"
        yield Path(found.python)


def label_directly(python: Path, structures: list[Atoms], folder: Path) -> list[tuple[float, list[list[float]]]]:
    """Return energies and forces of SevenNet's own calculator in its environment."""
    bare = [Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=atoms.pbc) for atoms in structures]
    write(folder / "structures.extxyz", bare)
    words = [python, "-c", DIRECT, folder / "structures.extxyz"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_it_labels_in_a_run_that_explores_with_mace(python: Path, tmp_path: Path):
    # Workers of its own, which find the environment.
    overrides = [
        *SMALL,
        "explore=mace",
        "explore.dynamics.equilibration=0",
        "label.potential.name=sevennet",
        "cluster.workers=2",
    ]
    result = daskpipe.run("emt_alloy", overrides, run_dir=tmp_path / "run")
    ds = open_dataset(result.dataset).load()
    structures = [to_atoms(ds, row) for row in range(ds.sizes["structure"])]
    assert len(structures) == 6
    forces = np.split(ds["forces"].values, ds["atom_start"].values[1:])
    direct = label_directly(python, structures, tmp_path)
    for row, (energy, expected) in enumerate(direct):
        assert abs(ds["energy"].values[row] - energy) < SAME * len(structures[row])
        np.testing.assert_allclose(forces[row], expected, atol=1e-4)
    periodic = ds["pbc"].values.all(axis=1)
    assert periodic.any()
    assert np.isfinite(ds["stress"].values[periodic]).all()
    explored, labelled = (json.loads(ds.attrs[name])["name"] for name in ("explore_potential", "label_potential"))
    assert explored == "MACE Cu-Ag-Au"
    assert labelled == "sevennet 7net-0"
