"""SOAP per atom, one thread, next to dscribe, featomic and quippy; its derivatives; one Dask worker next to two.

Run: ``pip install featomic quippy-ase`` and ``python benchmarks/soap.py``. The programs take turns; in its
turn each describes the same frames, from ``ase.Atoms`` to arrays with a row an atom, neighbour search included; frame
by frame, each dropped at once, as where it is reduced on the way, but for featomic, which is faster with a list.
What is printed are medians over turns, in microseconds an atom, and their ratios to daskpipe in float32.

dscribe and daskpipe give the same numbers. They count neighbours up to ``r_cut + 3.72 sigma``, featomic and quippy up
to ``r_cut`` only, so these two have less to do. featomic's blocks are left as it makes them, not moved into one array.

Derivatives are of a cluster, since dscribe has analytical ones of open structures only: an array of every feature of
every atom by every position, and the derivatives of a weighted sum of the features, which only daskpipe has.
``--derivatives`` prints them alone, and needs neither featomic nor quippy.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers

# featomic's threads; the others have one.
os.environ["RAYON_NUM_THREADS"] = "1"

HYPERS = {"r_cut": 5.0, "n_max": 8, "l_max": 6, "sigma": 1.0}
Program = Callable[[list[Atoms]], object]
SPECIES = ["Cu", "Ag", "Au", "Ni", "Pd", "Pt", "Al", "Fe", "Ti"]


def frames(n_species: int, n_frames: int) -> list[Atoms]:
    """fcc Cu, 108 atoms, displaced by 0.1 Å, elements drawn at random."""
    rng = np.random.default_rng(n_species)
    made = []
    for _ in range(n_frames):
        atoms = bulk("Cu", cubic=True) * (3, 3, 3)
        atoms.rattle(0.1, rng=rng)
        atoms.wrap()
        atoms.symbols[:] = rng.choice(SPECIES[:n_species], len(atoms))
        made.append(atoms)
    return made


def frame_by_frame(describe: Callable[[Atoms], object]) -> Program:
    """Describe one frame after another and keep nothing."""

    def program(structures: list[Atoms]) -> None:
        for atoms in structures:
            describe(atoms)

    return program


def daskpipe_soap(species: list[str], dtype: str) -> Program:
    from daskpipe import SOAP

    soap = SOAP(species=species, dtype=dtype, **HYPERS)
    return frame_by_frame(lambda atoms: soap.compute([atoms]))


def dscribe_soap(species: list[str]) -> Program:
    from dscribe.descriptors import SOAP

    return frame_by_frame(SOAP(species=species, periodic=True, dtype="float32", **HYPERS).create)


def featomic_soap(species: list[str]) -> Program:
    from featomic import SoapPowerSpectrum

    soap = SoapPowerSpectrum(
        cutoff={"radius": HYPERS["r_cut"], "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
        density={"type": "Gaussian", "width": HYPERS["sigma"]},
        basis={
            "type": "TensorProduct",
            "max_angular": HYPERS["l_max"],
            "radial": {"type": "Gto", "max_radial": HYPERS["n_max"] - 1},
        },
    )
    return soap.compute


def quippy_soap(species: list[str]) -> Program:
    from quippy.descriptors import Descriptor

    numbers = " ".join(str(number) for number in sorted(atomic_numbers[symbol] for symbol in species))
    soap = Descriptor(
        f"soap cutoff={HYPERS['r_cut']} l_max={HYPERS['l_max']} n_max={HYPERS['n_max']} atom_sigma={HYPERS['sigma']} "
        f"n_Z={len(species)} Z={{{numbers}}} n_species={len(species)} species_Z={{{numbers}}}"
    )
    return frame_by_frame(soap.calc_descriptor)


PROGRAMS: dict[str, Callable[[list[str]], Program]] = {
    "daskpipe": lambda species: daskpipe_soap(species, "float32"),
    "daskpipe float64": lambda species: daskpipe_soap(species, "float64"),
    "dscribe": dscribe_soap,
    "featomic": featomic_soap,
    "quippy": quippy_soap,
}


def compare_derivatives(rounds: int) -> None:
    """Print the times of all derivatives of a cluster, in turns, and of their projection."""
    import dscribe.descriptors

    import daskpipe

    print("108-atom fcc clusters, derivatives of all features by all positions, float64, ms a cluster")
    print(f"{'species':<9}{'program':<24}{'median':>9}{'fastest':>9}{'x daskpipe':>12}")
    for n_species in (1, 2, 4):
        species = SPECIES[:n_species]
        atoms = frames(n_species, 1)[0]
        atoms.pbc = False
        ours, theirs = daskpipe.SOAP(species=species, **HYPERS), dscribe.descriptors.SOAP(species=species, **HYPERS)
        weights = np.random.default_rng(0).normal(size=ours.n_features)
        programs: dict[str, Callable[[], object]] = {
            "daskpipe": lambda ours=ours, atoms=atoms: ours.derivatives(atoms, method="analytical"),
            "dscribe": lambda theirs=theirs, atoms=atoms: theirs.derivatives(atoms, method="analytical"),
            "daskpipe, projected": lambda ours=ours, atoms=atoms, weights=weights: ours.project_derivatives(
                atoms, weights
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for number in range(rounds + 1):
            for name, program in programs.items():
                started = time.perf_counter()
                program()
                if number:  # the first turn compiles or loads the kernels
                    seconds[name].append((time.perf_counter() - started) * 1e3)
        base = statistics.median(seconds["daskpipe"])
        for name, values in seconds.items():
            median = statistics.median(values)
            print(f"{n_species:<9}{name:<24}{median:>9.1f}{min(values):>9.1f}{median / base:>12.2f}")


def describe(species: list[str], n_frames: int, seed: int) -> float:
    """Describe frames on a worker; return something small that depends on all of it."""
    from daskpipe import SOAP

    soap = SOAP(species=species, dtype="float32", **HYPERS)
    rows = [soap.compute([atoms]).sum(dtype=np.float64) for atoms in frames(len(species), 4) * (n_frames // 4)]
    return float(sum(rows)) + 0 * seed


def scaling(n_frames: int, rounds: int) -> float:
    """Throughput of two Dask workers over that of one; both have the same work each."""
    from distributed import Client, LocalCluster

    species = SPECIES[:4]
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        workers = list(client.scheduler_info()["workers"])
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for number in range(rounds + 1):
            for n_workers in seconds:
                started = time.perf_counter()
                tasks = [
                    client.submit(describe, species, n_frames, number, workers=[name], pure=False)
                    for name in workers[:n_workers]
                ]
                client.gather(tasks)
                if number:  # the first round compiles or loads the kernels
                    seconds[n_workers].append((time.perf_counter() - started) / n_workers)
    return statistics.median(seconds[1]) / statistics.median(seconds[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--derivatives", action="store_true", help="compare derivatives only")
    arguments = parser.parse_args()
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    print(f"{model.split(': ')[1]}, {os.cpu_count()} cores; Python {platform.python_version()}")
    packages = ("dscribe", "numba") if arguments.derivatives else ("dscribe", "featomic", "quippy-ase", "numba")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    if arguments.derivatives:
        compare_derivatives(arguments.rounds)
        return
    print(f"108-atom fcc frames, {', '.join(f'{name} {value}' for name, value in HYPERS.items())}; one thread\n")
    print(f"{'species':<9}{'program':<18}{'us/atom':>9}{'fastest':>9}{'x daskpipe':>12}")
    for n_species in (1, 4, 9):
        structures = frames(n_species, arguments.frames)
        programs = {name: make(SPECIES[:n_species]) for name, make in PROGRAMS.items()}
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for number in range(arguments.rounds + 1):
            for name, program in programs.items():
                copies = [atoms.copy() for atoms in structures]  # quippy writes into what it is given
                started = time.perf_counter()
                program(copies)
                if number:  # the first turn compiles or loads the kernels
                    seconds[name].append((time.perf_counter() - started) / sum(map(len, structures)) * 1e6)
        ours = statistics.median(seconds["daskpipe"])
        for name, values in seconds.items():
            median = statistics.median(values)
            print(f"{n_species:<9}{name:<18}{median:>9.1f}{min(values):>9.1f}{median / ours:>12.1f}")
    print()
    compare_derivatives(arguments.rounds)
    print(f"\ntwo workers over one: {scaling(2400, arguments.rounds):.2f}")


if __name__ == "__main__":
    main()
