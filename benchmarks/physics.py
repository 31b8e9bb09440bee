"""Figures of physics: repulsion, stresses of open cells, xTB's one k-point, time steps, barostats, energies of swaps.

Run: ``python benchmarks/physics.py [zbl] [stress] [xtb] [timestep] [barostat] [energy]``. Without a word it does all
but ``xtb``, which takes an hour; ``xtb=60`` stops at cells of 60 atoms. One thread, no GPU. Where a figure has a
``before`` it is computed here as well, with what the code did then.
"""

# ruff: noqa: E402

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.collections import g2
from ase.eos import EquationOfState
from ase.stress import voigt_6_to_full_3x3_stress

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
warnings.filterwarnings("ignore")

from solids import solids

from daskpipe.core import constants
from daskpipe.core.geometry import cell_widths
from daskpipe.potentials import Failure, batched_model, build_potential, evaluate, zbl
from daskpipe.potentials.batches import make_state
from daskpipe.stages.explore.batch import Batch
from daskpipe.stages.explore.ensembles import choose_ensemble
from daskpipe.stages.explore.guards import finite_guard
from daskpipe.stages.explore.order import ORDER, strongest_reflection
from daskpipe.stages.explore.settings import Dynamics
from daskpipe.stages.explore.timesteps import timestep_of
from daskpipe.stages.explore.trajectory import Condition, Trajectory

CPU = torch.device("cpu")
MOST_ATOMS = 260
SANE = [finite_guard()]


def run(model: torch.nn.Module, structures: list[Atoms]) -> dict[str, np.ndarray]:
    out = model(make_state(structures, CPU, torch.float64))
    return {name: value.numpy() for name, value in out.items()}


def title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


# --- repulsion of nuclei ------------------------------------------------------------------------------


@contextmanager
def reach(value: float) -> Iterator[None]:
    before, zbl.REACH = zbl.REACH, value
    try:
        yield
    finally:
        zbl.REACH = before


def lattice_constant(repulsion: bool) -> float:
    model = batched_model(build_potential("emt", {}, "cpu", "float64"))
    model = zbl.add_repulsion(model, {"Cu"}) if repulsion else model
    lengths = np.linspace(3.5, 3.75, 26)
    energies = run(model, [bulk("Cu", "fcc", a=a) for a in lengths])["energy"]
    volume = EquationOfState(lengths**3 / 4, energies).fit()[0]
    return float((4 * volume) ** (1 / 3))


def measure_zbl() -> None:
    title("Repulsion of nuclei (explore.repulsion=zbl): what equilibrium feels of it")
    crystals = solids()
    molecules = {name: g2[name] for name in g2.names if len(g2[name]) > 1}
    print(f"EMT copper, lattice constant without repulsion: {lattice_constant(False):.4f} Å")
    for name, value in (("before, to the sum of covalent radii", 1.0), (f"now, to {zbl.REACH:g} of it", zbl.REACH)):
        with reach(value):
            bare = batched_model(
                build_potential("lj", {"epsilon": 1e-12, "sigma": 0.5, "r_cut": 1.0}, "cpu", "float64"), stress=True
            )
            wall = zbl.add_repulsion(bare).wall
            of_solids, of_molecules = run(wall, list(crystals.values())), run(wall, list(molecules.values()))
            pressures = -np.trace(of_solids["stress"], axis1=1, axis2=2) / 3 / constants.GPA
            ends = np.cumsum([len(atoms) for atoms in molecules.values()])[:-1]
            forces = np.array([np.abs(part).max() for part in np.split(of_molecules["forces"], ends)])
            worst = np.argsort(-pressures)[:5]
            print(
                f"{name}: pushes on {int((pressures > 1e-9).sum())} of {len(crystals)} solids and "
                f"{int((forces > 1e-9).sum())} of {len(molecules)} g2 molecules; copper's lattice constant "
                f"{lattice_constant(True):.4f} Å"
            )
            if pressures.max() > 0:
                named = ", ".join(f"{list(crystals)[index]} {pressures[index]:.1f}" for index in worst)
                hardest = np.argsort(-forces)[:4]
                pulled = ", ".join(f"{list(molecules)[index]} {forces[index]:.1f}" for index in hardest)
                print(f"  GPa: {named}, TiO2 {pressures[list(crystals).index('TiO2')]:.1f}; eV/Å: {pulled}")


# --- stress of open cells -----------------------------------------------------------------------------


def measure_stress() -> None:
    title("Stress of MACE (bundled, float64) in open cells, along the first periodic vector, GPa")
    from mace.calculators import MACECalculator

    potential = build_potential("mace", {}, "cpu", "float64")
    theirs = MACECalculator(models=potential.calculator.models, device="cpu", default_dtype="float64")
    print("pbc    finite differences   ours   MACECalculator's own   ours through ASE   label")
    for pbc in ((True, True, True), (True, True, False), (False, True, False)):
        atoms = fcc111("Cu", (2, 2, 3), vacuum=6.0)
        atoms = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=pbc)
        atoms.rattle(0.1, seed=5)
        vector = atoms.cell.array[pbc.index(True)]
        along = vector / np.linalg.norm(vector)
        energies = []
        for step in (1e-5, -1e-5):
            deformation = np.eye(3) + step * np.outer(along, along)
            strained = Atoms(
                atoms.numbers, positions=atoms.positions @ deformation, cell=atoms.cell @ deformation, pbc=pbc
            )
            energies.append(evaluate(potential, [strained])[0].energy)
        slope = (energies[0] - energies[1]) / 2e-5 / atoms.get_volume()
        ours = along @ run(batched_model(potential, stress=True), [atoms])["stress"][0] @ along
        own = along @ voigt_6_to_full_3x3_stress(theirs.get_stress(atoms)) @ along
        through_ase = potential.calculator.get_stress(atoms)[0]
        label = evaluate(potential, [atoms])[0].stress[0]
        numbers = [value / constants.GPA for value in (slope, ours, own, through_ase, label)]
        word = "".join("T" if periodic else "F" for periodic in pbc)
        print(
            f"{word}    {numbers[0]:18.5f} {numbers[1]:10.5f} {numbers[2]:14.5f} {numbers[3]:20.5f} {numbers[4]:12.5f}"
        )


# --- xTB ----------------------------------------------------------------------------------------------


def measure_xtb(most_atoms: int) -> None:
    title("Periodic xTB, which has one k-point: eV an atom by the width of the cell")
    print("in brackets the electrons an atom in partly filled levels")
    crystals = solids()
    for method in ("GFN1-xTB", "GFN2-xTB"):
        potential = build_potential("xtb", {"method": method, "min_width": 0}, "cpu", "float64")
        for name in ("MgO", "NaCl", "C", "Si", "SiO2", "TiO2", "ZnO", "CO2", "Al", "Cu", "Na"):
            words = []
            for times in range(1, 6):
                atoms = crystals[name].repeat(times)
                if len(atoms) > most_atoms:
                    break
                (found,) = evaluate(potential, [atoms])
                width = cell_widths(atoms.cell.array).min()
                if isinstance(found, Failure):
                    words.append(f"{width:.1f} Å {found.reason}")
                    continue
                filled = np.asarray(potential.calculator._res["orbital-occupations"])
                partly = np.sum(filled * (2 - filled)) / len(atoms)
                words.append(f"{width:.1f} Å ({len(atoms)} atoms) {found.energy / len(atoms):.3f} [{partly:.4f}]")
            print(f"{method} {name}: {'; '.join(words)}", flush=True)


# --- dynamics -----------------------------------------------------------------------------------------


def make_trajectory(atoms: Atoms, temperature: float, ensemble: str) -> Trajectory:
    seed = atoms.copy()
    seed.info = {"condition": Condition(temperature=temperature)}
    return Trajectory(seed=seed, ensemble=ensemble, run_seed=1)


def conserved(atoms: Atoms, model: torch.nn.Module, temperature: float, timestep: float, femtoseconds: float) -> str:
    """Run at constant energy; return how much the total energy changes, meV an atom, or when it breaks."""
    n_steps = round(femtoseconds / timestep)
    settings = Dynamics(temperatures=[temperature], steps=n_steps, stride=1, timestep=timestep)
    moving = Batch([make_trajectory(atoms, temperature, "nve")], model, settings)
    totals = []
    for number in range(n_steps):
        moving.run_steps(1, SANE, lambda: True)
        state, masses = moving.state, moving.systems.masses
        totals.append(float(state.energy[0]) + 0.5 * float((state.momenta.square() / masses).sum()))
        if not np.isfinite(totals[-1]) or abs(totals[-1] - totals[0]) > len(atoms) * 1.0:
            return f"breaks at step {number + 1}"
    totals = np.array(totals) * 1000 / len(atoms)
    return f"{totals.std():.2g}"


def measure_timestep() -> None:
    title("Time steps: standard deviation of the total energy at constant energy, meV an atom, in 200 fs")
    xtb = batched_model(build_potential("xtb", {"accuracy": 0.1}, "cpu", "float64"))
    emt = batched_model(build_potential("emt", {}, "cpu", "float64"))
    mace = batched_model(build_potential("mace", {}, "cpu", "float64"))
    cases = {name: (molecule(name), xtb, 400.0) for name in ("CH4", "H2O", "H2", "N2", "CO2", "C2H2")}
    cases |= {
        "Al (EMT)": (bulk("Al", cubic=True).repeat(2), emt, 600.0),
        "Cu (EMT)": (bulk("Cu", cubic=True).repeat(2), emt, 900.0),
        "Cu (MACE)": (bulk("Cu", cubic=True), mace, 900.0),
    }
    for name, (atoms, model, temperature) in cases.items():
        auto = timestep_of("auto", atoms.get_masses())
        words = [
            f"{step:g} fs{' (auto)' if step == auto else ''}: {conserved(atoms, model, temperature, step, 200)}"
            for step in sorted({auto, *((0.25, 0.5, 1.0, 2.0, 4.0) if model is xtb else (2.0, 4.0, 8.0, 16.0))})
        ]
        print(f"{name}, {temperature:g} K: {'; '.join(words)}", flush=True)


def deviatoric(moving: Batch) -> float:
    stress = moving.state.stress[0].numpy() / constants.GPA
    return float(stress[2, 2] - (stress[0, 0] + stress[1, 1]) / 2)


def melt(symbol: str, n: int, model: torch.nn.Module, temperature: float, n_steps: int) -> Atoms:
    atoms = bulk(symbol, cubic=True).repeat(n)
    atoms.set_cell(atoms.cell * 1.05, scale_atoms=True)
    settings = Dynamics(temperatures=[temperature], steps=n_steps, stride=1, timestep=4.0, friction=0.05)
    moving = Batch([make_trajectory(atoms, temperature, "nvt_langevin")], model, settings)
    moving.run_steps(n_steps, SANE, lambda: True)
    return moving.geometry_of(0)


def measure_barostat() -> None:
    title("auto: strains of the cell, and what counts as a crystal")
    model = batched_model(build_potential("emt", {}, "cpu", "float64"), stress=True)
    ordered = Atoms("CuAu", positions=[[0, 0, 0], [0.5, 0.5, 0.5]], cell=np.eye(3), pbc=True)
    ordered.set_cell(np.diag([2.72, 2.72, 3.72]), scale_atoms=True)
    ordered = ordered.repeat((3, 3, 3))
    print(f"L1_0 CuAu with EMT at 300 K, auto is {choose_ensemble(ordered)}; mean over the last half of 8 ps")
    for name in ("npt_isotropic", choose_ensemble(ordered)):
        settings = Dynamics(
            temperatures=[300.0], steps=2000, stride=1, timestep=4.0, compressibility=0.007, barostat_time=200.0
        )
        moving = Batch([make_trajectory(ordered, 300.0, name)], model, settings)
        first = deviatoric(moving)
        ratios, stresses = [], []
        for _ in range(200):
            moving.run_steps(10, SANE, lambda: True)
            cell = moving.state.cell[0].numpy()
            ratios.append(cell[2, 2] / cell[0, 0])
            stresses.append(deviatoric(moving))
        half = len(ratios) // 2
        print(
            f"  {name}: c/a {3.72 / 2.72:.3f} at the start, {np.mean(ratios[half:]):.3f} then; zz - (xx + yy)/2 of the "
            f"virial stress {first:.2f} GPa at the start, {np.mean(stresses[half:]):.2f} GPa then"
        )
    print(f"strongest reflection over that of a perfect lattice; a crystal has {ORDER:g} and more")
    rng, found = np.random.default_rng(0), []
    for name, atoms in solids().items():
        crystal = atoms.repeat(2 if len(atoms) > 6 else 3)
        crystal.rattle(0.1, rng=rng)
        found.append((strongest_reflection(crystal), name))
    least = ", ".join(f"{name} {value:.2f}" for value, name in sorted(found)[:4])
    print(f"  {len(found)} solids, atoms off by 0.1 Å: least {least}")
    emt = batched_model(build_potential("emt", {}, "cpu", "float64"))
    for n, atoms in ((2, 32), (3, 108)):
        hot = (3000.0, 3500.0, 4000.0)
        melts = [strongest_reflection(melt("Cu", n, emt, temperature, 500)) for temperature in hot]
        print(
            f"  EMT copper, {atoms} atoms, 2 ps at 3000, 3500 and 4000 K: "
            f"{', '.join(f'{value:.2f}' for value in melts)}"
        )
        warm = strongest_reflection(melt("Cu", n, emt, 600.0, 500))
        print(f"  EMT copper, {atoms} atoms, 2 ps at 600 K, 16 % more volume: {warm:.2f}")


# --- energies -----------------------------------------------------------------------------------------


def measure_energy() -> None:
    title("Swaps with all-electron energies of the atoms (bundled MACE in float32, Cu -4.5e4 eV, Au -5.2e5 eV)")
    from daskpipe.potentials.mace import BUNDLED
    from daskpipe.potentials.mace_files import load_model
    from daskpipe.potentials.mace_model import MixedMace

    rng = np.random.default_rng(1)
    atoms = bulk("Cu", cubic=True, a=3.9).repeat(3)
    atoms.symbols[rng.permutation(len(atoms))[:54]] = "Au"
    atoms.rattle(0.1, seed=2)
    swaps = []
    for _ in range(50):
        one, other = (int(rng.choice(np.flatnonzero(atoms.symbols == symbol))) for symbol in ("Cu", "Au"))
        swapped = atoms.copy()
        swapped.positions[[one, other]] = swapped.positions[[other, one]]
        swaps.append(swapped)

    def differences(dtype: torch.dtype, deep: bool, single: bool) -> np.ndarray:
        module = load_model(BUNDLED, str(dtype).removeprefix("torch."))
        if deep:
            free = {29: -4.5e4, 47: -1.4e5, 79: -5.2e5}
            module.atomic_energies_fn.atomic_energies += torch.tensor([[free[int(z)] for z in module.atomic_numbers]])
        model = MixedMace(module, CPU, dtype, compute_stress=False, head="Default")
        if single:
            model.model = model.model.model  # the sum as MACE makes it
        energies = run(model, [atoms, *swaps])["energy"]
        return energies[1:] - energies[0]

    exact = differences(torch.float64, False, False)
    kt = constants.KB * 300
    print(
        f"{len(swaps)} swaps in {len(atoms)} atoms; {exact.min():.2f} to {exact.max():.2f} eV; kT at 300 K {kt:.4f} eV"
    )
    for name, single in (("before, sums in float32", True), ("now, sums in float64", False)):
        off = np.abs(differences(torch.float32, True, single) - exact)
        print(f"  {name}: off by {np.sqrt(np.mean(off**2)):.2g} eV (root mean square), {off.max():.2g} eV at most")


def main() -> None:
    words = sys.argv[1:] or ["zbl", "stress", "timestep", "barostat", "energy"]
    for word in words:
        name, _, most = word.partition("=")
        started = time.perf_counter()
        if name == "xtb":
            measure_xtb(int(most or MOST_ATOMS))
        else:
            {
                "zbl": measure_zbl,
                "stress": measure_stress,
                "timestep": measure_timestep,
                "barostat": measure_barostat,
                "energy": measure_energy,
            }[name]()
        print(f"({name}: {time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
