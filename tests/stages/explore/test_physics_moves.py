"""Trial moves through the engine visit configurations as often as Boltzmann says, and move what cannot move alone."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.geometry import find_mic
from physics_samples import SIGMAS, ModelOnCpu, check_mean, make_trajectories, mean, net_momentum

from daskpipe.core import constants
from daskpipe.potentials import batched_model, build_potential
from daskpipe.stages.explore.batch import Batch
from daskpipe.stages.explore.capacity import BatchCapacity
from daskpipe.stages.explore.runner import BatchRunner
from daskpipe.stages.explore.settings import Dynamics, Exploration, Guards, MonteCarlo
from daskpipe.stages.explore.trajectory import Trajectory

pytestmark = [pytest.mark.slow, pytest.mark.physics]

SITES = 6
SPACING = 3.0
COUPLING = 0.03
"""eV for two unlike neighbours on the ring: a little more than kT."""
GOLD = 79
KT = constants.KB * 300
WHOLE = ("npt_isotropic", "npt_anisotropic", "npt_triclinic")
ROUNDING = 1e-11
"""Thermal momenta; each step adds some 1e-16 of them."""


class Ring(ModelOnCpu):
    """Atoms on stiff springs to the nearest site of a ring; unlike neighbours cost `COUPLING`."""

    def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
        site = torch.round(state.positions[:, 0] / SPACING)
        away = state.positions - SPACING * torch.stack([site, 0 * site, 0 * site], dim=1)
        site = site.long() % SITES
        n_systems = len(state.cell)
        species = torch.zeros(n_systems, SITES)
        species[state.system_idx, site] = (state.atomic_numbers == GOLD).float()
        springs = torch.zeros(n_systems, dtype=torch.float64).index_add(0, state.system_idx, (away**2).sum(dim=1))
        unlike = (species != species.roll(1, dims=1)).sum(dim=1)
        return {
            "energy": 0.5 * 20.0 * springs + COUPLING * unlike,
            "forces": -20.0 * away,
            "stress": torch.zeros_like(state.cell),
        }


def run_trajectories(members: list[Trajectory], model: Any, settings: Exploration) -> None:
    torch.set_num_threads(1)
    BatchRunner(members, model, settings, BatchCapacity(len, 10**6)).run()
    for member in members:
        assert not member.stops, member.stops[0].evidence


def exploration(temperature: float, moves: MonteCarlo, **lengths: Any) -> Exploration:
    return Exploration(
        dynamics=Dynamics(temperatures=[temperature], timestep=1.0, friction=0.05, **lengths),
        guards=Guards(min_distance=0, evaporation=None),
        monte_carlo=moves,
    )


def test_swaps_visit_all_orders_of_a_ring_as_often_as_boltzmann_says():
    seed = Atoms("Cu3Au3", positions=SPACING * np.outer(np.arange(SITES), [1, 0, 0]), cell=[18, 9, 9], pbc=True)
    members = make_trajectories([seed] * 64, "nvt_langevin")
    settings = exploration(
        300.0, MonteCarlo(every=2, swaps=2, oxidation_states={"Cu": 0, "Au": 0}), steps=680, stride=20, equilibration=80
    )
    run_trajectories(members, Ring(), settings)
    orders = list(combinations(range(SITES), 3))
    unlike = np.array([sum((i in order) != ((i + 1) % SITES in order) for i in range(SITES)) for order in orders])
    weight = np.exp(-COUPLING * unlike / KT)
    weight /= weight.sum()
    positions = np.array([[frame.positions for frame in member.frames] for member in members])
    site = np.round(positions[..., 0] / SPACING).astype(int) % SITES
    gold = np.sort(site[:, :, seed.numbers == GOLD], axis=2)
    found = np.array([[orders.index(tuple(order)) for order in row] for row in gold.tolist()]).T
    assert found.shape == (30, 64)
    for number, expected in enumerate(weight):
        check_mean((found == number).astype(float), expected)
    for level in np.unique(unlike):
        check_mean((unlike[found] == level).astype(float), weight[unlike == level].sum())
    energy = unlike[found].astype(float)
    assert abs(energy.mean() - unlike.mean()) > 2 * SIGMAS * mean(energy)[1], "accepting all would do as well"


def test_hops_carry_a_vacancy_through_a_crystal():
    perfect = bulk("Cu", cubic=True, a=3.7).repeat(2)
    seed = perfect.copy()
    del seed[0]
    settings = exploration(1200.0, MonteCarlo(every=10, hops=60), steps=600, stride=600)
    alone = settings.model_copy(update={"monte_carlo": None})

    def vacancy(atoms: Atoms) -> int:
        """Site that no atom is nearest to."""
        away = perfect.positions[None] - atoms.positions[:, None]
        distance = find_mic(away.reshape(-1, 3), perfect.cell)[1].reshape(len(atoms), len(perfect))
        (empty,) = set(range(len(perfect))) - set(distance.argmin(axis=1).tolist())
        return empty

    moved = []
    for how in (settings, alone):
        members = make_trajectories([seed] * 6, "nvt_langevin", 1200.0)
        run_trajectories(members, batched_model(build_potential("emt", {}, "cpu", "float64")), how)
        moved.append(sum(vacancy(member.atoms_of_frame(member.frames[-1])) != 0 for member in members))
    assert moved[0] >= 2, "hops do not move the vacancy"
    assert moved[1] == 0, "half a picosecond of dynamics moves it as well, and the test shows nothing"


def test_momentum_stays_zero_with_trial_moves():
    seeds = []
    for symbols in (["Au", "Cu"], ["Pt", "Al"]):
        atoms = bulk(symbols[0], cubic=True, a=3.9).repeat((2, 1, 1))
        atoms.symbols[::2] = symbols[1]
        seeds.append(atoms)
    names = ("nvt_langevin", "nvt_nose_hoover", "nvt_rescale", *WHOLE)
    members = make_trajectories(seeds * len(names), [name for name in names for _ in seeds], 800.0)
    settings = exploration(800.0, MonteCarlo(every=10, swaps=2, hops=3), steps=1000, stride=250)
    model = batched_model(build_potential("emt", {}, "cpu", "float64"), stress=True)
    run_trajectories(members, model, settings)
    first = [member.frames[0].positions for member in members]
    assert all(np.ptp(member.frames[-1].positions - start) > 0.1 for member, start in zip(members, first, strict=True))
    batch = Batch(members, model, settings.dynamics)
    assert net_momentum(batch).max() < ROUNDING
