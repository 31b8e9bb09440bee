"""What the guards of exploration stop, and how often atoms hop into vacancies.

Run: ``python benchmarks/physics_guards.py [13] [14] [16]``; some minutes on one core. The liquids are 32 molecules at
the density of the liquid in a simple force field (below) that has them move, turn and vibrate as in a liquid.
Beside the guard the rule that stood before it (more parts, farther than 2.5 sums of covalent radii apart, than the
start has) is applied to the same frames.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from threadpoolctl import threadpool_limits

from daskpipe import potentials
from daskpipe.core import constants
from daskpipe.core.geometry import count_parts
from daskpipe.core.structures import round_positions
from daskpipe.core.torch_sim import ModelInterface
from daskpipe.potentials.batches import make_state
from daskpipe.stages.explore.capacity import BatchCapacity
from daskpipe.stages.explore.relaxation import add_relaxations
from daskpipe.stages.explore.runner import BatchRunner
from daskpipe.stages.explore.settings import Exploration
from daskpipe.stages.explore.trajectory import Condition, Trajectory
from daskpipe.stages.explore.vacancies import hop_sites, like_distances

KCAL = constants.KB * 503.2195  # eV; a kilocalorie a mole is 503.2 K
COULOMB = 14.399645
"""eV Å / e^2."""
N_STARTS, N_MOLECULES = 12, 32
STATES = {"Cu": 0, "Mg": 2, "O": -2, "Na": 1, "Cl": -1}


class LiquidField(ModelInterface):
    """Molecules with harmonic bonds and angles, Lennard-Jones and screened charges between them; cubic cells.

    Parameters are OPLS-AA's (DOI 10.1021/ja9621760) for methane and ammonia and a two-site Lennard-Jones for nitrogen.
    """

    SIGMA: ClassVar = {("CH4", "C"): 3.50, ("CH4", "H"): 2.50, ("N2", "N"): 3.31, ("NH3", "N"): 3.42, ("NH3", "H"): 1.0}
    EPSILON: ClassVar = {
        ("CH4", "C"): 0.066,
        ("CH4", "H"): 0.030,
        ("N2", "N"): 0.0741,
        ("NH3", "N"): 0.170,
        ("NH3", "H"): 0.0,
    }
    CHARGE: ClassVar = {
        ("CH4", "C"): -0.24,
        ("CH4", "H"): 0.06,
        ("N2", "N"): 0.0,
        ("NH3", "N"): -1.02,
        ("NH3", "H"): 0.34,
    }
    SPRING: ClassVar = {"CH4": 680.0, "N2": 3200.0, "NH3": 868.0}  # kcal/mol/Å^2, of the distance in a bond
    CROSS = 60.0  # kcal/mol/Å^2, of the distances across an angle

    def __init__(self, name: str) -> None:
        super().__init__()
        self._device, self._dtype = torch.device("cpu"), torch.float64
        self._compute_stress, self._compute_forces = False, True
        shape = molecule(name)
        self.size = len(shape)
        symbols = [(name, symbol) for symbol in shape.symbols] * N_MOLECULES
        sigma, epsilon, charge = (
            torch.tensor([table[symbol] for symbol in symbols], dtype=torch.float64)
            for table in (self.SIGMA, self.EPSILON, self.CHARGE)
        )
        self.sigma = (sigma[:, None] * sigma).sqrt()
        self.epsilon = KCAL * (epsilon[:, None] * epsilon).sqrt()
        self.charges = COULOMB * charge[:, None] * charge
        owner = torch.arange(len(symbols)) // self.size
        self.other = owner[:, None] != owner
        lengths = torch.as_tensor(shape.get_all_distances())
        self.lengths = lengths.repeat(N_MOLECULES, N_MOLECULES)
        bonded = lengths < 1.25
        spring = KCAL * torch.where(bonded, self.SPRING[name], self.CROSS).to(torch.float64)
        self.springs = torch.where(self.other, 0.0, spring.repeat(N_MOLECULES, N_MOLECULES))

    def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
        """Return energy and forces of systems of equal molecules."""
        n_systems = len(state.cell)
        positions = state.positions.detach().clone().requires_grad_(True)
        edge = state.cell[:, 0, 0][:, None, None, None]
        vectors = positions.view(n_systems, -1, 1, 3) - positions.view(n_systems, 1, -1, 3)
        vectors = vectors - edge * torch.round(vectors / edge).detach()
        square = vectors.square().sum(dim=-1)
        distance = (square + torch.eye(square.shape[1])).sqrt()
        cutoff = edge[:, :, :, 0] / 2
        near = self.other & (distance < cutoff)
        ratio = (self.sigma / distance) ** 6
        shifted = (1 / distance - 1 / cutoff) * torch.exp(-0.2 * distance)
        pairs = 4 * self.epsilon * (ratio * ratio - ratio) + self.charges * shifted
        within = 0.5 * self.springs * (distance - self.lengths).square() * (self.springs > 0)
        within = within - torch.diag_embed(torch.diagonal(within, dim1=1, dim2=2))
        energy = 0.5 * (torch.where(near, pairs, 0.0) + within).sum(dim=(1, 2))
        (gradient,) = torch.autograd.grad(energy.sum(), positions)
        return {"energy": energy.detach(), "forces": -gradient}


def liquid(name: str, volume: float, number: int) -> Atoms:
    """Return molecules in random orientations near the places of a lattice, at a volume each, Å^3."""
    rng = np.random.default_rng(number)
    edge = (N_MOLECULES * volume) ** (1 / 3)
    places = bulk("Ar", "fcc", a=edge / 2, cubic=True).repeat(2).positions
    found = Atoms(cell=[edge] * 3, pbc=True)
    for place in places:
        one = molecule(name)
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.translate(place - one.get_center_of_mass() + rng.normal(scale=0.15, size=3))
        found += one
    return found


def run(
    seeds: Sequence[Atoms], model: ModelInterface, temperature: float, ensemble: str = "nvt_langevin", **settings: Any
) -> tuple[list[Trajectory], Exploration]:
    """Explore from each seed at one temperature."""
    relax, monte_carlo = settings.pop("relax", None), settings.pop("monte_carlo", None)
    dynamics = {"temperatures": [temperature], "ensemble": ensemble, **settings}
    chosen = Exploration(dynamics=dynamics, relax=relax, monte_carlo=monte_carlo)
    trajectories = []
    for number, seed in enumerate(seeds):
        atoms = round_positions(seed.copy())
        atoms.info["condition"] = Condition(temperature=temperature, replica=number)
        trajectories.append(Trajectory(seed=atoms, ensemble=ensemble, run_seed=0))
    first = add_relaxations(trajectories, chosen)
    BatchRunner([*first, *trajectories], model, chosen, BatchCapacity(len, 10**5)).run()
    return trajectories, chosen


def stopped(trajectories: Sequence[Trajectory]) -> str:
    """Say how many trajectories were stopped, and why."""
    reasons = Counter(stop.reason for trajectory in trajectories for stop in trajectory.stops)
    why = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
    return (
        f"{sum(bool(trajectory.stops) for trajectory in trajectories)} of {len(trajectories)} trajectories stopped"
        + (f" ({why})" if why else "")
    )


def cold_starts() -> None:
    """Print what is kept of cold and dense starts."""
    print("13. Temperature guard: Cu16 (EMT), 12 starts, 4 frames each in 200 steps of 2 fs, Langevin 0.01/fs")
    model = potentials.batched_model(potentials.build_potential("emt", {}, "cpu", "float64"), stress=True)
    cell = bulk("Cu").repeat((4, 2, 2))
    for label, width, strain in (("rattled by 0.1 Å", 0.1, 1.0), ("and 4 % shorter in each direction", 0.1, 0.96)):
        starts = []
        for number in range(12):
            atoms = cell.copy()
            atoms.set_cell(atoms.cell.array * strain, scale_atoms=True)
            atoms.positions += np.random.default_rng(number).normal(scale=width, size=atoms.positions.shape)
            starts.append(atoms)
        for temperature in (50.0, 100.0, 300.0):
            for relax in (None, {"stride": None}):
                trajectories, _ = run(starts, model, temperature, steps=200, stride=50, timestep=2.0, relax=relax)
                frames = [frame for trajectory in trajectories for frame in trajectory.frames]
                hot = [frame.kinetic_temperature for frame in frames]
                spread = f"{min(hot):.0f} to {max(hot):.0f} K" if hot else "none"
                print(
                    f"  {label}, {temperature:.0f} K, {'relaxed first' if relax else 'as they are'}: {len(frames)} of "
                    f"48 frames, {stopped(trajectories)}; frames at {spread}"
                )
    print("  What it is for: CH4 and H2O (GFN2-xTB) at 300 K with a time step of 4 fs, 8 trajectories each")
    xtb = potentials.batched_model(potentials.build_potential("xtb", {"method": "GFN2-xTB"}, "cpu", "float64"))
    for name in ("CH4", "H2O"):
        trajectories, _ = run([molecule(name)] * 8, xtb, 300.0, steps=200, stride=50, timestep=4.0)
        last = max(stop.details["step"] for trajectory in trajectories for stop in trajectory.stops)
        print(f"  {name}: {stopped(trajectories)}, the last at step {last}")


def liquids() -> None:
    """Print what is stopped in liquids, and what the rule before would have stopped."""
    print(
        "\n14. Evaporation guard: liquids of 32 molecules, 12 starts each, 40 frames in 2 ps (1 fs steps), "
        "relaxed first"
    )
    for name, temperature, volume in (("CH4", 110.0, 62.7), ("N2", 77.0, 57.6), ("NH3", 240.0, 41.5)):
        seeds = [liquid(name, volume, number) for number in range(N_STARTS)]
        trajectories, chosen = run(
            seeds, LiquidField(name), temperature, steps=2000, stride=50, timestep=1.0, friction=0.01,
            relax={"stride": None, "steps": 300, "fmax": 0.1},
        )  # fmt: skip
        reach = chosen.guards.evaporation
        assert reach is not None
        torn, n_frames = 0, 0
        for trajectory in trajectories:
            before = count_parts(trajectory.start_atoms, reach)
            more = [count_parts(trajectory.atoms_of_frame(frame), reach) > before for frame in trajectory.frames]
            torn += any(more)
            n_frames += len(more)
        print(
            f"  {name} at {temperature:.0f} K: {n_frames} of {40 * N_STARTS} frames, {stopped(trajectories)}; "
            f"by the rule before: {torn} of {N_STARTS}"
        )


class IonField(ModelInterface):
    """Rigid ions in cubic cells: exponential repulsion, dispersion, and Coulomb's force, damped and shifted.

    MgO: Lewis and Catlow (DOI 10.1088/0022-3719/18/6/010); NaCl: Tosi and Fumi (DOI 10.1016/0022-3697(64)90160-X).
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._device, self._dtype = torch.device("cpu"), torch.float64
        self._compute_stress, self._compute_forces = False, True
        self.charge = {"MgO": 2.0, "NaCl": 1.0}[name]
        # Amplitude, eV, range, Å, and dispersion, eV Å^6 and eV Å^8, of pairs with 0, 1 and 2 anions.
        if name == "MgO":
            rows = [(0.0, 1.0, 0.0, 0.0), (1428.5, 0.2945, 0.0, 0.0), (22764.3, 0.149, 27.88, 0.0)]
        else:
            born, rho = 0.211, 0.317
            factors = [(1.25, 2.34), (1.0, 2.755), (0.75, 3.17)]
            repulsion = [(born * factor * np.exp(sigma / rho), rho) for factor, sigma in factors]
            dispersion = [(1.05, 0.499), (6.99, 8.676), (72.4, 145.4)]
            rows = [(*one, *other) for one, other in zip(repulsion, dispersion, strict=True)]
        self.rows = torch.tensor(rows, dtype=torch.float64)

    def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
        """Return energy and forces of systems, one after the other."""
        energies, forces = [], []
        for system in range(len(state.cell)):
            own = state.system_idx == system
            energy, force = self.one(state.positions[own], state.cell[system, 0, 0], state.atomic_numbers[own])
            energies.append(energy)
            forces.append(force)
        return {"energy": torch.stack(energies), "forces": torch.cat(forces)}

    def one(self, places: torch.Tensor, edge: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return energy and forces of one system."""
        anion = ((numbers == 8) | (numbers == 17)).long()
        positions = places.detach().clone().requires_grad_(True)
        first, second = torch.triu_indices(len(places), len(places), offset=1)
        vectors = positions[first] - positions[second]
        distance = (vectors - edge * torch.round(vectors / edge).detach()).square().sum(dim=1).sqrt()
        near = torch.nonzero(distance < edge / 2).flatten()
        distance, kind = distance[near], (anion[first] + anion[second])[near]
        amplitude, rho, six, eight = self.rows[kind].unbind(dim=1)
        sign = torch.where(kind == 1, -1.0, 1.0) * self.charge**2 * COULOMB
        alpha, cutoff = 0.25, edge / 2
        value = torch.erfc(alpha * cutoff) / cutoff
        slope = value / cutoff + 2 * alpha / np.pi**0.5 * torch.exp(-((alpha * cutoff) ** 2)) / cutoff
        coulomb = sign * (torch.erfc(alpha * distance) / distance - value + slope * (distance - cutoff))
        energy = (amplitude * torch.exp(-distance / rho) - six / distance**6 - eight / distance**8 + coulomb).sum()
        (gradient,) = torch.autograd.grad(energy, positions)
        return energy.detach(), -gradient


def energy(atoms: Atoms, model: ModelInterface) -> float:
    """Return the energy of a structure, eV."""
    return float(model(make_state([atoms], model.device, torch.float64))["energy"][0])


def hops() -> None:
    """Print how many trial hops into a vacancy are accepted."""
    print("\n16. Hops into a vacancy: 2 trajectories, relaxed first, 20 trial hops every 20 steps of 2 fs, 400 steps")
    copper = bulk("Cu", cubic=True).repeat(3)
    emt = potentials.batched_model(potentials.build_potential("emt", {}, "cpu", "float64"))
    for name, whole, missing, model, temperature in (
        ("Cu107 (EMT)", copper, "Cu", emt, 1100.0),
        ("Mg107O108", bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat(3), "Mg", IonField("MgO"), 2000.0),
        ("Mg108O107", bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat(3), "O", IonField("MgO"), 2000.0),
        ("Na107Cl108", bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(3), "Na", IonField("NaCl"), 900.0),
        ("Na108Cl107", bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(3), "Cl", IonField("NaCl"), 900.0),
    ):
        seed = whole.copy()
        del seed[int(np.flatnonzero(seed.symbols == missing)[0])]
        trajectories, _ = run(
            [seed] * 2, model, temperature, steps=400, stride=200, timestep=2.0, relax={"stride": None, "fmax": 0.02},
            monte_carlo={"every": 20, "hops": 20, "oxidation_states": STATES},
        )  # fmt: skip
        start = trajectories[0].start_atoms
        sites = hop_sites(start, like_distances(start, np.array([STATES[symbol] for symbol in start.symbols]), 0.1))
        assert sites is not None
        atoms, pairs = sites.possible_hops(sites.assign_sites(start.positions, start.cell.array))
        there = start.copy()
        there.positions[atoms[0]] += sites.hop_vector(pairs[0], start.cell.array)
        rise = energy(there, model) - energy(start, model)
        tallies: Counter[str] = sum((Counter(trajectory.tallies) for trajectory in trajectories), Counter())
        tried, accepted = tallies["hops_tried"], tallies["hops_accepted"]
        print(
            f"  {name} at {temperature:.0f} K: {accepted} of {tried} accepted ({accepted / tried:.2%}); "
            f"{tallies['hops_overlapping']} overlapped, {tallies['hops_blocked']} had no site; "
            f"{stopped(trajectories)}; "
            f"a hop from the relaxed start costs {rise:.2f} eV before its neighbours relax"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    threadpool_limits(1)
    parts = {"13": cold_starts, "14": liquids, "16": hops}
    for part in sys.argv[1:] or parts:
        parts[part]()
