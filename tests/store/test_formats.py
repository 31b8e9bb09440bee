"""Each format, read by the program for which it is made: equal numbers for molecules, slabs and bulk."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.io
import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.stress import voigt_6_to_full_3x3_stress

from daskpipe.core.errors import ConfigError, IntegrityError
from daskpipe.core.structures import from_atoms, round_positions, structure_id, to_atoms
from daskpipe.store import arrange_and_write, open_dataset
from daskpipe.store.export import export
from daskpipe.store.formats import FORMATS, ase_rows, aselmdb, format_of, iter_records, parquet

NAMES = {
    "extxyz": "all.extxyz", "ase-db": "all.db", "mace-hdf5": "all.h5", "aselmdb": "lmdb", "hdf5": "all.h5",
    "parquet": "all.parquet", "csv": "all.csv",
}  # fmt: skip
EXPORT = sys.modules["daskpipe.store.export"]  # the package's attribute of that name is the function
NUMERIC_LOOKING = ("1e5", "nan", "True")
"""Words that a reader may take for something else."""


def make_structures() -> Iterator[Atoms]:
    """Make ions, radicals, slabs, bulk and single atoms, with and without stress, moments, charges and parents."""
    rng = np.random.default_rng(3)
    for number in range(3):
        for name, charge, spin in (("H2O", 0, 1), ("CH3", 0, 2), ("O2", 0, 3), ("OH", -1, 1), ("CH4", 1, 2)):
            atoms = molecule(name)
            atoms.info |= {"charge": charge, "spin_multiplicity": spin, "system_type": "molecule"}
            yield atoms
        slab = fcc111("Ag", (1, 2, 3), vacuum=6.0)
        slab.info["system_type"] = "surface"
        yield slab
        solid = bulk("Cu", cubic=True)
        solid.numbers[number] = 79
        solid.set_cell(solid.cell.array + rng.normal(scale=0.1, size=(3, 3)), scale_atoms=True)
        solid.info["system_type"] = "alloy"
        solid.set_initial_magnetic_moments(rng.normal(size=4).astype("f4"))
        solid.set_initial_charges(rng.normal(size=4).astype("f4"))
        yield solid
        yield Atoms("Au", info={"system_type": NUMERIC_LOOKING[number]})


def label_structures() -> list[Atoms]:
    rng = np.random.default_rng(4)
    structures: list[Atoms] = []
    for number, atoms in enumerate(make_structures()):
        atoms.rattle(0.1, rng=rng)
        round_positions(atoms)
        atoms.info |= {"generator": NUMERIC_LOOKING[number % 3], "label_method": "made_up", "label_status": "ok"}
        atoms.info |= {"temperature": float(rng.uniform(300, 900)), "step": number}
        if number % 3:
            atoms.info["parent_id"] = structure_id(structures[number - number % 3])
        results: dict[str, Any] = {"energy": rng.normal(), "forces": rng.normal(size=(len(atoms), 3))}
        if atoms.cell.rank == 3:
            results["stress"] = rng.normal(size=6)
            results["magmoms"] = rng.normal(size=len(atoms))
        atoms.calc = SinglePointCalculator(atoms, **results)
        structures.append(atoms)
    return structures


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixed") / "dataset.zarr"
    fractions = {"train": 0.5, "val": 0.25, "test": 0.25}
    attrs = {"dataset_key": "k1", "label_potential": json.dumps({"name": "Made Up"})}
    arrange_and_write(from_atoms(label_structures()), path, seed=0, fractions=fractions, attrs=attrs)
    return path


@pytest.fixture(scope="module")
def stored(store: Path) -> list[Atoms]:
    ds = open_dataset(store).load()
    return [to_atoms(ds, index) for index in range(ds.sizes["structure"])]


def test_the_set_has_what_makes_a_difference(stored: list[Atoms]) -> None:
    for name in ("initial_charges", "initial_magmoms"):
        assert 0 < sum(atoms.has(name) for atoms in stored) < len(stored)
    for name in ("stress", "magmoms"):
        assert 0 < sum(name in atoms.calc.results for atoms in stored) < len(stored)
    assert {len(set(atoms.info["split"] for atoms in stored)), len(set(map(len, stored)))} == {3, 6}
    assert {atoms.info["charge"] for atoms in stored} == {-1, 0, 1}


def check_atoms(exported: Atoms, stored: Atoms) -> None:
    """Check that geometry and labels are the stored ones, and that nothing else is there."""
    assert np.array_equal(exported.numbers, stored.numbers)
    assert np.array_equal(exported.positions.astype("f4"), stored.positions.astype("f4"))
    assert np.array_equal(exported.cell.array, stored.cell.array)
    assert np.array_equal(exported.pbc, stored.pbc)
    wanted = stored.calc.results
    assert {name for name in exported.calc.results if name in ("energy", "forces", "stress", "magmoms")} == set(wanted)
    assert exported.calc.results["energy"] == wanted["energy"]
    for name in set(wanted) - {"energy"}:
        assert np.array_equal(exported.calc.results[name].astype("f4"), wanted[name].astype("f4")), name
    for name in ("initial_charges", "initial_magmoms"):
        assert exported.has(name) == stored.has(name)
        assert not stored.has(name) or np.array_equal(
            exported.arrays[name].astype("f4"), stored.arrays[name].astype("f4")
        )


def test_ase_reads_extxyz(store: Path, stored: list[Atoms], tmp_path: Path) -> None:
    made = export(store, "extxyz", tmp_path / "all.extxyz")
    assert (made.n_structures, made.files, made.reader) == (len(stored), ("all.extxyz",), "ase.io.iread")
    assert {"initial_charges", "initial_magmoms", "magmoms", "split"} < set(made.fields)
    for exported, atoms in zip(ase.io.read(tmp_path / "all.extxyz", ":"), stored, strict=True):
        check_atoms(exported, atoms)
        # An unknown spin is not exported: a piece of copper with an odd number of electrons is no doublet.
        for name in ("spin_multiplicity", "total_spin"):
            assert exported.info.get(name) == atoms.info.get("spin_multiplicity")
        assert exported.info["charge"] == exported.info["total_charge"] == atoms.info["charge"]


def test_ase_reads_its_database(store: Path, stored: list[Atoms], tmp_path: Path) -> None:
    export(store, "ase-db", tmp_path / "all.db")
    database = connect(tmp_path / "all.db")
    for row, atoms in zip(database.select(sort="id"), stored, strict=True):
        check_atoms(row.toatoms(), atoms)
        known = {**row.key_value_pairs, **row.data}
        assert row.unique_id == atoms.info["structure_id"].hex()
        assert known["structure_id"] == f"0x{atoms.info['structure_id'].hex()}"
        assert known.get("parent_id", f"0x{bytes(16).hex()}") == f"0x{atoms.info['parent_id'].hex()}"
        assert known["total_charge"] == atoms.info["charge"]
        assert np.float32(known["temperature"]) == np.float32(atoms.info["temperature"])
        for name in ("system_type", "generator", "split", "label_method", "label_status", "spin_multiplicity", "step"):
            assert known.get(name) == atoms.info.get(name), name
        assert row.calculator == "made_up"
        assert row.user == ""
    (radical, *_) = database.select("CH3,spin_multiplicity=2,total_charge=0")
    assert radical.formula == "CH3"
    wanted = sum(atoms.info["split"] == "val" for atoms in stored)
    assert database.count("split=val") == wanted > 0


def test_databases_of_parts_are_one_database(
    store: Path, stored: list[Atoms], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EXPORT, "PART_STRUCTURES", 5)
    export(store, "ase-db", tmp_path / "all.db")
    database = connect(tmp_path / "all.db")
    assert [row.id for row in database.select(sort="id")] == list(range(1, len(stored) + 1))
    # Selections go through the tables of species, keys and values, whose ids moved along.
    for element in ("Ag", "Cu", "O"):
        rows = [row.unique_id for row in database.select(element, sort="id")]
        assert rows == [atoms.info["structure_id"].hex() for atoms in stored if element in atoms.symbols]
    rows = [row.step for row in database.select("temperature>500", sort="id")]
    assert rows == [atoms.info["step"] for atoms in stored if atoms.info["temperature"] > 500]
    new = database.write(Atoms("H"))
    assert new == len(stored) + 1


def test_fairchem_and_mace_read_the_lmdb_folder(
    store: Path, stored: list[Atoms], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_of_a_file = 7
    monkeypatch.setattr(aselmdb, "MAX_STRUCTURES", rows_of_a_file)
    made = export(store, "aselmdb", tmp_path / "train")
    n_files = -(-len(stored) // rows_of_a_file)
    assert made.files == (*(f"data.{number:04d}.aselmdb" for number in range(n_files)), "metadata.npz")
    natoms = np.load(tmp_path / "train" / "metadata.npz")["natoms"]
    assert natoms.dtype.kind == "i"
    assert natoms.tolist() == [len(atoms) for atoms in stored]
    rows = []
    for name in made.files[:-1]:
        with connect(tmp_path / "train" / name, readonly=True) as database:
            rows += [database._get_row(number) for number in database.ids]  # as fairchem does
    for row, atoms in zip(rows, stored, strict=True):
        check_atoms(row.toatoms(), atoms)
        # fairchem: atoms.info.update(row.data)
        assert row.data["charge"] == row.data["total_charge"] == atoms.info["charge"]
        assert row.data.get("total_spin") == atoms.info.get("spin_multiplicity")
        assert row.data["spin"] == atoms.info.get("spin_multiplicity", 0)  # as in OMat24
        assert row.data["sid"] == f"0x{atoms.info['structure_id'].hex()}"


def test_hdf5_is_flat_and_says_what_it_is(store: Path, stored: list[Atoms], tmp_path: Path) -> None:
    export(store, "hdf5", tmp_path / "all.h5")
    with h5py.File(tmp_path / "all.h5") as file:
        ptr = file["atom_ptr"][:]
        assert file.attrs["n_structures"] == len(stored) == len(ptr) - 1
        assert file.attrs["n_atoms"] == ptr[-1] == len(file["positions"])
        assert "atom_ptr[i]:atom_ptr[i + 1]" in file.attrs["layout"]
        assert file["forces"].attrs["units"] == "eV/angstrom"
        assert file["forces"].attrs["dimensions"] == "atom xyz"
        words = file["split"].attrs["flag_meanings"].split()
        for index, atoms in enumerate(stored):
            rows = slice(ptr[index], ptr[index + 1])
            assert np.array_equal(file["numbers"][rows], atoms.numbers)
            assert np.array_equal(file["positions"][rows], atoms.positions)
            assert np.array_equal(file["forces"][rows], atoms.get_forces().astype("f4"))
            assert file["energy"][index] == atoms.get_potential_energy()
            assert np.isnan(file["stress"][index]).all() == ("stress" not in atoms.calc.results)
            assert words[file["split"][index]] == atoms.info["split"]
            assert file["structure_id"][index] == f"0x{atoms.info['structure_id'].hex()}".encode()


def test_pandas_reads_parquet_in_colabfits_columns(store: Path, stored: list[Atoms], tmp_path: Path) -> None:
    export(store, "parquet", tmp_path / "all.parquet")
    table = pd.read_parquet(tmp_path / "all.parquet")
    assert pq.read_schema(tmp_path / "all.parquet").names == parquet.make_schema().names
    assert len(set(table["property_id"])) == len(set(table["configuration_id"])) == len(stored) == len(table)
    for (_, row), atoms in zip(table.iterrows(), stored, strict=True):
        assert row["configuration_id"].startswith("CO_")
        assert row["configuration_hash"] == atoms.info["structure_id"].hex()
        assert row["energy"] == atoms.get_potential_energy()
        assert np.array_equal(np.stack(row["positions"]), atoms.positions)
        assert np.array_equal(np.stack(row["atomic_forces"]).astype("f4"), atoms.get_forces().astype("f4"))
        assert row["max_force_norm"] == pytest.approx(np.linalg.norm(atoms.get_forces(), axis=1).max(), rel=1e-6)
        assert row["chemical_formula_hill"] == atoms.get_chemical_formula("hill")
        assert row["elements"].tolist() == sorted(set(atoms.symbols))
        assert row["elements_ratios"].sum() == pytest.approx(1)
        assert row["nperiodic_dimensions"] == atoms.pbc.sum()
        assert (row["method"], row["software"], row["dataset_id"]) == ("made_up", "Made Up", "DS_k1")
        assert json.loads(row["metadata"])["charge"] == atoms.info["charge"]
        if "stress" in atoms.calc.results:
            assert np.array_equal(np.stack(row["cauchy_stress"]), voigt_6_to_full_3x3_stress(atoms.get_stress()))
            assert row["cauchy_stress_volume_normalized"] is False
        else:
            assert row["cauchy_stress"] is None
            assert row["cauchy_stress_volume_normalized"] is None


@pytest.mark.parametrize(
    ("hill", "reduced", "anonymous"),
    [("CH4", "CH4", "A4B"), ("Cu", "Cu", "A"), ("Au2Cu6", "AuCu3", "A3B"), ("C2H6O", "C2H6O", "A6B2C")],
)
def test_formulas_are_optimades(hill: str, reduced: str, anonymous: str) -> None:
    made = parquet._format_formulas(hill)
    assert made["chemical_formula_reduced"] == reduced
    assert made["chemical_formula_anonymous"] == anonymous


def test_pandas_reads_csv(store: Path, stored: list[Atoms], tmp_path: Path) -> None:
    export(store, "csv", tmp_path / "all.csv")
    table = pd.read_csv(tmp_path / "all.csv", keep_default_na=False, na_values=[""])
    assert "features" not in table
    for (_, row), atoms in zip(table.iterrows(), stored, strict=True):
        assert row["structure_id"] == f"0x{atoms.info['structure_id'].hex()}"
        assert row["energy"] == atoms.get_potential_energy()
        assert np.float32(row["temperature"]) == np.float32(atoms.info["temperature"])
        assert (row["n_atoms"], row["charge"]) == (len(atoms), atoms.info["charge"])
        assert (row["system_type"], row["split"]) == (atoms.info["system_type"], atoms.info["split"])
        assert pd.isna(row["parent_id"]) == (atoms.info["parent_id"] == bytes(16))


MACE_READS = """
import pickle, sys
from mace.data import HDF5Dataset, LMDBDataset, dataset_from_sharded_hdf5
from mace.tools import AtomicNumberTable
import torch
torch.set_default_dtype(torch.float64)
table, graphs_of = AtomicNumberTable([1, 6, 8, 29, 47, 79]), {}
for name, make in (("all.h5", HDF5Dataset), ("shards", dataset_from_sharded_hdf5), ("lmdb", LMDBDataset)):
    data = make(name, z_table=table, r_max=3.0, heads=["Default"], head="Default")
    keys = ("positions", "energy", "forces", "stress", "stress_weight", "virials_weight", "forces_weight", "weight",
            "total_charge", "total_spin", "pbc", "cell", "head")
    graphs_of[name] = [{key: graph[key].numpy() for key in keys} for graph in map(data.__getitem__, range(len(data)))]
pickle.dump(graphs_of, open("graphs.pkl", "wb"))
"""


@pytest.mark.slow
def test_mace_makes_graphs_of_all_that_it_reads(
    store: Path, stored: list[Atoms], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts_of_unequal_size = 7
    monkeypatch.setattr(EXPORT, "PART_STRUCTURES", parts_of_unequal_size)
    assert len(stored) % parts_of_unequal_size
    made = export(store, "mace-hdf5", tmp_path / "shards")
    assert made.files == tuple(f"data.{number:04d}.h5" for number in range(-(-len(stored) // parts_of_unequal_size)))
    export(store, "mace-hdf5", tmp_path / "all.h5")
    export(store, "aselmdb", tmp_path / "lmdb")
    # In a process of its own: importing MACE changes what torch.load does in the whole process.
    subprocess.run([sys.executable, "-W", "ignore", "-c", MACE_READS], cwd=tmp_path, capture_output=True, check=True)
    for name, graphs in pd.read_pickle(tmp_path / "graphs.pkl").items():
        if name == "shards":  # MACE takes the files in the order of the folder
            graphs.sort(key=lambda graph: graph["energy"])
        wanted = sorted(stored, key=lambda atoms: atoms.get_potential_energy()) if name == "shards" else stored
        for graph, atoms in zip(graphs, wanted, strict=True):
            assert np.array_equal(graph["positions"], atoms.positions)
            assert graph["energy"] == atoms.get_potential_energy()
            assert np.array_equal(graph["forces"].astype("f4"), atoms.get_forces().astype("f4"))
            assert graph["weight"] == graph["forces_weight"] == 1
            # An aselmdb has no place for weights.
            weighted = name == "lmdb" or bool(atoms.pbc.all())
            assert graph["stress_weight"] == ("stress" in atoms.calc.results and weighted)
            assert graph["virials_weight"] == graph["head"] == 0
            if graph["stress_weight"]:
                assert np.array_equal(graph["stress"][0], atoms.get_stress(voigt=False))
            assert np.array_equal(graph["pbc"][0], atoms.pbc)
            assert graph["total_charge"] == atoms.info["charge"]
            assert graph["total_spin"] == atoms.info.get("spin_multiplicity", 1)


@pytest.mark.parametrize("to", FORMATS)
def test_verification_is_of_every_structure_and_field(
    to: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that a writer that spoils the energy of one structure fails, in every format."""
    module = format_of(to)
    write, victim = module.write_part, 11

    def spoiled(block: Any, path: Path) -> None:
        energy = block["energy"].values.copy()
        energy[victim] = np.nextafter(energy[victim], np.inf)
        write(block.assign(energy=("structure", energy)), path)

    name = f"0x{open_dataset(store)['structure_id'].values[victim].tobytes().hex()}"
    monkeypatch.setattr(module, "write_part", spoiled)
    with pytest.raises(IntegrityError, match=rf"{to}: energy of structure {name} is .* nothing was exported"):
        export(store, to, tmp_path / NAMES[to])
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(module, "write_part", lambda block, path: write(block.isel(structure=slice(0, 5)), path))
    with pytest.raises(IntegrityError, match=f"{to}: .* finds only 5 of 24 structures"):
        export(store, to, tmp_path / NAMES[to])


def test_names_that_readers_would_not_know(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"all.sqlite: ase.db.connect knows SQLite by .* type .*all.db"):
        export(store, "ase-db", tmp_path / "all.sqlite")


def test_every_scalar_of_a_record_has_a_place(store: Path) -> None:
    """Check that a format of tables leaves out only the fields that it declares."""
    known = set().union(*map(set, iter_records(open_dataset(store).load())))
    assert known - set(ase_rows.FIELDS) == {"composition"}
    assert known - set(parquet.FIELDS) == set()
    assert {"positions", "forces", "stress"} < known - set(format_of("csv").FIELDS)


NEW_VARIABLES = """
import sys
import numpy as np
import xarray as xr
from daskpipe.core.variables import VARIABLES, Variable

new = (
    Variable(name="local_energies", dims=("atom",), dtype=np.dtype("f8"), unit="eV", doc="", place="results"),
    Variable(name="velocities", dims=("atom", "xyz"), dtype=np.dtype("f4"), unit="angstrom/fs", doc="", place="arrays"),
    Variable(name="band_gap", dims=("structure",), dtype=np.dtype("f4"), unit="eV", doc="", in_extxyz=True),
)
VARIABLES.update({variable.name: variable for variable in new})  # before anything derives from it

from daskpipe.store import export, open_dataset, write_dataset

ds = open_dataset("old.zarr").load()
rng = np.random.default_rng(0)
values = {v.name: (v.dims, rng.normal(size=[ds.sizes[d] for d in v.dims]).astype(v.dtype)) for v in new}
write_dataset(ds.assign(values), "new.zarr", attrs={"dataset_key": "new"})
for words in sys.argv[1:]:
    to, name = words.split(":")
    print(to, *sorted({v.name for v in new} & set(export("new.zarr", to, name).fields)))
"""


def test_a_new_variable_needs_no_change_of_the_formats(store: Path, tmp_path: Path) -> None:
    """Check that the formats carry variables that are declared after they were written, to the last bit."""
    (tmp_path / "old.zarr").symlink_to(store)
    words = [f"{to}:{NAMES[to]}" for to in FORMATS if to != "mace-hdf5"]  # MACE reads its own properties only
    command = [sys.executable, "-W", "ignore", "-c", NEW_VARIABLES, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    carried = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    every = "band_gap local_energies velocities"
    assert carried == {to: "band_gap" if to == "csv" else every for to in FORMATS if to != "mace-hdf5"}
