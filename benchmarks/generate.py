"""Generate the classic mix of seeds on two workers: time, memory, counts, diversity, and an independent check.

python benchmarks/generate.py 1200 120000

The mix is ``generate=classic_mix``: half molecules of 10 to 100 atoms, a third crystals, clusters and surfaces, of H,
C, N, O, F, Si, P, S and Cl. The check reads the file that was written and uses none of daskpipe's geometry: distances
by ASE's neighbour list, molecules by RDKit: bonds from the geometry alone, then its sanitiser.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import batched, combinations, groupby
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import psutil
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from rdkit import Chem, RDLogger
from rdkit.Chem import rdDetermineBonds
from scipy.optimize import Bounds, LinearConstraint, milp

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


@cache
def sanitise(smiles: str) -> str:
    """Return the canonical SMILES with bond orders of a molecule given by its bonds alone.

    The orders are the least that give every atom a valence that RDKit allows it without a charge, by integer
    programming (RDKit's own search is exponential in the number of sulfur and phosphorus atoms). RDKit's sanitiser
    then judges the molecule.
    """
    molecule = Chem.MolFromSmiles(smiles, sanitize=False)
    table = Chem.GetPeriodicTable()
    atoms, bonds = list(molecule.GetAtoms()), list(molecule.GetBonds())
    # Nitro groups have five bonds at nitrogen here; the sanitiser writes them with charges.
    allowed = {atom.GetAtomicNum(): [*table.GetValenceList(atom.GetAtomicNum())] for atom in atoms} | {7: [3, 5]}
    choices = [(atom.GetIdx(), valence) for atom in atoms for valence in allowed[atom.GetAtomicNum()]]
    # Each atom has one of its valences, and its bonds have orders that sum up to it.
    sums = np.zeros((2 * len(atoms), len(bonds) + len(choices)))
    for column, bond in enumerate(bonds):
        sums[[bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()], column] = 1
    for column, (atom, valence) in enumerate(choices, len(bonds)):
        sums[atom, column], sums[len(atoms) + atom, column] = -valence, 1
    wanted = np.repeat([0, 1], len(atoms))
    low, high = np.repeat([1, 0], [len(bonds), len(choices)]), np.repeat([3, 1], [len(bonds), len(choices)])
    cost = np.concatenate([np.ones(len(bonds)), np.zeros(len(choices))])
    found = milp(cost, constraints=LinearConstraint(sums, wanted, wanted), bounds=Bounds(low, high), integrality=1)
    if found.x is None:
        raise ValueError("no bond orders satisfy all valences")
    for bond, order in zip(bonds, found.x, strict=False):
        bond.SetBondType(Chem.BondType.values[round(order)])
    Chem.SanitizeMol(molecule)
    return str(Chem.MolToSmiles(Chem.RemoveHs(molecule)))


def check_molecule(atoms: Atoms) -> str:
    """Return the SMILES of a molecule; raise ValueError with its fault if it has one."""
    lines = [f"{s} {x:.6f} {y:.6f} {z:.6f}" for s, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)]
    molecule = Chem.MolFromXYZBlock("\n".join([str(len(atoms)), "", *lines]))
    rdDetermineBonds.DetermineConnectivity(molecule, useVdw=True, covFactor=1.25)
    if len(Chem.GetMolFrags(molecule)) != 1:
        raise ValueError("more than one fragment")
    if any(atom.GetDegree() != 1 for atom in molecule.GetAtoms() if atom.GetAtomicNum() == 1):
        raise ValueError("a hydrogen without one bond")
    return sanitise(Chem.MolToSmiles(molecule))


def sort_distances(atoms: Atoms) -> np.ndarray:
    """Return the distances of all pairs of atoms, sorted among those of the same two elements."""
    i, j = np.triu_indices(len(atoms), 1)
    numbers = np.sort(atoms.numbers[np.stack([i, j])], axis=0)
    distances = np.linalg.norm(atoms.positions[i] - atoms.positions[j], axis=1)
    return distances[np.lexsort((distances, *numbers))]


def check(group: list[Atoms]) -> tuple[str, int, list[str], set[str], float]:
    """Check structures of one source and formula that stand together in the file.

    Returned are the source, the number of structures, the faults, the SMILES of molecules, and the least difference
    of two copies of one molecule: the root mean square difference of their sorted distances, Å.
    """
    RDLogger.DisableLog("rdApp.*")
    source = group[0].info["generator"]
    faults: list[str] = []
    graphs: dict[str, list[np.ndarray]] = {}
    for atoms in group:
        i, j, d = neighbor_list("ijd", atoms, {(a, b): 2.2 for a in set(atoms.symbols) for b in set(atoms.symbols)})
        radii = covalent_radii[atoms.numbers]
        if len(d) and (d < (LIMIT - 1e-4) * (radii[i] + radii[j])).any():
            faults.append("overlap")
        if source == "molecules":
            try:
                graphs.setdefault(check_molecule(atoms), []).append(sort_distances(atoms))
            except ValueError as error:
                faults.append(str(error))
        elif not atoms.pbc.any() and source != "clusters":
            faults.append("not periodic")
    pairs = [pair for copies in graphs.values() for pair in combinations(copies, 2)]
    least = min((float(np.sqrt(np.mean((a - b) ** 2))) for a, b in pairs), default=np.inf)
    return source, len(group), faults, set(graphs), least


def name_group(atoms: Atoms) -> tuple[str, str]:
    """Return the source and the formula of a structure."""
    return atoms.info["generator"], atoms.symbols.formula.format()


def read_groups(file: Path) -> Iterator[list[Atoms]]:
    """Yield structures that stand together in a file and have one source and formula, 64 at most."""
    for _, group in groupby(ase.io.iread(file), name_group):
        yield from map(list, batched(group, 64))


def main(n: int) -> None:
    """Print the figures for `n` structures."""
    with tempfile.TemporaryDirectory(prefix="daskpipe-bench-") as folder:
        out = Path(folder, "seeds.extxyz")
        seconds, peak, report = generate(n, out)
        size = out.stat().st_size
        started = time.perf_counter()
        with Pool(2) as pool:
            sources: Counter[str] = Counter()
            faults: Counter[str] = Counter()
            graphs: set[str] = set()
            closest = np.inf
            for source, count, faulty, molecules, least in pool.imap(check, read_groups(out), chunksize=32):
                sources[source] += count
                faults.update(f"{source}: {fault}" for fault in faulty)
                graphs |= molecules
                closest = min(closest, least)
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
    print(f"distinct molecules: {len(graphs):,}; two copies of one differ by {closest:.3f} Å or more")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", type=int, nargs="+", help="structures, one run each")
    for number in parser.parse_args().n:
        main(number)
