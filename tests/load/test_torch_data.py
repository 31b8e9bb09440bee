import functools
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from load_samples import ATTRS, FRACTIONS, N_STRUCTURES, forks, structures
from torch.utils.data import DataLoader

from daskpipe.core.errors import ConfigError, InputError, IntegrityError
from daskpipe.core.root_metadata import read_root
from daskpipe.core.structures import from_atoms, to_atoms
from daskpipe.core.variables import decode_names
from daskpipe.load import AtomBatchSampler, Batch, TorchDataset, collate
from daskpipe.load.mapped import MappedReader, ZarrReader, is_mappable
from daskpipe.store import open_dataset, write_dataset


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
        assert item["spin_multiplicity"] == atoms.info.get("spin_multiplicity", 0)


def test_dtypes(any_layout):
    expected = {
        "numbers": torch.int64, "positions": torch.float32, "forces": torch.float32, "cell": torch.float64,
        "pbc": torch.bool, "energy": torch.float64, "stress": torch.float64, "charge": torch.int64,
        "spin_multiplicity": torch.int64, "n_atoms": torch.int64, "index": torch.int64,
    }  # fmt: skip
    assert {name: tensor.dtype for name, tensor in TorchDataset(any_layout)[0].items()} == expected


def test_raw_layouts_are_mapped_and_others_go_through_zarr(store, chunked, compressed, sharded):
    assert {type(rows) for rows in TorchDataset(store).table.fields.values()} == {MappedReader}
    for path in (chunked, compressed, sharded):
        assert type(TorchDataset(path).table.fields["positions"]) is ZarrReader


def test_chunks_of_whole_pages_are_mapped_side_by_side(tmp_path):
    n_structures = 9000
    rng = np.random.default_rng(0)
    ds = from_atoms(structures(3))
    repeated = ds.isel(structure=rng.integers(0, 3, n_structures))
    n_atoms = repeated["n_atoms"].values
    stop = np.cumsum(n_atoms)
    total = int(stop[-1])
    many = repeated.isel(atom=rng.integers(0, ds.sizes["atom"], total)).assign(
        atom_start=("structure", stop - n_atoms),
        positions=(("atom", "xyz"), rng.random((total, 3), dtype="f4")),
        energy=("structure", rng.random(n_structures)),
    )
    write_dataset(many, tmp_path / "many.zarr", attrs=ATTRS, atom_chunk=4096, structure_chunk=4096)
    assert len(list((tmp_path / "many.zarr/positions/c").iterdir())) > 5
    data = TorchDataset(tmp_path / "many.zarr")
    assert {type(rows) for rows in data.table.fields.values()} == {MappedReader}
    across = int(np.searchsorted(stop, 4096, side="right"))
    assert stop[across] - n_atoms[across] < 4096 < stop[across]  # this structure lies in two files
    chosen = [across, 0, n_structures - 1, 4095, 4096]
    batch = data.__getitems__(chosen)
    assert batch["energy"].tolist() == many["energy"].values[chosen].tolist()
    rows = np.concatenate([np.arange(stop[row] - n_atoms[row], stop[row]) for row in chosen])
    assert np.array_equal(batch["positions"].numpy(), many["positions"].values[rows])
    assert np.array_equal(data.table.read_batch(np.arange(n_structures))["numbers"].numpy(), many["numbers"].values)


def test_a_batch_is_read_at_once_in_the_order_asked(any_layout):
    data = TorchDataset(any_layout)
    indices = [7, 0, 19, 7, 3]
    batch = data.__getitems__(indices)
    assert isinstance(batch, Batch)
    for item, index in zip(batch.structures(), indices, strict=True):
        alone = data[index]
        assert item.keys() == alone.keys()
        for name in item:
            torch.testing.assert_close(item[name], alone[name], rtol=0, atol=0, equal_nan=True)


def test_splits_partition_the_dataset(store):
    names = decode_names(open_dataset(store)["split"])
    seen = []
    for split in FRACTIONS:
        data = TorchDataset(store, split=split)
        rows = [int(item["index"]) for item in data]
        assert rows == np.flatnonzero(names == split).tolist()
        seen += rows
    assert sorted(seen) == list(range(N_STRUCTURES))


def test_collate_takes_batches_and_lists_of_items(store):
    data = TorchDataset(store)
    indices = [4, 0, 9]
    batch = collate(data.__getitems__(indices))
    joined = collate([data[index] for index in indices])
    assert set(batch) == set(joined)
    for name in batch:
        torch.testing.assert_close(batch[name], joined[name], rtol=0, atol=0, equal_nan=True)
    n_atoms = [len(data[index]["numbers"]) for index in indices]
    assert len(set(n_atoms)) > 1
    assert batch["n_atoms"].tolist() == n_atoms
    assert batch["ptr"].tolist() == [0, n_atoms[0], n_atoms[0] + n_atoms[1], sum(n_atoms)]
    assert batch["batch"].tolist() == [0] * n_atoms[0] + [1] * n_atoms[1] + [2] * n_atoms[2]
    assert batch["cell"].shape == (3, 3, 3)
    with pytest.raises(ValueError, match="collate received an empty batch"):
        collate([])


def test_collate_casts_what_floats(store):
    stored = TorchDataset(store).__getitems__([0, 1])
    batch = collate(stored, dtype=torch.float32)
    floats = {name for name, tensor in batch.items() if tensor.dtype == torch.float32}
    assert floats == {"positions", "forces", "cell", "energy", "stress"}
    assert torch.equal(batch["energy"], stored["energy"].float())
    assert torch.equal(batch["numbers"], stored["numbers"])


@forks
@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (1, "spawn")])
def test_data_loader_gives_each_structure_once(store, compressed, workers, context):
    path = store if context != "fork" else compressed  # zarr-python has read in the parent before the fork
    data = TorchDataset(path)
    expected = data.__getitems__(range(N_STRUCTURES))["energy"]
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
    assert [batch.n_structures for batch in batches] == [8, 8, 4]
    rows = torch.cat([batch["index"] for batch in batches])
    assert sorted(rows.tolist()) == list(range(N_STRUCTURES)) != rows.tolist()
    assert torch.equal(torch.cat([batch["energy"] for batch in batches]), expected[rows].float())


def test_batches_by_atoms(store):
    data = TorchDataset(store)
    seen = []
    lengths = []
    for rank in range(3):
        sampler = AtomBatchSampler(data, 20, seed=3, rank=rank, world=3)
        sampler.set_epoch(1)
        loader = DataLoader(data, batch_sampler=sampler, collate_fn=collate)
        batches = list(loader)
        assert all(len(batch["numbers"]) <= 20 for batch in batches)
        lengths.append(len(batches))
        assert len(loader) == len(batches)
        seen += [row for batch in batches for row in batch["index"].tolist()]
    assert len(set(lengths)) == 1
    assert sorted(seen) == list(range(N_STRUCTURES)) != seen
    again = AtomBatchSampler(data, 20, seed=3)
    first = list(again)
    again.set_epoch(1)
    assert first != list(again)
    in_order = [row for rows in AtomBatchSampler(data, 20, shuffle=False) for row in rows]
    assert in_order == list(range(N_STRUCTURES))


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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "positions/c/0/0 is 600 bytes, expected [0-9]+ bytes; copy the dataset again"),
        ("gone", "positions/c/0/0 is missing, expected [0-9]+ bytes; copy the dataset again"),
        ("flipped", "positions/c/0/0 is damaged: its CRC-32C is [0-9a-f]{8}, expected [0-9a-f]{8}; copy the dataset"),
    ],
)
def test_a_damaged_chunk_is_an_error_at_once(store, tmp_path, damage, message):
    path = damaged(store, tmp_path, "positions/c/0/0", damage)
    with pytest.raises(IntegrityError, match=message):
        TorchDataset(path)
    if damage == "flipped":
        assert len(TorchDataset(path, verify=False)) == N_STRUCTURES
        assert len(pickle.loads(pickle.dumps(TorchDataset(path, verify=False)))) == N_STRUCTURES


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "forces/c/2/0 is damaged: its CRC-32C is"),
        ("gone", "forces/c/2/0 is missing; copy the dataset again"),
        ("flipped", "forces/c/2/0 is damaged: its CRC-32C is"),
    ],
)
def test_a_damaged_shard_is_an_error_at_once(sharded, tmp_path, damage, message):
    path = damaged(sharded, tmp_path, "forces/c/2/0", damage)
    with pytest.raises(IntegrityError, match=message):
        TorchDataset(path)


def damaged(store, tmp_path, name, damage):
    path = tmp_path / "damaged.zarr"
    shutil.copytree(store, path)
    content = bytearray((path / name).read_bytes())
    if damage == "gone":
        (path / name).unlink()
    elif damage == "cut":
        (path / name).write_bytes(content[: min(600, len(content) - 1)])
    else:
        content[11] ^= 1
        (path / name).write_bytes(content)
    return path


def test_what_is_not_read_is_not_compared(store, tmp_path):
    path = damaged(store, tmp_path, "structure_id/c/0", "flipped")
    assert len(TorchDataset(path)) == N_STRUCTURES


@pytest.mark.parametrize("layout", ["store", "sharded"])
def test_an_unknown_codec_is_refused(layout, request, tmp_path):
    path = tmp_path / "odd.zarr"
    shutil.copytree(request.getfixturevalue(layout), path)
    root = json.loads((path / "zarr.json").read_text())
    codecs = root["consolidated_metadata"]["metadata"]["forces"]["codecs"]
    inner = codecs if layout == "store" else codecs[0]["configuration"]["codecs"]
    inner.append({"name": "lossy9", "configuration": {}})
    (path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(InputError, match=r"forces/zarr.json: the array 'forces' is stored with the codec 'lossy9'.*bl"):
        TorchDataset(path)


def test_a_store_without_consolidated_metadata(store, tmp_path):
    path = tmp_path / "plain.zarr"
    shutil.copytree(store, path)
    root = json.loads((path / "zarr.json").read_text())
    del root["consolidated_metadata"]
    (path / "zarr.json").write_text(json.dumps(root))
    assert torch.equal(TorchDataset(path)[3]["forces"], TorchDataset(store)[3]["forces"])


@pytest.mark.parametrize(
    "change",
    [
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]},
        {"codecs": [{"name": "transpose", "configuration": {"order": [1, 0]}}, {"name": "bytes"}]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [5, 1]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [5, 3]}}},
        {"chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}}},
        {"data_type": "float16"},
    ],
    ids=lambda change: str(next(iter(change))),
)
def test_what_is_not_raw_is_not_mapped(store, change):
    metadata = read_root(store)["consolidated_metadata"]["metadata"]["positions"]
    assert is_mappable(metadata)
    assert not is_mappable(metadata | change)


def test_importing_the_package_imports_no_torch():
    code = "import sys, daskpipe.load; assert not {'torch', 'xarray', 'zarr'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    import daskpipe.load

    with pytest.raises(AttributeError, match=r"module 'daskpipe.load' has no attribute 'Dataset'"):
        daskpipe.load.Dataset  # noqa: B018
    for name in daskpipe.load.__all__:
        assert callable(getattr(daskpipe.load, name))
