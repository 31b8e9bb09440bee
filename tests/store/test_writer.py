import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from daskpipe.core.errors import ConfigError, DiskError
from daskpipe.core.structures import atom_starts, take, to_atoms
from daskpipe.core.variables import SCHEMA, VARIABLES, decode_names
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.store import arrange_and_write, open_dataset, verify, write_dataset

ATTRS = {"dataset_key": "k1", "seed": 3, "config": {"select": {"n": 64}, "elements": ["Cu", "Ag"]}}
FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}

MANY = 70_000  # more structures than one chunk of the default size holds
SMALL = {"atom_chunk": 16, "structure_chunk": 4}  # many chunks from little data


def read_files(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def test_plain_xarray_opens_it_without_a_warning_and_finds_the_schema(make_dataset, tmp_path):
    ds = make_dataset(13)
    arrange_and_write(ds, tmp_path / "dataset.zarr", seed=1, fractions=FRACTIONS, attrs=ATTRS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored = xr.open_zarr(tmp_path / "dataset.zarr").load()
    assert set(stored.data_vars) == {*ds.data_vars, "group", "split"}
    for name, array in stored.data_vars.items():
        variable = VARIABLES[str(name)]
        assert (array.dims, array.dtype) == (variable.dims, variable.dtype), name
        assert array.attrs.get("units") == variable.unit, name
        assert array.attrs["long_name"] == variable.doc
        assert ("flag_meanings" in array.attrs) == variable.coded
    assert stored["split"].attrs["flag_meanings"] == "train val test"
    assert stored["n_atoms"].attrs["sample_dimension"] == "atom"


def test_values_come_back_bit_for_bit_from_many_chunks(make_dataset, tmp_path):
    ds = make_dataset(13)
    write_dataset(ds, tmp_path / "dataset.zarr", attrs=ATTRS, **SMALL)
    stored = open_dataset(tmp_path / "dataset.zarr")
    assert stored["positions"].data.npartitions > 3
    assert stored["energy"].data.npartitions > 3
    for name, array in ds.data_vars.items():
        values = decode_names(stored[name]) if VARIABLES[str(name)].coded else stored[name].values
        assert values.tobytes() == array.values.astype(values.dtype).tobytes(), name


def test_root_attributes(make_dataset, tmp_path):
    ds = make_dataset(9)
    receipt = arrange_and_write(ds, tmp_path / "dataset.zarr", seed=7, fractions=FRACTIONS, attrs=ATTRS)
    attrs = xr.open_zarr(tmp_path / "dataset.zarr").attrs
    assert attrs["Conventions"] == "CF-1.11"
    assert attrs["daskpipe_schema"] == SCHEMA
    assert attrs["ragged"] == "contiguous"
    assert (attrs["n_structures"], attrs["n_atoms"]) == (9, int(ds["n_atoms"].sum()))
    rule = {"split_by": "seed", "near_duplicates": 0.01, "clusters": 20}
    assert attrs["split_rule"] == {"seed": 7, "fractions": FRACTIONS, "unit": "group", **rule}
    assert {name: attrs[name] for name in ATTRS} == ATTRS
    on_disk = read_files(tmp_path / "dataset.zarr")
    assert set(attrs["checksums"]["files"]) == set(on_disk) - {"zarr.json"}
    assert receipt == {
        "path": str(tmp_path / "dataset.zarr"),
        "dataset_key": "k1",
        "n_structures": 9,
        "n_atoms": attrs["n_atoms"],
        "n_files": len(on_disk),
        "n_bytes": sum(map(len, on_disk.values())),
    }


def test_a_chunk_file_is_the_raw_array(make_dataset, tmp_path):
    ds = make_dataset(8)
    store = tmp_path / "dataset.zarr"
    write_dataset(ds, store, attrs=ATTRS)
    assert (store / "positions/c/0/0").read_bytes() == ds["positions"].values.tobytes()
    assert (store / "cell/c/0/0/0").read_bytes() == ds["cell"].values.tobytes()
    assert (store / "structure_id/c/0").read_bytes() == ds["structure_id"].values.tobytes()
    for name in ds.data_vars:
        metadata = json.loads((store / str(name) / "zarr.json").read_text())
        assert [codec["name"] for codec in metadata["codecs"]] == ["bytes"]
        assert metadata["dimension_names"] == list(VARIABLES[str(name)].dims)
        if VARIABLES[str(name)].dtype.kind == "f":
            assert metadata["fill_value"] == "NaN"


def test_consolidated_metadata_is_what_zarr_itself_would_write(make_dataset, tmp_path):
    store = tmp_path / "dataset.zarr"
    write_dataset(make_dataset(4), store, attrs=ATTRS)
    ours = json.loads((store / "zarr.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(store)
    assert json.loads((store / "zarr.json").read_text()) == ours


def test_default_chunks_and_empty_chunks_are_written(tmp_path):
    n_atoms = np.ones(MANY, dtype=np.int32)
    columns = {
        "n_atoms": n_atoms,
        "atom_start": atom_starts(n_atoms),
        "numbers": np.full(MANY, 29, dtype=np.uint8),
        "positions": np.zeros((MANY, 3), dtype=np.float32),
        "cell": np.zeros((MANY, 3, 3)),
        "pbc": np.zeros((MANY, 3), dtype=bool),
        "structure_id": np.arange(2 * MANY, dtype=np.int64).view("V16"),
        "energy": np.full(MANY, np.nan),
    }
    ds = xr.Dataset({name: (VARIABLES[name].dims, column) for name, column in columns.items()})
    store = tmp_path / "dataset.zarr"
    write_dataset(ds, store, attrs=ATTRS)
    sizes = {name: len(data) for name, data in read_files(store).items()}
    per_structure, per_atom = 65_536, 2**20
    assert sizes["n_atoms/c/0"] == sizes["n_atoms/c/1"] == 4 * per_structure
    assert sizes["pbc/c/0/0"] == sizes["pbc/c/1/0"] == 3 * per_structure  # all False, the fill value, and there
    assert sizes["energy/c/1"] == 8 * per_structure  # all NaN, and there
    assert sizes["positions/c/0/0"] == 12 * MANY < 12 * per_atom
    assert "positions/c/1/0" not in sizes
    assert verify(store) == []


def test_equal_input_gives_equal_bytes(make_dataset, tmp_path):
    ds = make_dataset(11)
    backwards = ds[list(ds.data_vars)[::-1]]
    write_dataset(ds, tmp_path / "a.zarr", attrs=ATTRS, **SMALL)
    write_dataset(backwards, tmp_path / "b.zarr", attrs=dict(reversed(ATTRS.items())), **SMALL)
    write_dataset(ds.chunk(structure=3, atom=7), tmp_path / "c.zarr", attrs=ATTRS, **SMALL)
    first = read_files(tmp_path / "a.zarr")
    assert read_files(tmp_path / "b.zarr") == first
    assert read_files(tmp_path / "c.zarr") == first


def test_input_is_not_changed(make_dataset, tmp_path):
    ds = make_dataset(5)
    before = ds.copy(deep=True)
    arrange_and_write(ds, tmp_path / "dataset.zarr", seed=1, fractions=FRACTIONS, attrs=ATTRS)
    xr.testing.assert_identical(ds, before)


def test_the_same_dataset_may_be_written_again_and_another_not(make_dataset, tmp_path):
    store = tmp_path / "dataset.zarr"
    receipt = write_dataset(make_dataset(5), store, attrs=ATTRS)
    before = read_files(store)
    assert write_dataset(make_dataset(5), store, attrs=ATTRS) == receipt
    with pytest.raises(ConfigError, match=r"holds another dataset \(key k1, this one is k2\); give another path"):
        write_dataset(make_dataset(6), store, attrs={**ATTRS, "dataset_key": "k2"})
    assert read_files(store) == before
    assert os.listdir(tmp_path) == ["dataset.zarr"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_dataset_is_not_replaced(make_dataset, tmp_path, kind):
    path = tmp_path / "dataset.zarr"
    path.mkdir() if kind == "folder" else path.write_text("mine")
    with pytest.raises(ConfigError, match="exists and is no dataset; give another path or move it away"):
        write_dataset(make_dataset(2), path, attrs=ATTRS)
    assert path.is_dir() if kind == "folder" else path.read_text() == "mine"


def interrupt_writing(ds: xr.Dataset, act) -> xr.Dataset:
    """Return a dataset whose forces call `act` when they are written, half-way through."""
    values = ds["forces"].values
    forces = da.map_blocks(lambda: (act(), values)[1], chunks=values.shape, dtype=values.dtype, meta=values[:0])
    return ds.assign(forces=(ds["forces"].dims, forces))


@pytest.mark.parametrize(("key", "wins"), [("k1", True), ("k2", False)])
def test_a_writer_that_loses_the_race(make_dataset, tmp_path, key, wins):
    store = tmp_path / "dataset.zarr"
    ds = make_dataset(5)
    slow = interrupt_writing(ds, lambda: write_dataset(ds, store, attrs={**ATTRS, "dataset_key": key}))
    if wins:
        assert write_dataset(slow, store, attrs=ATTRS)["n_structures"] == 5
    else:
        with pytest.raises(ConfigError, match="holds another dataset"):
            write_dataset(slow, store, attrs=ATTRS)
    assert verify(store) == []
    assert os.listdir(tmp_path) == ["dataset.zarr"]


def test_a_failure_half_way_leaves_nothing(make_dataset, tmp_path):
    def fail():
        assert len(list(tmp_path.glob(".dataset-*.zarr/cell/c/0/0/0"))) == 1  # it was under way
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        write_dataset(interrupt_writing(make_dataset(5), fail), tmp_path / "dataset.zarr", attrs=ATTRS)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_said(make_dataset, tmp_path):
    def fill():
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match=r"dataset.zarr: No space left on device. Make room \([\d,]+ bytes\)"):
        write_dataset(interrupt_writing(make_dataset(5), fill), tmp_path / "dataset.zarr", attrs=ATTRS)
    assert os.listdir(tmp_path) == []


def test_a_killed_writer_leaves_nothing_at_the_path(make_dataset, tmp_path):
    write_dataset(make_dataset(5), tmp_path / "source.zarr", attrs=ATTRS)
    child = textwrap.dedent(
        """
        import sys, time, dask.array as da, xarray as xr
        from daskpipe.store import open_dataset, write_dataset
        ds = open_dataset("source.zarr").load()
        values = ds["forces"].values
        def wait():
            print("half-way", flush=True)
            time.sleep(600)
            return values
        forces = da.map_blocks(wait, chunks=values.shape, dtype=values.dtype, meta=values[:0])
        write_dataset(ds.assign(forces=(ds["forces"].dims, forces)), "dataset.zarr", attrs={"dataset_key": "k"})
        """
    )
    with subprocess.Popen([sys.executable, "-c", child], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half-way\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "dataset.zarr").exists()
    assert len(list(tmp_path.glob(".dataset-*.zarr"))) == 1
    assert RunDirectory(tmp_path).remove_leftovers() == 1
    write_dataset(make_dataset(5), tmp_path / "dataset.zarr", attrs=ATTRS)
    assert verify(tmp_path / "dataset.zarr") == []
    assert sorted(os.listdir(tmp_path)) == ["dataset.zarr", "source.zarr"]


def test_wrong_arguments(make_dataset, tmp_path):
    ds, path = make_dataset(3), tmp_path / "dataset.zarr"
    with pytest.raises(ValueError, match="attrs has no 'dataset_key'; give a string"):
        write_dataset(ds, path, attrs={})
    with pytest.raises(ValueError, match=r"attrs must hold JSON types only: .*nan"):
        write_dataset(ds, path, attrs={**ATTRS, "loss": float("nan")})
    with pytest.raises(ValueError, match=r"attrs must hold JSON types only: .*PosixPath"):
        write_dataset(ds, path, attrs={**ATTRS, "model": Path("x")})
    with pytest.raises(ValueError, match="energy: expected dtype float64, received float32"):
        write_dataset(ds.assign(energy=ds["energy"].astype("f4")), path, attrs=ATTRS)
    with pytest.raises(ValueError, match="'unknown' is none of train, val, test"):
        write_dataset(ds.assign(split=("structure", ["train", "unknown", "val"])), path, attrs=ATTRS)
    assert os.listdir(tmp_path) == []


def test_a_dataset_of_no_structures(make_dataset, tmp_path):
    empty = take(make_dataset(3), [])
    receipt = arrange_and_write(empty, tmp_path / "dataset.zarr", seed=1, fractions=FRACTIONS, attrs=ATTRS)
    stored = open_dataset(tmp_path / "dataset.zarr").load()
    assert (receipt["n_structures"], receipt["n_atoms"], stored.sizes["structure"]) == (0, 0, 0)
    assert verify(tmp_path / "dataset.zarr") == []


@settings(max_examples=10, deadline=None)
@given(n=st.integers(1, 9), seed=st.integers(0, 99), atom_chunk=st.integers(1, 40), structure_chunk=st.integers(1, 10))
def test_atoms_survive_the_store(make_dataset, n, seed, atom_chunk, structure_chunk):
    ds = make_dataset(n, seed)
    folder = Path(tempfile.mkdtemp())
    try:
        store = folder / "dataset.zarr"
        write_dataset(ds, store, attrs=ATTRS, atom_chunk=atom_chunk, structure_chunk=structure_chunk)
        lazy = open_dataset(store)
        stored = lazy.load() if n > 1 else lazy
        for index in range(n):
            before, after = to_atoms(ds, index), to_atoms(stored, index)
            assert before == after  # numbers, positions, cell, pbc
            assert before.info == after.info
            assert before.calc.results.keys() == after.calc.results.keys()
            for label, value in before.calc.results.items():
                assert np.array_equal(value, after.calc.results[label])
    finally:
        shutil.rmtree(folder)


def test_importing_the_package_is_cheap():
    heavy = {"xarray", "zarr", "dask", "torch", "ase"}
    code = f"import sys, daskpipe.store; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
