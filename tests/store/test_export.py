import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from ase.io import read
from zarr.errors import ChunkNotFoundError

from daskpipe.errors import ConfigError, InputError
from daskpipe.store import export, open_dataset, pack
from daskpipe.structures import structure_id, take, to_atoms
from daskpipe.variables import SPLITS, decode

ATTRS = {"dataset_key": "k1"}
FRACTIONS = {"train": 0.5, "val": 0.3, "test": 0.2}
N_STRUCTURES = 26


@pytest.fixture
def store(make_dataset, tmp_path):
    pack(make_dataset(N_STRUCTURES), tmp_path / "dataset.zarr", seed=0, fractions=FRACTIONS, attrs=ATTRS)
    return tmp_path / "dataset.zarr"


def test_ase_reads_back_what_is_stored(store, tmp_path):
    assert export(store, "extxyz", tmp_path / "all.extxyz") == N_STRUCTURES
    ds = open_dataset(store).load()
    frames = read(tmp_path / "all.extxyz", index=":")
    assert len(frames) == N_STRUCTURES
    for index, frame in enumerate(frames):
        atoms = to_atoms(ds, index)
        assert frame.info["structure_id"] == f"0x{atoms.info['structure_id'].hex()}"
        assert structure_id(frame) == atoms.info["structure_id"]  # numbers, positions, cell, pbc, charge, spin
        assert np.array_equal(frame.positions.astype("f4"), atoms.positions.astype("f4"))
        assert np.array_equal(frame.get_forces().astype("f4"), atoms.get_forces().astype("f4"))
        assert frame.get_potential_energy() == atoms.get_potential_energy()
        assert ("stress" in frame.calc.results) == ("stress" in atoms.calc.results) == bool(atoms.cell.rank)
        if atoms.cell.rank:
            assert np.array_equal(frame.get_stress(), atoms.get_stress())
        for name in ("system_type", "generator", "split", "label_method"):
            assert frame.info[name] == atoms.info[name], name
        parent = atoms.info["parent_id"]
        assert frame.info.get("parent_id", f"0x{bytes(16).hex()}") == f"0x{parent.hex()}"


MACE_READS = """
import pickle
from mace.data.utils import KeySpecification, load_from_xyz
_, configs = load_from_xyz("all.extxyz", KeySpecification.from_defaults())
with open("configs.pkl", "wb") as file:
    pickle.dump([(config.properties, config.property_weights) for config in configs], file)
"""


def test_mace_trains_on_it_with_its_default_keys(store, tmp_path):
    export(store, "extxyz", tmp_path / "all.extxyz")
    # In a process of its own: importing MACE changes what torch.load does in the whole process.
    subprocess.run([sys.executable, "-c", MACE_READS], cwd=tmp_path, capture_output=True, check=True)
    configs = pickle.loads((tmp_path / "configs.pkl").read_bytes())
    ds = open_dataset(store).load()
    assert len(configs) == N_STRUCTURES
    for index, (properties, weights) in enumerate(configs):
        atoms = to_atoms(ds, index)
        assert properties["energy"] == atoms.get_potential_energy()
        assert np.array_equal(properties["forces"].astype("f4"), atoms.get_forces().astype("f4"))
        assert weights["energy"] == weights["forces"] == 1.0
        assert weights["stress"] == float(atoms.cell.rank == 3)
        if atoms.cell.rank:
            assert np.array_equal(np.reshape(properties["stress"], (3, 3)), atoms.get_stress(voigt=False))
        assert properties["total_charge"] == atoms.info["charge"]
        assert properties["total_spin"] == atoms.info["spin_multiplicity"]


def test_one_split(store, tmp_path):
    names = decode(open_dataset(store)["split"])
    for split in SPLITS:
        out = tmp_path / f"{split}.extxyz"
        assert export(store, "extxyz", out, split=split) == np.count_nonzero(names == split) > 0
        assert {frame.info["split"] for frame in read(out, index=":")} == {split}


def test_block_size_does_not_matter(store, tmp_path, monkeypatch):
    module = sys.modules[export.__module__]  # the package's attribute of that name is the function
    whole, by_one, by_atoms = (tmp_path / name for name in ("whole", "by_one", "by_atoms"))
    export(store, "extxyz", whole, split="train")
    monkeypatch.setattr(module, "BLOCK_STRUCTURES", 1)
    export(store, "extxyz", by_one, split="train")
    monkeypatch.setattr(module, "BLOCK_STRUCTURES", 1000)
    monkeypatch.setattr(module, "BLOCK_ATOMS", 11)
    export(store, "extxyz", by_atoms, split="train")
    assert whole.read_bytes() == by_one.read_bytes() == by_atoms.read_bytes()


def test_what_was_not_labelled_has_no_labels(make_dataset, tmp_path):
    ds = make_dataset(4)
    energy, forces = ds["energy"].values.copy(), ds["forces"].values.copy()
    energy[1], forces[int(ds["atom_start"][1])] = np.nan, np.nan
    ds = ds.assign(energy=("structure", energy), forces=(("atom", "xyz"), forces))
    pack(ds, tmp_path / "dataset.zarr", seed=0, fractions={"train": 1.0}, attrs=ATTRS)
    export(tmp_path / "dataset.zarr", "extxyz", tmp_path / "all.extxyz")
    step_one = f"0x{ds['structure_id'].values[1].tobytes().hex()}"
    for frame in read(tmp_path / "all.extxyz", index=":"):
        labelled = frame.info["structure_id"] != step_one
        assert ("REF_energy" in frame.info, "REF_forces" in frame.arrays) == (labelled, labelled)
        assert ({"energy", "forces"} <= set(getattr(frame.calc, "results", {}))) == labelled


def test_a_file_is_replaced_only_by_force(store, tmp_path):
    out = tmp_path / "all.extxyz"
    out.write_text("mine")
    with pytest.raises(ConfigError, match=r"all.extxyz exists; give another name, or --force to replace it"):
        export(store, "extxyz", out)
    assert out.read_text() == "mine"
    assert export(store, "extxyz", out, force=True) == N_STRUCTURES
    assert len(read(out, index=":")) == N_STRUCTURES


def test_a_failure_leaves_no_file(store, tmp_path):
    (store / "forces/c/0/0").unlink()
    with pytest.raises(ChunkNotFoundError, match="c/0/0"):
        export(store, "extxyz", tmp_path / "all.extxyz")
    assert os.listdir(tmp_path) == ["dataset.zarr"]


def test_wrong_arguments(store, make_dataset, tmp_path):
    with pytest.raises(ConfigError, match=r"unknown export format 'exyz'. Did you mean 'extxyz'\? Known: extxyz"):
        export(store, "exyz", tmp_path / "x")
    with pytest.raises(ConfigError, match=r"unknown split 'valid'. Did you mean 'val'\? Known: train, val, test"):
        export(store, "extxyz", tmp_path / "x", split="valid")
    with pytest.raises(InputError, match="does not exist"):
        export(tmp_path / "nothing", "extxyz", tmp_path / "x")
    pack(make_dataset(3), tmp_path / "one.zarr", seed=0, fractions={"train": 1.0}, attrs=ATTRS)
    with pytest.raises(InputError, match="the dataset has no structure of split 'test'; nothing to export"):
        export(tmp_path / "one.zarr", "extxyz", tmp_path / "x", split="test")
    pack(take(make_dataset(3), []), tmp_path / "none.zarr", seed=0, fractions={"train": 1.0}, attrs=ATTRS)
    with pytest.raises(InputError, match="the dataset has no structure; nothing to export"):
        export(tmp_path / "none.zarr", "extxyz", tmp_path / "x")
    assert not (tmp_path / "x").exists()
