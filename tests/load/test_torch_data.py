import functools
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from torch.utils.data import DataLoader

from daskpipe.errors import ConfigError, InputError, IntegrityError
from daskpipe.load import TorchDataset, collate
from daskpipe.load.mapped import MappedRows, ZarrRows
from daskpipe.store import open_dataset, pack, write_dataset
from daskpipe.structures import from_atoms, to_atoms
from daskpipe.variables import decode, read_root

N_STRUCTURES = 20
ATTRS = {"dataset_key": "k1"}
FRACTIONS = {"train": 0.5, "val": 0.3, "test": 0.2}
# Python 3.12 warns that a fork of a process with threads may hang; the loader holds no lock that a child could need.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")


def structures() -> list[Atoms]:
    rng = np.random.default_rng(0)
    found = []
    for index in range(N_STRUCTURES):
        if index % 3:
            atoms = bulk("Cu", cubic=True) * (1, 1, 1 + index % 2)
        else:
            atoms = Atoms("AuAg", positions=[[0, 0, 0], [0, 0, 2.7]], info={"charge": 1, "spin_multiplicity": 2})
        atoms.numbers = rng.choice([29, 47, 79], size=len(atoms))
        atoms.rattle(0.1, rng=rng)
        atoms.calc = EMT()
        atoms.get_potential_energy()
        if atoms.cell.rank == 3:
            atoms.get_stress()
        found.append(atoms)
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("load") / "dataset.zarr"
    pack(from_atoms(structures()), path, seed=0, fractions=FRACTIONS, attrs=ATTRS)
    return path


@pytest.fixture(scope="module")
def chunked(store) -> Path:
    """The same data in many small chunks."""
    path = store.with_name("chunked.zarr")
    write_dataset(open_dataset(store).load(), path, attrs=ATTRS, atom_chunk=7, structure_chunk=3)
    return path


@pytest.fixture(scope="module")
def compressed(store) -> Path:
    """The same data in a layout that cannot be mapped."""
    path = store.with_name("compressed.zarr")
    ds = xr.open_zarr(store).load()
    for variable in ds.variables.values():
        variable.encoding.pop("compressors", None)  # zarr's default, Zstandard, instead of none
    with pytest.warns(match="Consolidated metadata is currently not part in the Zarr format 3|does not have a Zarr V3"):
        ds.to_zarr(path, zarr_format=3, consolidated=True)
    return path


@pytest.fixture(params=["store", "chunked", "compressed"])
def any_layout(request) -> Path:
    return request.getfixturevalue(request.param)


def test_items_are_the_stored_structures(store, any_layout):
    ds = open_dataset(store).load()
    data = TorchDataset(any_layout)
    assert len(data) == N_STRUCTURES
    for index in range(N_STRUCTURES):
        item, atoms = data[index], to_atoms(ds, index)
        assert item["index"] == index
        assert item["n_atoms"] == len(atoms)
        assert item["numbers"].tolist() == atoms.numbers.tolist()
        assert np.array_equal(item["positions"].numpy(), atoms.positions.astype("f4"))
        assert np.array_equal(item["forces"].numpy(), atoms.get_forces().astype("f4"))
        assert np.array_equal(item["cell"].numpy(), atoms.cell.array)
        assert item["pbc"].tolist() == atoms.pbc.tolist()
        assert item["energy"].item() == atoms.get_potential_energy()
        if atoms.cell.rank == 3:
            assert np.array_equal(item["stress"].numpy(), atoms.get_stress())
        else:
            assert item["stress"].isnan().all()
        assert item["charge"] == atoms.info["charge"]
        assert item["spin_multiplicity"] == atoms.info["spin_multiplicity"]


def test_dtypes(store, any_layout):
    expected = {
        "numbers": torch.int64, "positions": torch.float32, "forces": torch.float32, "cell": torch.float64,
        "pbc": torch.bool, "energy": torch.float64, "stress": torch.float64, "charge": torch.int64,
        "spin_multiplicity": torch.int64, "n_atoms": torch.int64, "index": torch.int64,
    }  # fmt: skip
    assert {name: tensor.dtype for name, tensor in TorchDataset(any_layout)[0].items()} == expected


def test_raw_layouts_are_mapped_and_others_go_through_zarr(store, chunked, compressed):
    assert {type(rows) for rows in TorchDataset(store).fields.values()} == {MappedRows}
    assert len(TorchDataset(chunked).fields["positions"].chunks) > 3
    assert {type(rows) for rows in TorchDataset(compressed).fields.values()} == {ZarrRows}


def test_a_batch_is_read_at_once_in_the_order_asked(any_layout):
    data = TorchDataset(any_layout)
    indices = [7, 0, 19, 7, 3]
    for item, index in zip(data.__getitems__(indices), indices, strict=True):
        alone = data[index]
        assert item.keys() == alone.keys()
        for name in item:
            torch.testing.assert_close(item[name], alone[name], rtol=0, atol=0, equal_nan=True)


def test_splits_partition_the_dataset(store):
    names = decode(open_dataset(store)["split"])
    seen = []
    for split in FRACTIONS:
        data = TorchDataset(store, split=split)
        rows = [int(item["index"]) for item in data]
        assert rows == np.flatnonzero(names == split).tolist()
        seen += rows
    assert sorted(seen) == list(range(N_STRUCTURES))


def test_collate(store):
    data = TorchDataset(store)
    items = [data[index] for index in (4, 1, 9)]
    batch = collate(items)
    n_atoms = [len(item["numbers"]) for item in items]
    assert len(set(n_atoms)) > 1
    assert batch["n_atoms"].tolist() == n_atoms
    assert batch["ptr"].tolist() == [0, n_atoms[0], n_atoms[0] + n_atoms[1], sum(n_atoms)]
    assert batch["batch"].tolist() == [0] * n_atoms[0] + [1] * n_atoms[1] + [2] * n_atoms[2]
    assert batch["cell"].shape == (3, 3, 3)
    assert batch["energy"].shape == (3,)
    for number, item in enumerate(items):
        atoms = slice(*batch["ptr"][number : number + 2].tolist())
        assert torch.equal(batch["positions"][atoms], item["positions"])
        assert torch.equal(batch["numbers"][atoms], item["numbers"])
        assert torch.equal(batch["energy"][number], item["energy"])


def test_collate_casts_what_floats(store):
    data = TorchDataset(store)
    batch = collate([data[0], data[1]], dtype=torch.float32)
    floats = {name for name, tensor in batch.items() if tensor.dtype == torch.float32}
    assert floats == {"positions", "forces", "cell", "energy", "stress"}
    assert batch["numbers"].dtype == torch.int64
    with pytest.raises(ValueError, match="collate received an empty batch"):
        collate([])


@forks
@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (2, "spawn")])
def test_data_loader_gives_each_structure_once(store, compressed, workers, context):
    path = store if context != "fork" else compressed  # zarr-python has read in the parent before the fork
    data = TorchDataset(path)
    loader = DataLoader(
        data,
        batch_size=8,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=context,
        collate_fn=functools.partial(collate, dtype=torch.float32),
        generator=torch.Generator().manual_seed(0),
    )
    batches = list(loader)
    assert [len(batch["energy"]) for batch in batches] == [8, 8, 4]
    rows = torch.cat([batch["index"] for batch in batches])
    assert sorted(rows.tolist()) == list(range(N_STRUCTURES)) != rows.tolist()
    energy = torch.cat([batch["energy"] for batch in batches])
    assert energy.tolist() == [np.float32(data[row]["energy"]).item() for row in rows.tolist()]


def test_tensors_are_copies(store):
    data = TorchDataset(store)
    before = data[0]["positions"].clone()
    data[0]["positions"].zero_()
    assert torch.equal(data[0]["positions"], before)
    assert before.any()


def test_pickled_it_is_small_and_the_same(store):
    data = TorchDataset(store, split="val")
    pickled = pickle.dumps(data)
    assert len(pickled) < 1000  # the path and the split
    again = pickle.loads(pickled)
    assert len(again) == len(data)
    assert torch.equal(again[1]["forces"], data[1]["forces"])


def test_wrong_arguments(store, tmp_path):
    with pytest.raises(ConfigError, match=r"unknown split 'valid'. Did you mean 'val'\? Known: train, val, test"):
        TorchDataset(store, split="valid")
    with pytest.raises(InputError, match="does not exist; give the path of a dataset"):
        TorchDataset(tmp_path / "nothing")
    data = TorchDataset(store)
    with pytest.raises(IndexError, match="structure 20 of 20: give an index from 0 to 19"):
        data[N_STRUCTURES]
    assert torch.equal(data[-1]["positions"], data[N_STRUCTURES - 1]["positions"])


def test_a_dataset_without_labels_or_splits(tmp_path):
    ds = from_atoms(structures()[:3])
    write_dataset(ds.drop_vars(["energy", "forces"]), tmp_path / "bare.zarr", attrs=ATTRS)
    with pytest.raises(InputError, match=r"bare.zarr holds no energy and no forces; label it first: daskpipe label"):
        TorchDataset(tmp_path / "bare.zarr")
    write_dataset(ds, tmp_path / "whole.zarr", attrs=ATTRS)
    assert len(TorchDataset(tmp_path / "whole.zarr")) == 3
    with pytest.raises(ConfigError, match=r"unknown split 'train'. Known: none"):
        TorchDataset(tmp_path / "whole.zarr", split="train")


@pytest.mark.parametrize(("damage", "found"), [("cut", "6[0-9]+ bytes"), ("gone", "missing")])
def test_a_damaged_chunk_is_an_error_at_once(tmp_path, damage, found):
    path = tmp_path / "dataset.zarr"
    write_dataset(from_atoms(structures()), path, attrs=ATTRS)
    chunk = path / "positions/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:600]) if damage == "cut" else chunk.unlink()
    with pytest.raises(IntegrityError, match=f"positions/c/0/0 is {found}, expected [0-9]+ bytes; copy the dataset"):
        TorchDataset(path)


@pytest.mark.parametrize(
    "change",
    [
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]},
        {"codecs": [{"name": "transpose", "configuration": {"order": [1, 0]}}, {"name": "bytes"}]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [5, 1]}}},
        {"chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}}},
        {"data_type": "float16"},
    ],
    ids=lambda change: str(next(iter(change))),
)
def test_what_is_not_raw_is_not_mapped(store, change):
    from daskpipe.load.mapped import is_raw

    metadata = read_root(store)["consolidated_metadata"]["metadata"]["positions"]
    assert is_raw(metadata)
    assert not is_raw(metadata | change)


def test_importing_the_room_imports_no_torch():
    code = "import sys, daskpipe.load; assert not {'torch', 'xarray', 'zarr'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    import daskpipe.load

    with pytest.raises(AttributeError, match=r"module 'daskpipe.load' has no attribute 'Dataset'"):
        daskpipe.load.Dataset  # noqa: B018
