import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from ase.db import connect
from ase.io import read
from zarr.errors import ChunkNotFoundError

from daskpipe.core.errors import ConfigError, InputError
from daskpipe.core.structures import structure_id, take, to_atoms
from daskpipe.core.variables import SPLITS, decode_names
from daskpipe.store import arrange_and_write, export, open_dataset
from daskpipe.store.export import Exported
from daskpipe.store.formats import FORMATS

ATTRS = {"dataset_key": "k1"}
FRACTIONS = {"train": 0.5, "val": 0.3, "test": 0.2}
N_STRUCTURES = 26
MODULE = sys.modules[export.__module__]  # the package's attribute of that name is the function


@pytest.fixture
def store(make_dataset, tmp_path):
    arrange_and_write(make_dataset(N_STRUCTURES), tmp_path / "dataset.zarr", seed=0, fractions=FRACTIONS, attrs=ATTRS)
    return tmp_path / "dataset.zarr"


def test_ase_reads_back_what_is_stored(store, tmp_path):
    made = export(store, "extxyz", tmp_path / "all.extxyz")
    assert made == Exported(
        out=tmp_path / "all.extxyz",
        n_structures=N_STRUCTURES,
        files=("all.extxyz",),
        reader="ase.io.iread",
        fields=made.fields,
    )
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


@pytest.mark.slow
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
        # MACE computes no right stress where a cell vector is open (mace-torch 0.3.16), so it must not learn one.
        assert weights["stress"] == float(atoms.pbc.all())
        if atoms.cell.rank:
            assert np.array_equal(np.reshape(properties["stress"], (3, 3)), atoms.get_stress(voigt=False))
        assert properties["total_charge"] == atoms.info["charge"]
        assert properties["total_spin"] == atoms.info.get("spin_multiplicity")  # None where nobody gives one


def test_one_split(store, tmp_path):
    names = decode_names(open_dataset(store)["split"])
    for split in SPLITS:
        out = tmp_path / f"{split}.extxyz"
        assert export(store, "extxyz", out, split=split).n_structures == np.count_nonzero(names == split) > 0
        assert {frame.info["split"] for frame in read(out, index=":")} == {split}


# --- parts ------------------------------------------------------------------------------------------


def without_times(out: Path) -> list[list[object]]:
    """Read the content of ASE databases, without the times of writing."""
    files = sorted(out.glob("*.aselmdb")) if out.is_dir() else [out]
    rows = []
    for file in files:
        with connect(file, **({"readonly": True} if out.is_dir() else {})) as database:
            for row in database.select(sort="" if out.is_dir() else "id"):
                known = {key: row[key] for key in row if key not in ("ctime", "mtime", "id", "user")}
                rows.append([(key, np.asarray(known[key]).tolist()) for key in sorted(known)] + [dict(row.data)])
    return rows


def read_hdf5(out: Path) -> dict[str, object]:
    """Read the content of HDF5 files; a folder of them as if it were one file."""
    content: dict[str, object] = {}
    n = 0
    for path in sorted(out.iterdir()) if out.is_dir() else [out]:
        with h5py.File(path) as file:
            groups = file.get("config_batch_0", {})
            order = {name: f"config_{n + int(name.split('_')[1])}" for name in groups}
            n += len(order)

            names: list[str] = []
            file.visit(names.append)
            for name in names:
                if isinstance(item := file[name], h5py.Dataset):
                    place = "/".join(order.get(word, word) for word in name.split("/"))
                    attrs = {key: np.asarray(value).tolist() for key, value in item.attrs.items()}
                    content[place] = (
                        str(item.dtype),
                        item.shape,
                        item[()].tobytes() if item.shape else item[()],
                        attrs,
                    )
            content |= {f"@{key}": value for key, value in file.attrs.items()}
    return content


SAME_FOR_ANY_PARTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "extxyz": ("x.extxyz", Path.read_bytes),
    "csv": ("x.csv", Path.read_bytes),
    "ase-db": ("x.db", without_times),
    "aselmdb": ("x", without_times),
    "hdf5": ("x.h5", read_hdf5),
    "mace-hdf5": ("x.h5", read_hdf5),
    "mace-hdf5 folder": ("x", read_hdf5),
    "parquet": ("x.parquet", lambda out: pq.read_table(out).to_pylist()),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SAME_FOR_ANY_PARTS)
def test_number_and_order_of_parts_do_not_matter(case, store, tmp_path, monkeypatch):
    name, contents = SAME_FOR_ANY_PARTS[case]
    n_parts = []

    def elsewhere(calls: Sequence[Callable[[], int]]) -> list[int]:
        """Run the calls as workers would: pickled, in another order."""
        n_parts.append(len(calls))
        answers = {row: pickle.loads(pickle.dumps(calls[row]))() for row in reversed(range(len(calls)))}
        return [answers[row] for row in range(len(calls))]

    made = []
    for folder, constant, limit in (
        ("whole", "PART_ATOMS", 2**20),
        ("ones", "PART_STRUCTURES", 1),
        ("b", "PART_ATOMS", 11),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(MODULE, constant, limit)
            (tmp_path / folder).mkdir()
            to = case.removesuffix(" folder")
            export(store, to, tmp_path / folder / name, split="train", run_parts=elsewhere)
        made.append(contents(tmp_path / folder / name))
    n_train = np.count_nonzero(decode_names(open_dataset(store)["split"]) == "train")
    assert n_parts[0] == 1 < n_parts[2] < n_parts[1] == n_train
    assert len(made[0]) >= n_train
    assert made[0] == made[1] == made[2]


def test_all_formats_are_compared():
    assert {case.removesuffix(" folder") for case in SAME_FOR_ANY_PARTS} == set(FORMATS)


def test_an_atom_limit_below_a_structure_still_ends(store, tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "PART_ATOMS", 1)
    assert export(store, "csv", tmp_path / "x.csv").n_structures == N_STRUCTURES


# --- whole or not at all ----------------------------------------------------------------------------


def test_what_was_not_labelled_has_no_labels(make_dataset, tmp_path):
    ds = make_dataset(4)
    energy, forces = ds["energy"].values.copy(), ds["forces"].values.copy()
    energy[1], forces[int(ds["atom_start"][1])] = np.nan, np.nan
    ds = ds.assign(energy=("structure", energy), forces=(("atom", "xyz"), forces))
    arrange_and_write(ds, tmp_path / "dataset.zarr", seed=0, fractions={"train": 1.0}, attrs=ATTRS)
    export(tmp_path / "dataset.zarr", "extxyz", tmp_path / "all.extxyz")
    step_one = f"0x{ds['structure_id'].values[1].tobytes().hex()}"
    for frame in read(tmp_path / "all.extxyz", index=":"):
        labelled = frame.info["structure_id"] != step_one
        assert ("REF_energy" in frame.info, "REF_forces" in frame.arrays) == (labelled, labelled)
        assert ({"energy", "forces"} <= set(getattr(frame.calc, "results", {}))) == labelled
    for to, name in (("ase-db", "x.db"), ("aselmdb", "x"), ("hdf5", "x.h5"), ("parquet", "x.pq"), ("csv", "x.csv")):
        assert export(tmp_path / "dataset.zarr", to, tmp_path / name).n_structures == 4
    export(tmp_path / "dataset.zarr", "mace-hdf5", tmp_path / "mace.h5")
    with h5py.File(tmp_path / "mace.h5") as file:
        weights = [item["property_weights/energy"][()] for item in file["config_batch_0"].values()]
    assert sorted(weights) == [0, 1, 1, 1]


def test_a_file_is_replaced_only_by_force(store, tmp_path):
    out = tmp_path / "all.extxyz"
    out.write_text("mine")
    with pytest.raises(ConfigError, match=r"all.extxyz exists; give another name, or --force to replace it"):
        export(store, "extxyz", out)
    assert out.read_text() == "mine"
    assert export(store, "extxyz", out, force=True).n_structures == N_STRUCTURES
    assert len(read(out, index=":")) == N_STRUCTURES


def test_a_folder_is_replaced_only_if_it_is_an_export(store, tmp_path):
    out = tmp_path / "set"
    export(store, "aselmdb", out)
    with pytest.raises(ConfigError, match="set exists; give another name, or --force"):
        export(store, "aselmdb", out)
    made = export(store, "mace-hdf5", out, force=True, split="val")
    assert made.files == tuple(os.listdir(out)) == ("data.0000.h5",)
    (out / "thesis.tex").write_text("mine")
    for to in ("aselmdb", "extxyz"):
        with pytest.raises(ConfigError, match=r"set is a folder that holds 'thesis.tex', which no export wrote"):
            export(store, to, out, force=True)
    assert sorted(os.listdir(out)) == ["data.0000.h5", "thesis.tex"]
    (out / "thesis.tex").unlink()
    assert export(store, "extxyz", out, force=True).n_structures == N_STRUCTURES
    assert export(store, "aselmdb", out, force=True).n_structures == N_STRUCTURES
    assert sorted(os.listdir(tmp_path)) == ["dataset.zarr", "set"]


@pytest.mark.parametrize(("to", "name"), [("extxyz", "all.extxyz"), ("aselmdb", "set")])
def test_what_a_link_leads_to_is_replaced(store, tmp_path, to, name):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    export(store, to, scratch / name, split="val")
    out = tmp_path / name
    out.symlink_to(scratch / name)
    with pytest.raises(ConfigError, match=f"{name} exists; give another name, or --force"):
        export(store, to, out)
    assert export(store, to, out, force=True).n_structures == N_STRUCTURES
    assert out.is_symlink()
    assert os.listdir(scratch) == [name]


@pytest.mark.parametrize("to", FORMATS)
def test_a_failure_leaves_what_was_there(to, store, tmp_path):
    (store / "numbers/c/0").unlink()
    out = tmp_path / "x.db"
    out.write_text("mine")
    with pytest.raises(ChunkNotFoundError, match="c/0"):
        export(store, to, out, force=True)
    assert sorted(os.listdir(tmp_path)) == ["dataset.zarr", "x.db"]
    assert out.read_text() == "mine"


def test_wrong_arguments(store, make_dataset, tmp_path):
    with pytest.raises(
        ConfigError, match=r"unknown export format 'exyz'. Did you mean 'extxyz'\? Known: extxyz, ase-db"
    ):
        export(store, "exyz", tmp_path / "x")
    with pytest.raises(ConfigError, match=r"unknown split 'valid'. Did you mean 'val'\? Known: train, val, test"):
        export(store, "extxyz", tmp_path / "x", split="valid")
    with pytest.raises(InputError, match="does not exist"):
        export(tmp_path / "nothing", "extxyz", tmp_path / "x")
    arrange_and_write(make_dataset(3), tmp_path / "one.zarr", seed=0, fractions={"train": 1.0}, attrs=ATTRS)
    with pytest.raises(InputError, match="the dataset has no structure of split 'test'; nothing to export"):
        export(tmp_path / "one.zarr", "extxyz", tmp_path / "x", split="test")
    arrange_and_write(take(make_dataset(3), []), tmp_path / "none.zarr", seed=0, fractions={"train": 1.0}, attrs=ATTRS)
    with pytest.raises(InputError, match="the dataset has no structure; nothing to export"):
        export(tmp_path / "none.zarr", "extxyz", tmp_path / "x")
    assert not (tmp_path / "x").exists()
