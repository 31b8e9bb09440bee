"""Small datasets in every layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr
from load_samples import ATTRS, FRACTIONS, structures

from daskpipe.core.structures import from_atoms
from daskpipe.store import arrange_and_write, open_dataset, write_dataset
from daskpipe.store.cold import write_cold


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("load") / "dataset.zarr"
    arrange_and_write(from_atoms(structures()), path, seed=0, fractions=FRACTIONS, attrs=ATTRS)
    return path


@pytest.fixture(scope="session")
def chunked(store: Path) -> Path:
    """The same data in many small chunks, which are no whole pages."""
    path = store.with_name("chunked.zarr")
    write_dataset(open_dataset(store).load(), path, attrs=ATTRS, atom_chunk=7, structure_chunk=3)
    return path


@pytest.fixture(scope="session")
def compressed(store: Path) -> Path:
    """The same data as xarray and zarr-python write it by themselves."""
    path = store.with_name("compressed.zarr")
    ds = xr.open_zarr(store).load()
    for variable in ds.variables.values():
        variable.encoding.pop("compressors", None)  # zarr's default, Zstandard, instead of none
    with pytest.warns(match="Consolidated metadata is currently not part in the Zarr format 3|does not have a Zarr V3"):
        ds.to_zarr(path, zarr_format=3, consolidated=True)
    return path


@pytest.fixture(scope="session")
def sharded(chunked: Path) -> Path:
    """The same data as a cold copy: shards of compressed chunks, with checksums."""
    path = chunked.with_name("sharded.zarr")
    write_cold(chunked, path, lambda parts: [part() for part in parts])
    return path


@pytest.fixture(params=["store", "chunked", "compressed", "sharded"])
def any_layout(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)
