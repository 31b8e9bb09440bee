"""Generate the classic mix of seeds on two workers: time, memory, counts, diversity, and an independent check.

python benchmarks/generate.py 1200 120000

The mix is ``generate=classic_mix``: half molecules of 10 to 100 atoms, a third crystals, clusters and surfaces, of H,
C, N, O, F, Si, P, S and Cl. The check reads the file that was written and uses none of daskpipe's geometry: distances
by ASE's neighbour list, molecules by RDKit, whose bonds come from the geometry alone.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections import Counter
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import ase.io
import psutil
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

LIMIT = 0.6
"""Least distance of two atoms, over the sum of their covalent radii."""

SOURCES = {"molecules": 50, "binary": 12, "ternary": 10, "solutions": 10, "random": 1, "clusters": 10, "surfaces": 7}


def generate(n: int, out: Path) -> tuple[float, int, dict[str, Any]]:
    """Generate `n` structures; return seconds, the most memory of all processes together (bytes), and the report."""
    from daskpipe.pipeline.seeds import generate_file

    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        me = psutil.Process()
        while not done.wait(0.5):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        overrides = ["generate=classic_mix", f"generate.n={n}", "cluster.workers=2"]
        result = generate_file("emt_alloy", out, overrides, force=True)
    finally:
        done.set()
        watcher.join()
    return time.perf_counter() - started, peak, result.report | {"rejected": result.rejected}


def check(atoms: Atoms) -> tuple[str, str]:
    """Return the source and a fault of a structure; for a molecule without a fault its canonical SMILES."""
    source = atoms.info["generator"]
    i, j, d = neighbor_list("ijd", atoms, {(a, b): 2.2 for a in set(atoms.symbols) for b in set(atoms.symbols)})
    radii = covalent_radii[atoms.numbers]
    if len(d) and (d < (LIMIT - 1e-4) * (radii[i] + radii[j])).any():
        return source, "overlap"
    if source != "molecules":
        return source, "" if atoms.pbc.any() or source == "clusters" else "not periodic"
    from rdkit import Chem, RDLogger
    from rdkit.Chem import rdDetermineBonds

    RDLogger.DisableLog("rdApp.*")
    lines = [f"{s} {x:.6f} {y:.6f} {z:.6f}" for s, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)]
    molecule = Chem.MolFromXYZBlock("\n".join([str(len(atoms)), "", *lines]))
    try:
        rdDetermineBonds.DetermineConnectivity(molecule)
        parts = len(Chem.GetMolFrags(molecule))
        single = all(atom.GetDegree() == 1 for atom in molecule.GetAtoms() if atom.GetAtomicNum() == 1)
    except ValueError as error:
        return source, f"rdkit: {error}"
    if parts != 1:
        return source, f"{parts} fragments"
    if not single:
        return source, "a hydrogen with two bonds"
    return source, "ok " + Chem.MolToSmiles(molecule)


def main(n: int) -> None:
    """Print the figures for `n` structures."""
    with tempfile.TemporaryDirectory(prefix="daskpipe-bench-") as folder:
        out = Path(folder, "seeds.extxyz")
        seconds, peak, report = generate(n, out)
        size = out.stat().st_size
        started = time.perf_counter()
        with Pool(2) as pool:
            found = pool.imap(check, ase.io.iread(out), chunksize=200)
            sources: Counter[str] = Counter()
            faults: Counter[str] = Counter()
            graphs: set[str] = set()
            for source, what in found:
                sources[source] += 1
                if what.startswith("ok "):
                    graphs.add(what)
                elif what:
                    faults[f"{source}: {what}"] += 1
        checked = time.perf_counter() - started
    diversity = report["diversity"]
    wanted = {name: round(n * share / 100) for name, share in SOURCES.items()}
    each = seconds / n * 1e3
    print(f"\n{n:,} structures in {seconds:.0f} s ({each:.2f} ms each) on 2 workers; file {size / 1e6:.0f} MB")
    print(f"memory of all processes together, at most: {peak / 2**30:.2f} GiB")
    print(f"counts: {dict(sources)}; as asked: {dict(sources) == wanted}; rejected: {report['rejected']}")
    print(f"refused and replaced: {report['refused']}")
    print(f"elements: {len(diversity['elements'])} of 9; {diversity['elements']}")
    presence = diversity["entropy_presence_bits"]
    print(f"entropy {diversity['entropy_bits']:.3f} bits of at most 3.170; by presence {presence:.3f}")
    print(f"size: {diversity['size']}; types: {diversity['types']}, CV {diversity['types_cv']:.3f}")
    print(f"nearest neighbours: {diversity['nearest']}")
    print(f"independent check in {checked:.0f} s: {sum(faults.values())} faults {dict(faults)}")
    print(f"distinct molecules: {len(graphs):,}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", type=int, nargs="+", help="structures, one run each")
    for number in parser.parse_args().n:
        main(number)
