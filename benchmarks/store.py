"""Read and write labelled structures: daskpipe's store next to other formats, one thread, warm page cache.

Run: ``pip install lmdb msgpack h5py ase-db-backends`` and ``python benchmarks/store.py [n_structures ...] [NAME ...]``.
Synthetic structures of 10 to 200 atoms with numbers, positions, forces, cell, pbc, energy and stress. Each format is
written, checked against the arrays that went in, and read: random batches of 32, all fields collated into flat arrays;
and all structures in order, 1,024 at a time. Formats that write slowly are stopped after `WRITE_SECONDS`, and read with
the rows that they hold by then: fewer rows can only flatter them. Words among the arguments choose the formats whose
names begin so.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and torch read it

import numpy as np
import xarray as xr

BATCH = 32
BLOCK = 1024
MOST_BATCHES = 2000
READ_SECONDS = 12.0
WRITE_SECONDS = 60.0
ASELMDB_ROWS = 50_000
"""Most rows in a file: its writer takes time quadratic in them."""

PER_ATOM = {"numbers": "u1", "positions": "f4", "forces": "f4"}
PER_STRUCTURE = {"cell": "f8", "pbc": "?", "energy": "f8", "stress": "f8"}

Arrays = dict[str, np.ndarray]
Read = Callable[[np.ndarray], Any]


@dataclass
class Data:
    """What is written: flat arrays, and where each structure begins."""

    arrays: Arrays
    n_atoms: np.ndarray
    start: np.ndarray

    def rows(self) -> range:
        return range(len(self.n_atoms))

    def of(self, row: int) -> Arrays:
        atoms = slice(self.start[row], self.start[row] + self.n_atoms[row])
        return {name: array[atoms] if name in PER_ATOM else array[row] for name, array in self.arrays.items()}

    def atom_rows(self, rows: np.ndarray) -> np.ndarray:
        n_atoms = self.n_atoms[rows]
        stop = np.cumsum(n_atoms)
        return np.repeat(self.start[rows] - stop + n_atoms, n_atoms) + np.arange(stop[-1])


def synthetic(n: int) -> Data:
    rng = np.random.default_rng(0)
    n_atoms = rng.integers(10, 201, n)
    total = int(n_atoms.sum())
    arrays = {
        "numbers": rng.integers(1, 90, total, dtype="u1"),
        "positions": rng.random((total, 3), dtype="f4") * 12,
        "forces": rng.standard_normal((total, 3), dtype="f4"),
        "cell": np.eye(3) * 12 + rng.normal(scale=0.1, size=(n, 3, 3)),
        "pbc": rng.random((n, 3)) < 0.8,
        "energy": rng.normal(-5.0, 1.0, n) * n_atoms,
        "stress": rng.normal(scale=0.01, size=(n, 6)),
    }
    return Data(arrays, n_atoms, np.cumsum(n_atoms) - n_atoms)


def join(items: list[Arrays]) -> Arrays:
    """Collate structures that a format gives one by one."""
    out = {name: np.concatenate([item[name] for item in items]) for name in PER_ATOM}
    return out | {name: np.stack([item[name] for item in items]) for name in PER_STRUCTURE}


def until_late(data: Data, rows: range) -> Iterator[tuple[int, Arrays]]:
    """Structures to write, as long as there is time."""
    started = time.perf_counter()
    for row in rows:
        if time.perf_counter() - started > WRITE_SECONDS:
            return
        yield row, data.of(row)


# Each format: write(data, folder) -> structures written, seconds; open(data, folder) -> what reads rows.


def write_memory_map(data: Data, folder: Path) -> tuple[int, float]:
    started = time.perf_counter()
    for name, array in data.arrays.items():
        np.save(folder / f"{name}.npy", array)
    return len(data.n_atoms), time.perf_counter() - started


def open_memory_map(data: Data, folder: Path) -> Read:
    maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in data.arrays}

    def read(rows: np.ndarray) -> Arrays:
        atoms = data.atom_rows(rows)
        return {name: array[atoms if name in PER_ATOM else rows] for name, array in maps.items()}

    return read


def write_daskpipe(data: Data, folder: Path) -> tuple[int, float]:
    from daskpipe.core.variables import VARIABLES
    from daskpipe.store import write_dataset

    n = len(data.n_atoms)
    arrays = data.arrays | {
        "n_atoms": data.n_atoms.astype("i4"),
        "atom_start": data.start,
        "structure_id": np.frombuffer(np.random.default_rng(1).bytes(16 * n), "V16"),
    }
    ds = xr.Dataset({name: (VARIABLES[name].dims, array) for name, array in arrays.items()})
    started = time.perf_counter()
    write_dataset(ds, folder / "dataset.zarr", attrs={"dataset_key": "benchmark"})
    return n, time.perf_counter() - started


def open_daskpipe(data: Data, folder: Path, verify: bool = False) -> Read:
    from daskpipe.load import TorchDataset

    return TorchDataset(folder / "dataset.zarr", verify=verify).__getitems__


def write_lmdb(data: Data, folder: Path) -> tuple[int, float]:
    import lmdb
    import msgpack

    started = time.perf_counter()
    with lmdb.open(str(folder), map_size=2**38) as store:
        for first in range(0, len(data.n_atoms), 4096):
            with store.begin(write=True) as transaction:
                for row in data.rows()[first : first + 4096]:
                    packed = msgpack.packb({name: array.tobytes() for name, array in data.of(row).items()})
                    transaction.put(row.to_bytes(8, "big"), packed)
    return len(data.n_atoms), time.perf_counter() - started


def open_lmdb(data: Data, folder: Path) -> Read:
    import lmdb
    import msgpack

    transaction = lmdb.open(str(folder), readonly=True, lock=False, readahead=False).begin(buffers=True)
    shapes = {name: (-1, 3) for name in ("positions", "forces")} | {"numbers": (-1,), "cell": (3, 3), "energy": ()}
    dtypes = PER_ATOM | PER_STRUCTURE

    def read(rows: np.ndarray) -> Arrays:
        items = []
        for row in rows.tolist():
            packed = msgpack.unpackb(transaction.get(row.to_bytes(8, "big")))
            items.append({n: np.frombuffer(b, dtypes[n]).reshape(shapes.get(n, (-1,))) for n, b in packed.items()})
        return join(items)

    return read


def write_flat_hdf5(data: Data, folder: Path) -> tuple[int, float]:
    import h5py

    started = time.perf_counter()
    with h5py.File(folder / "flat.h5", "w") as file:
        for name, array in data.arrays.items():
            file[name] = array
    return len(data.n_atoms), time.perf_counter() - started


def open_flat_hdf5(data: Data, folder: Path) -> Read:
    import h5py

    file = h5py.File(folder / "flat.h5", "r")
    sets = {name: file[name] for name in data.arrays}

    def read(rows: np.ndarray) -> Arrays:
        first, last = int(rows[0]), int(rows[-1])
        if last - first + 1 == len(rows):  # in order: one slice
            atoms = slice(int(data.start[first]), int(data.start[last] + data.n_atoms[last]))
            return {n: s[atoms if n in PER_ATOM else slice(first, last + 1)] for n, s in sets.items()}
        starts, stops = data.start[rows].tolist(), (data.start[rows] + data.n_atoms[rows]).tolist()
        different, place = np.unique(rows, return_inverse=True)  # h5py wants them sorted
        out = {n: sets[n][different][place] for n in PER_STRUCTURE}
        for n in PER_ATOM:
            out[n] = np.concatenate([sets[n][start:stop] for start, stop in zip(starts, stops, strict=True)])
        return out

    return read


def write_zarr(data: Data, folder: Path) -> tuple[int, float]:
    import zarr

    started = time.perf_counter()
    group = zarr.create_group(folder / "stock.zarr")
    for name, array in data.arrays.items():
        group.create_array(name, data=array)
    return len(data.n_atoms), time.perf_counter() - started


def open_zarr(data: Data, folder: Path) -> Read:
    import zarr

    group = zarr.open_group(folder / "stock.zarr", mode="r")
    arrays = {name: group[name] for name in data.arrays}

    def read(rows: np.ndarray) -> Arrays:
        first, last = int(rows[0]), int(rows[-1])
        if last - first + 1 == len(rows):
            atoms = slice(int(data.start[first]), int(data.start[last] + data.n_atoms[last]))
            return {n: a[atoms if n in PER_ATOM else slice(first, last + 1)] for n, a in arrays.items()}
        atom_rows = data.atom_rows(rows)
        return {n: a.get_orthogonal_selection((atom_rows if n in PER_ATOM else rows,)) for n, a in arrays.items()}

    return read


def atoms_of(item: Arrays) -> Any:
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = Atoms(numbers=item["numbers"], positions=item["positions"], cell=item["cell"], pbc=item["pbc"])
    labels = {"energy": float(item["energy"]), "forces": item["forces"], "stress": item["stress"]}
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def write_ase(data: Data, folder: Path, name: str, most: int) -> tuple[int, float]:
    import ase.db

    database = ase.db.connect(folder / name)
    seconds, n = 0.0, 0
    with database:
        for _, item in until_late(data, data.rows()[:most]):
            atoms = atoms_of(item)
            started = time.perf_counter()
            database.write(atoms)
            seconds += time.perf_counter() - started
            n += 1
        started = time.perf_counter()
    return n, seconds + time.perf_counter() - started


def open_ase(folder: Path, name: str) -> Read:
    import ase.db

    database = ase.db.connect(folder / name)
    names = [*PER_ATOM, *PER_STRUCTURE]

    def read(rows: np.ndarray) -> Arrays:
        found = [database._get_row(row + 1) for row in rows.tolist()]
        return join([{name: np.asarray(row.get(name)) for name in names} for row in found])

    return read


def write_mace_hdf5(data: Data, folder: Path) -> tuple[int, float]:
    import h5py
    from mace.data import Configuration, save_configurations_as_HDF5

    def configuration(item: Arrays) -> Configuration:
        return Configuration(
            atomic_numbers=item["numbers"],
            positions=item["positions"],
            properties={name: item[name] for name in ("energy", "forces", "stress")},
            property_weights=dict.fromkeys(("energy", "forces", "stress"), 1.0),
            cell=item["cell"],
            pbc=tuple(item["pbc"].tolist()),
        )

    started = time.perf_counter()
    written = 0

    def configurations() -> Iterator[Configuration]:
        nonlocal written
        for _, item in until_late(data, data.rows()):
            yield configuration(item)
            written += 1

    with h5py.File(folder / "mace.h5", "w") as file:
        save_configurations_as_HDF5(configurations(), None, file)
    return written, time.perf_counter() - started


class Bare:
    """Takes MACE's configurations as they are read: no neighbour lists."""

    @staticmethod
    def from_config(config: Any, **_: Any) -> Arrays:
        plain = {"numbers": config.atomic_numbers, "positions": config.positions, "cell": config.cell}
        return plain | {"pbc": np.asarray(config.pbc)} | {n: np.asarray(v) for n, v in config.properties.items()}


def open_mace_hdf5(folder: Path) -> Read:
    from mace.data import HDF5Dataset

    dataset = HDF5Dataset(folder / "mace.h5", r_max=5.0, z_table=None, atomic_dataclass=Bare)
    return lambda rows: join([dataset[row] for row in rows.tolist()])


@dataclass
class Format:
    name: str
    write: Callable[[Data, Path], tuple[int, float]]
    open: Callable[[Data, Path], Read]


FORMATS = [
    Format("NumPy memory map", write_memory_map, open_memory_map),
    Format("daskpipe", write_daskpipe, open_daskpipe),
    Format("LMDB + msgpack", write_lmdb, open_lmdb),
    Format("HDF5, flat arrays", write_flat_hdf5, open_flat_hdf5),
    Format("zarr-python, defaults", write_zarr, open_zarr),
    Format(
        "aselmdb",
        lambda data, folder: write_ase(data, folder, "structures.aselmdb", ASELMDB_ROWS),
        lambda data, folder: open_ase(folder, "structures.aselmdb"),
    ),
    Format(
        "ASE sqlite",
        lambda data, folder: write_ase(data, folder, "structures.db", len(data.n_atoms)),
        lambda data, folder: open_ase(folder, "structures.db"),
    ),
    Format("MACE HDF5", write_mace_hdf5, lambda data, folder: open_mace_hdf5(folder)),
]


def check(data: Data, read: Read, rows: np.ndarray) -> None:
    """Stop if a format gives back anything but what was written."""
    found = read(rows)
    atom_rows = data.atom_rows(rows)
    for name, array in data.arrays.items():
        np.testing.assert_array_equal(np.asarray(found[name]), array[atom_rows if name in PER_ATOM else rows], name)


def batches(read: Read, n: int) -> np.ndarray:
    """Milliseconds of random batches."""
    rng = np.random.default_rng(1)
    seconds: list[float] = []
    while len(seconds) < MOST_BATCHES and (len(seconds) < 20 or sum(seconds) < READ_SECONDS):
        rows = rng.integers(0, n, BATCH)
        started = time.perf_counter()
        read(rows)
        seconds.append(time.perf_counter() - started)
    return np.array(seconds) * 1e3


def in_order(read: Read, n: int) -> float:
    """Structures a second, from the first on."""
    started = time.perf_counter()
    first = 0
    while first < n and time.perf_counter() - started < READ_SECONDS:
        read(np.arange(first, min(first + BLOCK, n)))
        first += BLOCK
    return min(first, n) / (time.perf_counter() - started)


def shuffled_stream(folder: Path) -> float:
    """Structures a second that a `TorchStream` gives, in shuffled batches."""
    from daskpipe.load import TorchStream

    stream = TorchStream(folder / "dataset.zarr", batch_size=BATCH, verify=False)
    n, started = 0, time.perf_counter()
    for batch in stream:
        n += batch.n_structures
        if time.perf_counter() - started > READ_SECONDS:
            break
    return n / (time.perf_counter() - started)


def copying(data: Data) -> float:
    """Structures a second at which NumPy copies the same bytes, a block after the other, into memory that is in use."""
    blocks = {
        name: np.empty_like(array[: len(array) * BLOCK // len(data.n_atoms)]) for name, array in data.arrays.items()
    }
    started = time.perf_counter()
    for name, array in data.arrays.items():
        block = blocks[name]
        for first in range(0, len(array) - len(block), len(block)):
            np.copyto(block, array[first : first + len(block)])
    return len(data.n_atoms) / (time.perf_counter() - started)


def compare(n: int, chosen: list[str]) -> None:
    data = synthetic(n)
    raw = sum(array.nbytes for array in data.arrays.values())
    print(f"\n{n:,} structures, {int(data.n_atoms.sum()):,} atoms, {raw / 1e6:,.0f} MB raw\n")
    print(
        f"{'':<22}{'batch of 32, ms':>22}{'':>9}{'in order':>15}{'open':>9}{'size':>8}{'write':>15}{'rows':>10}\n"
        f"{'':<22}{'p50':>10}{'p99':>12}{'x map':>9}{'structures/s':>15}{'ms':>9}{'x raw':>8}{'structures/s':>15}"
    )
    floor = 0.0
    notes = []
    for kind in FORMATS:
        if chosen and not kind.name.startswith(tuple(chosen)):
            continue
        folder = Path(tempfile.mkdtemp(prefix="daskpipe-store-"))
        try:
            written, seconds = kind.write(data, folder)
            started = time.perf_counter()
            read = kind.open(data, folder)
            opened = (time.perf_counter() - started) * 1e3
            check(data, read, np.random.default_rng(2).integers(0, written, 100))
            flow = in_order(read, written)  # reads all files into the page cache as well
            times = batches(read, written)
            p50, p99 = np.percentile(times, [50, 99])
            floor = floor or p50
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            if kind.name == "LMDB + msgpack":  # its file is sparse
                size = sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
            share = sum(array.nbytes for name, array in data.arrays.items() if name in PER_STRUCTURE) * written / n
            atoms = int(data.n_atoms[:written].sum())
            share += sum(array[:1].nbytes * atoms for name, array in data.arrays.items() if name in PER_ATOM)
            print(
                f"{kind.name:<22}{p50:>10.3f}{p99:>12.3f}{p50 / floor:>9.1f}{flow:>15,.0f}{opened:>9.1f}"
                f"{size / share:>8.2f}{written / seconds:>15,.0f}{written:>10,}",
                flush=True,
            )
            if written < n:
                notes.append(f"{kind.name} was stopped at {written:,} rows, which can only flatter it")
            if kind.name == "daskpipe":
                started = time.perf_counter()
                open_daskpipe(data, folder, verify=True)
                verified = (time.perf_counter() - started) * 1e3
                notes.append(f"daskpipe opens in {verified:.0f} ms with verify=True, its default (read once, CRC-32C)")
                notes.append(
                    f"daskpipe's TorchStream gives {shuffled_stream(folder):,.0f} structures/s shuffled, by 32"
                )
        finally:
            shutil.rmtree(folder)
    notes.append(f"NumPy copies the same bytes from memory to memory at {copying(data):,.0f} structures/s")
    print("\n" + "\n".join(notes), flush=True)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of MACE's imports
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    print(f"{model.split(': ')[1]}, {os.cpu_count()} cores, one thread; local disk, page cache warm; load at the start")
    print(f"{os.getloadavg()[0]:.1f}. daskpipe makes torch tensors, the others NumPy arrays. aselmdb: at most")
    print(f"{ASELMDB_ROWS:,} rows a file. Writing is timed without making ase.Atoms; only daskpipe and LMDB sync.")
    sizes = [int(word) for word in sys.argv[1:] if word.isdecimal()]
    for n in sizes or [50_000, 800_000]:
        compare(n, [word for word in sys.argv[1:] if not word.isdecimal()])


if __name__ == "__main__":
    main()
