import json
import pickle
import shutil
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from zarr.errors import ChunkNotFoundError

from daskpipe.core.errors import InputError
from daskpipe.core.structures import to_atoms
from daskpipe.stages.describe.rows import make_structures as atoms_of
from daskpipe.store import open_dataset, verify, write_dataset
from daskpipe.store.reader import read_geometries, read_identity

ATTRS = {"dataset_key": "k1", "seed": 3}
SMALL = {"atom_chunk": 16, "structure_chunk": 4}


class CountingScheduler:
    """Dask scheduler that counts how often something was computed."""

    def __init__(self) -> None:
        self.computes = 0

    def __call__(self, graph, keys, **kwargs):
        self.computes += 1
        return dask.get(graph, keys, **kwargs)


@pytest.fixture
def store(make_dataset, tmp_path) -> Path:
    write_dataset(make_dataset(9), tmp_path / "dataset.zarr", attrs=ATTRS, **SMALL)
    return tmp_path / "dataset.zarr"


def test_opening_computes_nothing(store):
    scheduler = CountingScheduler()
    with dask.config.set(scheduler=scheduler):
        ds = open_dataset(store)
        mean = (ds["energy"] / ds["n_atoms"]).mean()
        assert scheduler.computes == 0
        assert np.isfinite(float(mean))
        assert scheduler.computes == 1


def test_chunks_are_those_of_the_store_unless_given(store, make_dataset):
    ds = make_dataset(9)
    stored = open_dataset(store)
    assert stored.chunksizes["structure"] == (4, 4, 1)
    assert set(stored.chunksizes["atom"][:-1]) == {16}
    assert open_dataset(store, chunks={"structure": 8}).chunksizes["structure"] == (8, 1)
    assert np.array_equal(stored["energy"].values, ds["energy"].values)


@pytest.mark.parametrize("travel", [lambda ds: ds, lambda ds: pickle.loads(pickle.dumps(ds))], ids=["here", "pickled"])
def test_a_missing_chunk_is_an_error_and_not_fill_values(store, travel):
    (store / "energy/c/1").unlink()
    ds = travel(open_dataset(store))
    with pytest.raises(ChunkNotFoundError, match="c/1"):
        ds["energy"].values  # noqa: B018
    assert np.isnan(xr.open_zarr(store)["energy"].values[4:8]).all()  # what it would be without


def test_verify_finds_each_flipped_byte(store):
    assert verify(store) == []
    files = sorted(file for file in store.rglob("*") if file.is_file() and file != store / "zarr.json")
    assert len(files) > len(open_dataset(store).data_vars)
    for file in files:
        whole = file.read_bytes()
        broken = bytearray(whole)
        broken[len(whole) // 2] ^= 1
        file.write_bytes(broken)
        assert verify(store) == [f"{file.relative_to(store)}: differs"]
        file.write_bytes(whole)
    assert verify(store) == []


def test_verify_finds_what_is_missing_and_what_is_extra(store):
    (store / "energy/c/1").unlink()
    (store / "pbc/old").write_text("")
    (store / "pbc/.DS_Store").write_text("")  # what an operating system leaves is nobody's data
    (store / "numbers/c/0").write_bytes(b"")
    assert verify(store) == ["energy/c/1: missing", "numbers/c/0: differs", "pbc/old: extra"]


@pytest.mark.parametrize(
    "change",
    [
        lambda root: root["attributes"].update(seed=4),
        lambda root: root["attributes"]["checksums"].pop("root"),
        lambda root: root["attributes"].pop("checksums"),
        lambda root: root["consolidated_metadata"]["metadata"]["energy"]["attributes"].update(units="kcal/mol"),
    ],
    ids=["attribute", "own checksum", "all checksums", "unit"],
)
def test_verify_finds_a_changed_root(store, change):
    root = json.loads((store / "zarr.json").read_text())
    change(root)
    (store / "zarr.json").write_text(json.dumps(root))
    assert verify(store) == ["zarr.json: differs"]


@pytest.mark.parametrize(("start", "stop"), [(0, 9), (0, 1), (8, 9), (2, 7), (3, 4), (4, 8), (0, 0), (5, 5), (9, 9)])
def test_geometries_are_a_slice_of_the_dataset(store, start, stop):
    part = read_geometries(store, start, stop)
    whole = open_dataset(store).load()
    ends = np.cumsum(whole["n_atoms"].values)
    first, last = (int(ends[index - 1]) if index else 0 for index in (start, stop))
    for name in ("n_atoms", "cell", "pbc", "charge"):
        assert np.array_equal(part[name].values, whole[name].values[start:stop]), name
    for name in ("numbers", "positions"):
        assert np.array_equal(part[name].values, whole[name].values[first:last]), name
    assert np.array_equal(part["atom_start"].values, whole["atom_start"].values[start:stop] - first)
    assert not part.chunks
    for atoms, index in zip(atoms_of(part), range(start, stop), strict=True):
        stored = to_atoms(whole, index)
        assert np.array_equal(atoms.numbers, stored.numbers)
        assert np.array_equal(atoms.positions, stored.positions)


def test_content_is_that_of_the_bytes_and_not_of_the_place(store, make_dataset, tmp_path):
    digest, n_structures = read_identity(store)
    assert n_structures == open_dataset(store).sizes["structure"] == 9
    shutil.copytree(store, tmp_path / "copy.zarr")
    assert read_identity(tmp_path / "copy.zarr") == (digest, 9)
    write_dataset(make_dataset(9, seed=1), tmp_path / "other.zarr", attrs=ATTRS, **SMALL)
    assert read_identity(tmp_path / "other.zarr")[0] != digest


def test_paths_that_are_no_dataset(store, tmp_path):
    def refused(path: Path, message: str) -> None:
        for read in (open_dataset, verify, read_identity, lambda path: read_geometries(path, 0, 1)):
            with pytest.raises(InputError, match=message):
                read(path)

    refused(tmp_path / "nothing", "nothing does not exist; give the path of a dataset")
    refused(tmp_path, "is a run and not a dataset; type .*/dataset.zarr")
    refused(store / "energy/c", "is not a Zarr store")
    refused(store / "zarr.json", "is not a Zarr store")
    refused(store / "energy", "a Zarr store but no daskpipe dataset .* open it with xarray.open_zarr")
    root = (store / "zarr.json").read_text()
    (store / "zarr.json").write_text(root.replace("daskpipe/1", "daskpipe/2"))
    refused(store, "written in schema 'daskpipe/2' and this daskpipe reads 'daskpipe/1'; type: pip install --upgrade")
    (store / "zarr.json").write_text(root[: len(root) // 2])
    refused(store, "zarr.json is damaged .* copy the dataset again")
    (store / "zarr.json").write_text("[]")
    refused(store, "zarr.json is damaged")
