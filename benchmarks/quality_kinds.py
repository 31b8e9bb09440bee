"""Six clean sets of the kinds that people import, for the quality gate.

Run: ``python benchmarks/quality_kinds.py FOLDER``, then ``python benchmarks/quality.py FOLDER/*.zarr``. The frames are
written as extxyz in a shuffled order, without lineage, and brought in by ``daskpipe import``:

* metals: molecular dynamics of Cu-Au crystals (EMT), 300 to 900 K
* oxide: shaken and strained MgO, TiO2 and CaO (CHGNet)
* molecules: shaken molecules of the G2 set (GFN2-xTB)
* liquid: molecular dynamics of liquid copper (EMT), 1700 K
* dimers: dissociation curves and isolated atoms of Cu, Ag, Au and Al, with a few crystals (EMT)
* surfaces: molecular dynamics of slabs of Cu and Pt with an adsorbed O (EMT), 400 K
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc100, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta

from daskpipe.cluster.connect import connect
from daskpipe.config.load import load_config
from daskpipe.pipeline import datasets

MOLECULES = ("H2O", "NH3", "CH4", "CH3OH", "C2H6", "CH3CHO", "HCN", "C6H6", "CH3NO2", "CO2", "C2H4", "N2H4")


def frozen(atoms: Atoms, calculator: Any) -> Atoms:
    """Return a copy of a structure with its labels."""
    found = atoms.copy()
    found.calc = calculator
    labels: dict[str, Any] = {"energy": found.get_potential_energy(), "forces": found.get_forces()}
    if found.pbc.all():
        labels["stress"] = found.get_stress()
    found.calc = SinglePointCalculator(found, **labels)
    return found


def trajectory(atoms: Atoms, kelvin: float, n_frames: int, stride: int, rng: np.random.Generator) -> Iterator[Atoms]:
    atoms.calc = EMT()
    thermalize_momenta(atoms, temperature_K=kelvin, rng=rng)
    dynamics = Langevin(atoms, 4 * units.fs, temperature_K=kelvin, friction=0.02, rng=rng, fixcm=False)
    dynamics.run(50)
    for _ in range(n_frames):
        dynamics.run(stride)
        yield frozen(atoms, EMT())


def metals(rng: np.random.Generator) -> Iterator[Atoms]:
    for number in range(14):
        crystal = bulk("Cu", cubic=True, a=3.8) * (2, 2, 1)
        crystal.numbers[rng.permutation(16)[: number % 9]] = 79
        crystal.set_cell(crystal.cell * (1 + 0.02 * (number % 9) / 8), scale_atoms=True)
        yield from trajectory(crystal, 300 + 50 * (number % 13), 12, 8, rng)


def oxide(rng: np.random.Generator) -> Iterator[Atoms]:
    import warnings

    from ase.spacegroup import crystal

    from daskpipe.potentials import Results, build_potential, evaluate

    rutile = crystal(
        ["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.59, 4.59, 2.96, 90, 90, 90]
    )
    seeds = [
        bulk("MgO", "rocksalt", a=4.21, cubic=True),
        rutile * (1, 1, 2),
        bulk("CaO", "rocksalt", a=4.81, cubic=True),
    ]
    frames = []
    for seed in seeds:
        for volume in (0.94, 1.0, 1.06):
            for _ in range(14):
                frame = seed.copy()
                frame.set_cell(frame.cell * volume ** (1 / 3), scale_atoms=True)
                frame.rattle(rng.uniform(0.02, 0.1), rng=rng)
                frames.append(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for frame, found in zip(frames, evaluate(build_potential("chgnet", {}, "cpu", "float32"), frames), strict=True):
            assert isinstance(found, Results)
            labels = {"energy": found.energy, "forces": found.forces, "stress": found.stress}
            frame.calc = SinglePointCalculator(frame, **labels)
            yield frame


def molecules(rng: np.random.Generator) -> Iterator[Atoms]:
    from daskpipe.potentials import Results, build_potential, evaluate

    frames = []
    for name in MOLECULES:
        for _ in range(12):
            frame = molecule(name)
            frame.rattle(rng.uniform(0.02, 0.1), rng=rng)
            frames.append(frame)
    for frame, found in zip(frames, evaluate(build_potential("xtb", {}, "cpu", "float64"), frames), strict=True):
        assert isinstance(found, Results)
        frame.calc = SinglePointCalculator(frame, energy=found.energy, forces=found.forces)
        yield frame


def liquid(rng: np.random.Generator) -> Iterator[Atoms]:
    for _ in range(6):
        box = bulk("Cu", cubic=True, a=3.9) * (2, 2, 2)
        box.rattle(0.3, rng=rng)
        yield from trajectory(box, 1700, 25, 10, rng)


def dimers(rng: np.random.Generator) -> Iterator[Atoms]:
    symbols = ("Cu", "Ag", "Au", "Al")
    for symbol in symbols:
        yield frozen(Atoms(symbol, cell=3 * [25.0], pbc=True), EMT())
    for pair in combinations_with_replacement(symbols, 2):
        for far in np.linspace(1.5, 8.5, 15):
            dimer = Atoms(pair, positions=[[0, 0, 0], [0, 0, far]], cell=3 * [25.0], pbc=True)
            yield frozen(dimer, EMT())
    for symbol, length in (("Cu", 3.61), ("Ag", 4.09)):
        for _ in range(3):
            crystal = bulk(symbol, cubic=True, a=length)
            crystal.rattle(0.05, rng=rng)
            yield frozen(crystal, EMT())


def surfaces(rng: np.random.Generator) -> Iterator[Atoms]:
    for number in range(12):
        face, symbol = (fcc111, fcc100)[number % 2], ("Cu", "Pt")[number // 2 % 2]
        slab = face(symbol, (2, 2, 3), vacuum=7.0)
        if number % 3:
            add_adsorbate(slab, "O", 1.2, "ontop" if number % 3 == 1 else "hollow" if face is fcc100 else "fcc")
        slab.pbc = (True, True, False)
        yield from trajectory(slab, 400, 12, 8, rng)


KINDS: dict[str, Callable[[np.random.Generator], Iterator[Atoms]]] = {
    "metals": metals, "oxide": oxide, "molecules": molecules, "liquid": liquid, "dimers": dimers, "surfaces": surfaces,
}  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config("quickstart", ["cluster.workers=1", "cluster.gpus=0"])
    with connect(config.cluster, folder / "workers.log") as workers:
        for number, (name, make) in enumerate(KINDS.items()):
            if (out := folder / f"{name}.zarr").exists():
                continue
            rng = np.random.default_rng(number)
            frames = list(make(rng))
            file = folder / f"{name}.xyz"
            ase.io.write(file, [frames[row] for row in rng.permutation(len(frames))], format="extxyz")
            done = datasets.import_labelled([str(file)], out, method="benchmark", client=workers.client)
            print(f"{name}: {done.n_out} frames, {done.report['n_groups']} groups, {done.report['counts']}", flush=True)


if __name__ == "__main__":
    main()
