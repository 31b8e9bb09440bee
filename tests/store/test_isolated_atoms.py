"""Isolated atoms stay in train and give the reference energies; config_type, head and config_weight are kept."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
import xarray as xr
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io.extxyz import write_extxyz

from daskpipe.core.constraints import fixed_components
from daskpipe.core.errors import InputError
from daskpipe.core.isolated_atoms import is_isolated, isolated_rows
from daskpipe.core.structures import concat, from_atoms, to_atoms
from daskpipe.core.variables import VARIABLES, decode_names, encode_names
from daskpipe.engine.units import Payload
from daskpipe.load import MACEDataset, TorchDataset, spec
from daskpipe.stages.generate.reading.labelled import LabelKeys, cut_labelled_ranges, read_labelled
from daskpipe.store import arrange_and_write, open_dataset
from daskpipe.store.export import export
from daskpipe.train import train

SHARES = {"train": 0.5, "val": 0.25, "test": 0.25}
N_BULK = 12
E0 = {"Cu": -0.3, "Au": -0.2}
WEIGHT = 2.5


def bulk_frames() -> list[Atoms]:
    """Make frames of different compositions, so that no two belong to one trajectory."""
    rng = np.random.default_rng(0)
    frames = []
    for number in range(N_BULK):
        atoms = bulk("Cu", cubic=True).repeat((1, 1, 1 + number // 4))
        atoms.symbols[: 1 + number % 4] = "Au"
        atoms.set_cell(atoms.cell.array * 1.08, scale_atoms=True)
        atoms.rattle(0.1, rng=rng)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        atoms.info = {"REF_energy": energy, "config_type": "bulk 100 %", "head": "pbe", "config_weight": WEIGHT}
        atoms.arrays["REF_forces"] = forces
        frames.append(atoms)
    return frames


def isolated_frames() -> list[Atoms]:
    isolated = [
        Atoms(symbol, info={"REF_energy": energy, "config_type": "IsolatedAtom"}) for symbol, energy in E0.items()
    ]
    boxed = Atoms("Cu", cell=[12] * 3, pbc=True, info={"REF_energy": -0.25})  # another spin state, of higher energy
    ion = Atoms("Cu", info={"REF_energy": 7.0, "total_charge": 1})
    return [*isolated, boxed, ion]


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Payload:
    path = tmp_path_factory.mktemp("isolated") / "a.xyz"
    with path.open("w") as file:
        for atoms in [*isolated_frames(), *bulk_frames()]:
            write_extxyz(file, atoms)
    (frame_range,) = cut_labelled_ranges(path, 100)
    return read_labelled(frame_range, LabelKeys(), "PBE")


@pytest.fixture(scope="module")
def ds(payload: Payload) -> xr.Dataset:
    return xr.Dataset({name: (VARIABLES[name].dims, values) for name, values in payload.arrays.items()})


@pytest.fixture(scope="module")
def store(ds: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "dataset.zarr"
    arrange_and_write(ds, path, seed=0, fractions=SHARES, attrs={"dataset_key": "isolated"})
    return path


def test_isolated_atoms_need_no_forces_and_all_keys_are_read(payload: Payload, ds: xr.Dataset) -> None:
    assert payload.rejected == []
    assert ds["energy"].values[:4].tolist() == [-0.3, -0.2, -0.25, 7.0]
    assert not ds["forces"].values[:4].any()
    assert ds["config_type"].values.tolist() == ["IsolatedAtom"] * 3 + ["Default"] + ["bulk 100 %"] * N_BULK
    assert ds["head"].values.tolist() == ["Default"] * 4 + ["pbe"] * N_BULK
    assert np.isnan(ds["config_weight"].values[:4]).all()
    assert (ds["config_weight"].values[4:] == WEIGHT).all()
    assert isolated_rows({name: array.values for name, array in ds.items()}).sum() == 4


def test_forces_of_what_is_not_isolated_are_not_made_up(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    frames = [Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.3]]), Atoms("Cu", cell=[2.5] * 3, pbc=True), Atoms("Au")]
    with path.open("w") as file:
        for atoms in frames:
            atoms.info["REF_energy"] = 1.0
            write_extxyz(file, atoms)
    (frame_range,) = cut_labelled_ranges(path, 100)
    forces = read_labelled(frame_range, LabelKeys(), "PBE").arrays["forces"]
    assert np.isnan(forces[:3]).all()
    assert np.array_equal(forces[3], np.zeros(3))


@pytest.mark.parametrize("weight", ["many", "-1", "nan"])
def test_a_weight_that_is_none_is_refused(weight: str, tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(f"1\nREF_energy=1.0 config_weight={weight}\nCu 0 0 0\n")
    (frame_range,) = cut_labelled_ranges(path, 100)
    (rejection,) = read_labelled(frame_range, LabelKeys(), "PBE").rejected
    assert rejection.reason == "config_weight"
    assert "give a number from 0, or none" in rejection.evidence


@pytest.mark.parametrize(
    ("atoms", "expected"),
    [
        (Atoms("Cu"), True),
        (Atoms("Cu", cell=[8] * 3, pbc=True), True),
        (Atoms("Cu", cell=[9, 9, 6], pbc=True), False),
        (Atoms("Cu", cell=[9, 9, 6], pbc=[True, True, False]), True),
        (Atoms("Cu", cell=[9, 9, 6], pbc=[False, True, False]), True),
        (Atoms("Cu", cell=[[9, 0, 0], [9, 5, 0], [0, 0, 9]], pbc=True), False),  # 5 Å wide
        (Atoms("Cu", cell=[9, 9, 0], pbc=True), False),
        (Atoms("Cu", cell=[6] * 3, pbc=True, info={"config_type": "IsolatedAtom"}), True),
        (Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 9]], info={"config_type": "IsolatedAtom"}), False),
    ],
)
def test_which_atoms_are_isolated(atoms: Atoms, expected: bool) -> None:
    assert is_isolated(atoms) is expected
    columns = {name: array.values for name, array in from_atoms([Atoms("Cu"), atoms, atoms]).items()}
    assert isolated_rows(columns).tolist() == [True, expected, expected]


def test_isolated_atoms_stay_in_train_and_their_energies_are_stored(store: Path) -> None:
    ds = open_dataset(store).load()
    single = ds["n_atoms"].values == 1
    splits, groups = decode_names(ds["split"]), ds["group"].values
    assert set(splits[single]) == {"train"}
    assert set(splits[~single]) == {"train", "val", "test"}
    assert not set(groups[single]) & set(groups[~single])
    assert sorted(set(groups)) == list(range(len(set(groups))))
    assert json.loads(ds.attrs["isolated_atom_energies"]) == {"Default": {"Au": -0.2, "Cu": -0.3}}
    assert json.loads(ds.attrs["split_report"])["n_reference"] == 4


def test_a_dataset_of_isolated_atoms_alone_is_a_training_set(tmp_path: Path) -> None:
    frames = []
    for symbol, energy in E0.items():
        atoms = Atoms(symbol)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((1, 3)))
        frames.append(atoms)
    arrange_and_write(from_atoms(frames), tmp_path / "a.zarr", seed=0, fractions=SHARES, attrs={"dataset_key": "atoms"})
    ds = open_dataset(tmp_path / "a.zarr")
    assert set(decode_names(ds["split"].compute())) == {"train"}


def test_spec_takes_their_energies_and_fits_the_rest(store: Path, ds: xr.Dataset, tmp_path: Path) -> None:
    normalisation = spec(store)
    assert normalisation.e0s == E0
    assert normalisation.isolated == ["Cu", "Au"]
    # Without the atom of gold its energy is a fit to what copper leaves.
    rows = [row for row in range(ds.sizes["structure"]) if row != 1]
    part = from_atoms([to_atoms(ds, row) for row in rows])
    arrange_and_write(part, tmp_path / "a.zarr", seed=0, fractions={"train": 1.0}, attrs={"dataset_key": "copper"})
    normalisation = spec(tmp_path / "a.zarr")
    assert normalisation.isolated == ["Cu"]
    assert normalisation.e0s["Cu"] == E0["Cu"]
    counts = [to_atoms(part, row).symbols.formula.count() for row in range(len(rows))]
    copper, gold = (np.array([count.get(symbol, 0) for count in counts]) for symbol in ("Cu", "Au"))
    fit = gold @ (part["energy"].values - copper * E0["Cu"]) / (gold @ gold)
    assert normalisation.e0s["Au"] == pytest.approx(fit, rel=1e-9)


def test_heads_that_disagree_are_refused_by_spec(tmp_path: Path) -> None:
    frames = bulk_frames()[:4]
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=atoms.info["REF_energy"], forces=atoms.arrays["REF_forces"])
    for head, energy in (("pbe", -0.3), ("scan", -0.5)):
        atoms = Atoms("Cu", positions=[[0, 0, energy]], info={"head": head})
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((1, 3)))
        frames.append(atoms)
    arrange_and_write(
        from_atoms(frames), tmp_path / "a.zarr", seed=0, fractions={"train": 1.0}, attrs={"dataset_key": "heads"}
    )
    with pytest.raises(InputError, match=r"isolated Cu has -0.3 eV in head 'pbe' and -0.5 eV in head 'scan'.*one head"):
        spec(tmp_path / "a.zarr")


def test_extxyz_carries_all_keys_and_mace_finds_the_atoms(store: Path, tmp_path: Path) -> None:
    export(store, "extxyz", tmp_path / "a.xyz")
    frames = ase.io.read(tmp_path / "a.xyz", ":")
    singles = [atoms for atoms in frames if len(atoms) == 1]
    solids = [atoms for atoms in frames if len(atoms) > 1]
    assert sorted(atoms.info.get("config_type", "-") for atoms in singles) == ["-"] + ["IsolatedAtom"] * 3
    for atoms in solids:
        assert (atoms.info["config_type"], atoms.info["head"], atoms.info["config_weight"]) == (
            "bulk 100 %",
            "pbe",
            WEIGHT,
        )
    # An atom whose spin nobody gives is exported without one.
    assert not any("total_spin" in atoms.info for atoms in frames)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mace.data import KeySpecification
        from mace.data.utils import load_from_xyz

        energies, configs = load_from_xyz(
            str(tmp_path / "a.xyz"), KeySpecification.from_defaults(), extract_atomic_energies=True
        )
    assert energies[79] == E0["Au"]
    assert energies[29] in (-0.3, -0.25)  # MACE takes the last one; both are isolated atoms of copper
    assert {config.weight for config in configs if len(config.atomic_numbers) > 1} == {WEIGHT}
    assert {config.config_type for config in configs if len(config.atomic_numbers) > 1} == {"bulk 100 %"}


@pytest.mark.parametrize("to", ["ase-db", "mace-hdf5", "hdf5", "parquet", "csv"])
def test_other_formats_carry_all_keys(to: str, store: Path, tmp_path: Path) -> None:
    suffix = {"ase-db": "db", "parquet": "parquet", "csv": "csv"}.get(to, "h5")
    made = export(store, to, tmp_path / f"a.{suffix}")  # all fields are read back and compared
    assert {"config_type", "head", "config_weight"} <= set(made.fields)
    if to == "ase-db":
        with connect(tmp_path / "a.db") as database:
            assert database.count("head=pbe") == N_BULK
    if to == "hdf5":
        with h5py.File(tmp_path / "a.h5") as file:
            assert json.loads(file.attrs["isolated_atom_energies"])["Default"] == E0
    if to == "mace-hdf5":
        with h5py.File(tmp_path / "a.h5") as file:
            weights = {float(config["weight"][()]) for config in file["config_batch_0"].values()}
        assert weights == {1.0, WEIGHT}


def test_mace_gets_the_weights(store: Path) -> None:
    data = MACEDataset(store, elements=[29, 79], cutoff=4.0)
    sizes = TorchDataset(store).n_atoms
    assert {float(data[index].weight) for index in range(len(data)) if sizes[index] == 1} == {1.0}
    assert {float(data[index].weight) for index in range(len(data)) if sizes[index] > 1} == {WEIGHT}


def test_keys_survive_merging_with_a_dataset_that_lacks_them(ds: xr.Dataset) -> None:
    plain = bulk("Cu")
    plain.calc = SinglePointCalculator(plain, energy=1.0, forces=np.zeros((1, 3)))
    both = encode_names(concat([ds, from_atoms([plain])]))
    assert decode_names(both["config_type"])[-1] == decode_names(both["head"])[-1] == "Default"
    assert decode_names(both["config_type"])[-2] == "bulk 100 %"
    assert both["config_type"].attrs["flag_meanings"] == "Default IsolatedAtom bulk%20100%20%25"
    last = to_atoms(both, -1).info
    assert not {"config_type", "head", "config_weight", "spin_multiplicity"} & last.keys()


@pytest.mark.parametrize("to", ["extxyz", "ase-db", "hdf5", "parquet"])
def test_fixed_atoms_and_isotopes_are_exported(to: str, tmp_path: Path) -> None:
    frames = []
    for number in range(4):
        atoms = bulk("Cu", cubic=True)
        atoms.positions[0] += 0.01 * number
        fixed = np.zeros((4, 3), dtype=bool)
        fixed[0], fixed[1, 2] = True, True
        if number:
            atoms.set_array("fixed", fixed)
            atoms.set_masses([62.93, 64.93, 62.93, 64.93])
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.full((4, 3), 0.5 + number))
        frames.append(atoms)
    arrange_and_write(
        from_atoms(frames), tmp_path / "a.zarr", seed=0, fractions={"train": 1.0}, attrs={"dataset_key": "fixed"}
    )
    name = tmp_path / f"out.{ {'extxyz': 'xyz', 'ase-db': 'db', 'hdf5': 'h5', 'parquet': 'parquet'}[to] }"
    made = export(tmp_path / "a.zarr", to, name)  # read back and compared
    assert {"fixed", "masses"} <= set(made.fields)
    if to in ("extxyz", "ase-db"):
        written = ase.io.read(name, ":")
        assert sorted(fixed_components(atoms) is None for atoms in written) == [False, False, False, True]
        for atoms in written:
            if atoms.constraints:
                assert fixed_components(atoms).tolist() == fixed.tolist()
                assert atoms.get_masses().tolist() == [np.float32(62.93), np.float32(64.93)] * 2
                assert (atoms.calc.results["forces"] > 0).all()  # as labelled


@pytest.mark.slow
def test_training_takes_their_energies(store: Path, tmp_path: Path) -> None:
    trained = train(store, tmp_path / "model", epochs=1, device="cpu", overrides=["r_max=4"])
    assert trained.metrics["e0s"] == E0
    assert trained.metrics["isolated_atoms"] == ["Cu", "Au"]
    assert "those of the isolated atoms of the dataset for Cu, Au." in (trained.out / "MODEL_CARD.md").read_text()
    assert "Using isolated atom energies from training file" in (trained.out / "train.log").read_text()
