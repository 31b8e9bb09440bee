"""Isolated atoms, keys of training, magnetic states and fixed atoms from users' files to datasets and exports."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from distributed import Client

from daskpipe.core.constraints import fixed_components
from daskpipe.core.structures import to_atoms
from daskpipe.core.variables import decode_names
from daskpipe.load import spec
from daskpipe.pipeline import datasets
from daskpipe.pipeline.frames import select_files
from daskpipe.store import open_dataset
from daskpipe.store.export import export

QUICK = ["describe.params={r_cut: 4.0, n_max: 3, l_max: 2}", "describe.dims=4"]
E0 = {"Cu": -0.3, "Au": -0.2}
N_SOLIDS, N_MAGNETIC = 8, 2


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_frames(name: str) -> None:
    """Write isolated atoms without forces, solids with keys of training and fixed atoms, and two magnetic states."""
    rng = np.random.default_rng(0)
    frames = [
        Atoms(symbol, info={"REF_energy": energy, "config_type": "IsolatedAtom"}) for symbol, energy in E0.items()
    ]
    for number in range(N_SOLIDS):
        atoms = bulk("Cu", cubic=True).repeat((1, 1, 1 + number // 4))
        atoms.symbols[: 1 + number % 4] = "Au"
        atoms.set_cell(atoms.cell.array * 1.08, scale_atoms=True)
        atoms.rattle(0.1, rng=rng)
        atoms.calc = EMT()
        atoms.info = {"REF_energy": atoms.get_potential_energy(), "config_type": "bulk", "head": "pbe"}
        atoms.info["config_weight"] = 2.0
        atoms.arrays["REF_forces"] = atoms.get_forces()
        atoms.calc = None
        atoms.set_array("move_mask", np.arange(len(atoms)) > 0)
        frames.append(atoms)
    for moments in ([2.2, 2.2], [2.2, -2.2])[:N_MAGNETIC]:
        iron = Atoms("Fe2", positions=[[0, 0, 0], [1.435] * 3], cell=[2.87] * 3, pbc=True)
        iron.info["REF_energy"] = -8.0 - 0.1 * moments[1]
        iron.arrays["REF_forces"] = np.zeros((2, 3))
        iron.set_initial_magnetic_moments(moments)
        frames.append(iron)
    columns = ["symbols", "positions", "REF_forces"]
    with open(name, "w") as file:
        for atoms in frames:
            extra = [key for key in ("move_mask", "initial_magmoms") if key in atoms.arrays]
            if (mask := atoms.arrays.pop("move_mask", None)) is not None:
                atoms.set_constraint(FixAtoms(mask=~mask))
            present = [key for key in columns if key != "REF_forces" or key in atoms.arrays]
            ase.io.write(file, atoms, format="extxyz", columns=[*present, *extra])


def check(path: Path) -> None:
    ds = open_dataset(path).load()
    assert ds.sizes["structure"] == len(E0) + N_SOLIDS + N_MAGNETIC
    assert json.loads(ds.attrs["isolated_atom_energies"]) == {"Default": dict(sorted(E0.items()))}
    single = ds["n_atoms"].values == 1
    assert set(decode_names(ds["split"])[single]) == {"train"}
    assert sorted(decode_names(ds["config_type"])) == ["Default"] * 2 + ["IsolatedAtom"] * 2 + ["bulk"] * N_SOLIDS
    assert sorted(decode_names(ds["head"])) == ["Default"] * 4 + ["pbe"] * N_SOLIDS
    assert np.nansum(ds["config_weight"].values) == 2.0 * N_SOLIDS
    assert len(set(ds["structure_id"].values.tolist())) == ds.sizes["structure"]
    for row in range(ds.sizes["structure"]):
        atoms = to_atoms(ds, row)
        is_solid = atoms.info.get("config_type") == "bulk"
        assert ("fixed" in atoms.arrays) == is_solid
        if is_solid:
            assert atoms.arrays["fixed"].all(axis=1).tolist() == [True] + [False] * (len(atoms) - 1)


def test_from_a_file_to_an_export(client: Client, here: Path) -> None:
    write_frames("a.xyz")
    done = datasets.import_labelled(["a.xyz"], "a.zarr", QUICK, method="PBE", client=client)
    assert done.rejected == {}
    check(here / "a.zarr")
    assert spec(here / "a.zarr").isolated == ["Cu", "Au"]
    datasets.merge(["a.zarr"], "b.zarr", QUICK, client=client)
    check(here / "b.zarr")
    export(here / "b.zarr", "extxyz", here / "b.xyz")
    datasets.import_labelled(["b.xyz"], "c.zarr", QUICK, method="PBE", client=client)
    check(here / "c.zarr")


def test_select_copies_all_keys_and_takes_no_magnetic_state_for_another(client: Client, here: Path) -> None:
    write_frames("a.xyz")
    n = N_SOLIDS + N_MAGNETIC
    frames = ase.io.read("a.xyz", ":")[len(E0) :]
    with open("b.xyz", "w") as file:
        for atoms in frames:
            names = ["symbols", "positions", "move_mask", "REF_forces"]
            names += [name for name in ("initial_magmoms",) if name in atoms.arrays]
            ase.io.write(file, atoms, format="extxyz", columns=names)
    done = select_files(["b.xyz"], n, "picked.xyz", [*QUICK, "select.duplicate_distance=0.001"], client=client)
    assert done.n_out == n
    picked = ase.io.read("picked.xyz", ":")
    assert sum(atoms.info.get("head") == "pbe" and atoms.info["config_weight"] == 2.0 for atoms in picked) == N_SOLIDS
    assert sum(fixed_components(atoms) is not None for atoms in picked) == N_SOLIDS
    moments = [atoms.get_initial_magnetic_moments().sum() for atoms in picked if "Fe" in atoms.symbols]
    assert sorted(moments) == [0.0, 4.4]
