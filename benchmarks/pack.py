"""Packing: labelled units to one dataset, on two workers; time, disk, and the memory of each process.

    python benchmarks/pack.py [n_structures]

The structures are random, 10 to 200 atoms, 16 a unit of labels, as a run leaves them. Sorting, planning (groups,
near-duplicates, splits, leakage), writing and publishing are those of a run. Memory is the largest resident size that a
worker or the driver reached, libraries included; what the interpreter needs before it begins is stated beside it.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import xarray as xr
from distributed import Client

import daskpipe.store.stage as storing
from daskpipe.cluster.connect import connect
from daskpipe.config.load import load_config
from daskpipe.core.structures import atom_starts
from daskpipe.core.variables import VARIABLES
from daskpipe.engine.commit import commit
from daskpipe.engine.dask_pool import DaskPool, Workers
from daskpipe.engine.driver import Driver
from daskpipe.engine.ledger import Ledger
from daskpipe.engine.rows import dataset_to_arrays
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload, Receipt, Unit, unit_key
from daskpipe.pipeline.context import Run
from daskpipe.pipeline.packing import pack_dataset
from daskpipe.store import open_dataset, verify

UNIT = 16
"""Structures of a unit of labels."""


def labelled(n: int, rng: np.random.Generator) -> xr.Dataset:
    """Random numbers in the shape of labelled frames, two seeds a unit."""
    n_atoms = rng.integers(10, 201, n).astype(np.int32)
    total = int(n_atoms.sum())
    columns: dict[str, Any] = {
        "n_atoms": n_atoms,
        "atom_start": atom_starts(n_atoms),
        "numbers": rng.choice(np.array([1, 6, 8, 29], dtype=np.uint8), total),
        "positions": rng.random((total, 3), dtype=np.float32),
        "forces": rng.random((total, 3), dtype=np.float32),
        "cell": rng.random((n, 3, 3)),
        "pbc": np.ones((n, 3), dtype=bool),
        "energy": rng.random(n),
        "stress": rng.random((n, 6)),
        "charge": np.zeros(n, np.int8),
        "spin_multiplicity": np.ones(n, np.int8),
        "structure_id": np.frombuffer(rng.bytes(16 * n), "V16"),
        "parent_id": np.repeat(np.frombuffer(rng.bytes(32), "V16"), -(-n // 2))[:n],
        "composition": np.char.add("C", n_atoms.astype(str)),
        "system_type": np.full(n, "bulk"),
        "temperature": np.full(n, 300, np.float32),
        "step": np.arange(n, dtype=np.int32),
        "replica": np.zeros(n, np.int32),
        "features": rng.random((n, 16), dtype=np.float32),
        "label_method": np.full(n, "none"),
        "label_status": np.full(n, "ok"),
    }
    return xr.Dataset({name: (VARIABLES[name].dims, column) for name, column in columns.items()})


def peak() -> int:
    """Largest resident size of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(n_structures: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="pack-", dir=os.environ.get("TMPDIR")))
    try:
        directory = RunDirectory(folder)
        rng = np.random.default_rng(0)
        receipts: list[Receipt] = []
        n_atoms = 0
        for index in range(n_structures // UNIT):
            ds = labelled(UNIT, rng)
            n_atoms += ds.sizes["atom"]
            unit = Unit(stage="label", index=index, key=unit_key("label", 0, {}, [index], 0), n_inputs=UNIT)
            receipts.append(commit(folder, unit, Payload(arrays=dataset_to_arrays(ds), n_out=UNIT)))
        cluster = load_config("emt_alloy", ["cluster.workers=2", "cluster.gpus=0"]).cluster
        with connect(cluster, folder / "workers.log") as workers:
            client = workers.client
            report(folder, directory, client, receipts, n_atoms)
    finally:
        shutil.rmtree(folder)


def report(folder: Path, directory: RunDirectory, client: Client, receipts: list[Receipt], n_atoms: int) -> None:
    before = client.run(peak).values()
    driver_before = peak()
    config = load_config("emt_alloy")
    driver = Driver(directory, DaskPool(Workers(client), frozenset()), Ledger(directory), config.faults)
    run = Run(config, {}, driver)
    sources = [storing.LabelledUnit(stage="label", key=receipt.key) for receipt in receipts]
    started = time.perf_counter()
    pack_dataset(run, receipts, sources, directory.dataset, {})
    seconds = time.perf_counter() - started
    size = sum(file.stat().st_size for file in directory.dataset.rglob("*") if file.is_file())
    started = time.perf_counter()
    problems = verify(directory.dataset)
    verified = time.perf_counter() - started
    n_structures = len(receipts) * UNIT
    held = open_dataset(directory.dataset).nbytes
    after = client.run(peak).values()
    print(f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB; two workers, one thread each")
    print(f"{n_structures:,} structures, {n_atoms:,} atoms in {len(receipts):,} units of labels")
    print(f"packed in {seconds:.1f} s: {size / seconds / 1e6:.0f} MB/s, {n_structures / seconds:,.0f} structures/s")
    for stage, row in driver.stages.items():
        print(f"  {stage:<12} {row['units']:>4} units {row['seconds']:>7.1f} s")
    print(f"dataset: {size / 1e6:.0f} MB on disk for {held / 1e6:.0f} MB of numbers")
    print(f"verified in {verified:.1f} s: {problems or 'whole'}")
    for name, first, last in zip(("one worker", "the other"), before, after, strict=True):
        print(f"memory of {name}: {last / 1e6:.0f} MB (at its start {first / 1e6:.0f})")
    print(f"memory of the driver: {peak() / 1e6:.0f} MB (before it packed {driver_before / 1e6:.0f})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 120_000)
