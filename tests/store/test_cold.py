"""A compressed copy has the same numbers for every reader, and damage is named."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from daskpipe.core.errors import ConfigError, IntegrityError
from daskpipe.load import TorchDataset
from daskpipe.store import cold, open_dataset, verify, write_dataset
from daskpipe.store.cold import write_cold

SMALL = {"atom_chunk": 40, "structure_chunk": 6}


def one_by_one(parts):
    return [part() for part in parts]


@pytest.fixture
def copies(make_dataset, tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A dataset of several chunks, and its compressed copy, of which each file is a shard of several chunks."""
    monkeypatch.setattr(cold, "ATOM_INNER", 8)
    monkeypatch.setattr(cold, "STRUCTURE_INNER", 4)
    write_dataset(make_dataset(20), tmp_path / "warm.zarr", attrs={"dataset_key": "k1", "seed": 3}, **SMALL)
    write_cold(tmp_path / "warm.zarr", tmp_path / "cold.zarr", one_by_one)
    return tmp_path / "warm.zarr", tmp_path / "cold.zarr"


def test_every_reader_finds_the_same_numbers(copies):
    warm, copy = copies
    expected = open_dataset(warm).load()
    for ds in (xr.open_zarr(copy).load(), open_dataset(copy).load()):
        xr.testing.assert_identical(ds.drop_attrs(), expected.drop_attrs())
    group = zarr.open_group(copy, mode="r")
    assert group["positions"].shards == (40, 3)
    assert group["positions"].chunks == (8, 3)
    assert group["positions"].nchunks > group["positions"]._nshards > 1
    for name in expected:
        assert group[name][...].tobytes() == expected[name].values.tobytes(), name
    rows = np.random.default_rng(0).permutation(20)
    one, other = (TorchDataset(path).__getitems__(rows) for path in copies)
    for name in one:
        assert one[name].numpy().tobytes() == other[name].numpy().tobytes(), name


def test_it_says_what_it_is_and_is_whole(copies):
    warm, copy = (open_dataset(path).attrs for path in copies)
    assert copy["encoding"] == "cold"
    assert {name: copy[name] for name in warm if name != "checksums"} == {
        name: warm[name] for name in warm if name != "checksums"
    }
    assert verify(copies[1]) == []


def test_shards_may_be_written_in_any_order(make_dataset, tmp_path):
    write_dataset(make_dataset(20), tmp_path / "warm.zarr", attrs={"dataset_key": "k1"}, **SMALL)
    write_cold(tmp_path / "warm.zarr", tmp_path / "a.zarr", one_by_one)
    write_cold(tmp_path / "warm.zarr", tmp_path / "b.zarr", lambda parts: one_by_one(parts[::-1]))
    files = [
        {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}
        for store in (tmp_path / "a.zarr", tmp_path / "b.zarr")
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_damage_is_refused_with_the_name_of_the_file(copies, damage):
    file = copies[1] / "positions/c/1/0"
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[len(data) // 3] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(data[:-7])
    else:
        file.unlink()
    with pytest.raises(IntegrityError, match="positions/c/1/0"):
        TorchDataset(copies[1])
    assert [problem.partition(":")[0] for problem in verify(copies[1])] == ["positions/c/1/0"]


def test_what_is_there_is_not_replaced(copies, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="mine exists and is no dataset"):
        write_cold(copies[0], tmp_path / "mine", one_by_one)
