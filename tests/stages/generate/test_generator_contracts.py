"""daskpipe's own generators keep what the contract kit checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import pytest
from ase.build import bulk, molecule

from daskpipe.stages.generate import GENERATORS
from daskpipe.testing import check_generator

METALS = {"elements": {"Cu": [0.2, 0.8], "Au": [0.2, 0.8]}, "n_atoms": [12, 60]}
ALLOY = {"generator": "alloys", "elements": {"Cu": 0.5, "Au": 0.5}, "n_atoms": [8, 20]}
COPPER = {**ALLOY, "elements": {"Cu": 1.0}, "lattices": ["fcc"], "n_atoms": 1, "strain": 0.0, "rattle": 0.0}
PARAMS: dict[str, dict[str, Any]] = {
    "adsorbates": {"of": {"generator": "surfaces", "elements": {"Cu": 1}, "n_atoms": [24, 40]}, "names": ["CO", "H"]},
    "alloys": METALS,
    "clusters": METALS,
    "covalent": {"kinds": ["nanotube"]},
    "crystals": {"prototype": "perovskite", "elements": {"A": ["Ca", "Sr"], "B": "Ti", "X": "O"}, "n_atoms": [5, 60]},
    "defects": {"of": {**ALLOY, "rattle": 0.0}, "n_atoms": [20, 60], "dopants": ["Ni"]},
    "formula": {"formula": "TiO2", "first": 3, "n_atoms": [6, 48]},
    "ionic": {"of": "ZrO2", "n_atoms": [24, 60], "doping": {"Zr": {"Y": [0.05, 0.3]}}},
    "grain_boundaries": {"of": "Cu", "n_atoms": [20, 60], "sigma": [3, 5], "axes": [[0, 0, 1], [1, 1, 1]]},
    "interfaces": {"of": COPPER, "film": COPPER, "miller": [[1, 0, 0]], "film_miller": [[1, 0, 0]], "n_atoms": [8, 90]},
    "perturb": {"of": ALLOY, "kinds": ["swap", "volume", "strain", "rattle"]},
    "random_crystals": {"formula": "TiO2", "n_atoms": [3, 12]},
    "surfaces": METALS,
    "amorphous": {"formula": "SiO2", "density": 2.2, "n_atoms": [12, 30]},
    "liquids": {"names": {"H2O": 3}, "smiles": {"CO": 1}, "n_atoms": [30, 60]},
    "molecular_clusters": {"names": ["H2O"], "smiles": ["CO", "[NH4+]"], "n_molecules": [2, 4]},
    "organic": {"n_atoms": [10, 30], "copies": 3},
    "molecules": {"names": ["H2O", "CH4", "O2"]},
}


@pytest.mark.parametrize("name", sorted(PARAMS))
def test_random_generators_keep_their_promises(name: str) -> None:
    check_generator(GENERATORS.get(name), PARAMS[name], n=8)


@pytest.mark.parametrize(
    "params", [{"smiles": ["CCO", "C[NH3+]"], "conformers": 2}, {"set": "s22", "n_atoms": [6, 12]}]
)
def test_other_molecules_keep_their_promises(params: dict[str, Any]) -> None:
    check_generator(GENERATORS.get("molecules"), params)


def test_slabs_of_crystals_keep_their_promises() -> None:
    check_generator(GENERATORS.get("surfaces"), {"of": {**ALLOY, "rattle": 0.0}, "n_atoms": [20, 80]}, n=8)


def test_references_keep_their_promises() -> None:
    check_generator(GENERATORS.get("reference"), {"elements": ["Cu", "O"], "of": ALLOY}, n=60, is_random=False)


def test_files_keep_their_promises(tmp_path: Path) -> None:
    ion = molecule("OH")
    ion.info = {"charge": -1, "spin_multiplicity": 1}
    ase.io.write(tmp_path / "own.xyz", [bulk("Cu", cubic=True), ion])
    (tmp_path / "own.cif").write_text("no CIF")
    check_generator(
        GENERATORS.get("files"), {"paths": ["own.cif", "own.xyz"], "base_dir": str(tmp_path)}, is_random=False
    )


def test_each_generator_of_the_table_is_checked() -> None:
    assert set(GENERATORS.table) == {*PARAMS, "external", "files", "reference"}
