"""A batch of all ensembles: each system goes as it goes alone, and none begins to drift."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from physics_samples import (
    Elastic,
    check_distribution,
    dynamics,
    kinetic,
    make_trajectories,
    net_momentum,
    sample,
    volume,
)
from scipy import stats

from daskpipe.core import constants
from daskpipe.potentials import batched_model, build_potential
from daskpipe.stages.explore.batch import Batch
from daskpipe.stages.explore.ensembles import ENSEMBLES
from daskpipe.stages.explore.integrate import DynamicsState
from daskpipe.stages.explore.trajectory import Trajectory

pytestmark = [pytest.mark.slow, pytest.mark.physics]

ROUNDING = 1e-11
"""Thermal momenta; each step adds some 1e-16 of them."""


def zoo() -> list[Trajectory]:
    """One system of each ensemble, of unlike sizes, elements and periodicities, and clusters that barostats leave."""
    gold = bulk("Cu", cubic=True, a=3.8).repeat((2, 1, 1))
    gold.symbols[1::2] = "Au"
    slab = fcc111("Ag", (1, 2, 3), vacuum=5.0)
    cluster = Atoms("Pt4", positions=1.85 * np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]]))
    seeds = {name: gold for name in ENSEMBLES}
    seeds |= {"npt_plane": slab, "nvt_rescale": cluster, "nvt_nose_hoover": bulk("Al", cubic=True)}
    names = [*ENSEMBLES, "nvt_langevin"]
    return make_trajectories([*seeds.values(), cluster], names, 600.0, 0.5)


def batch_of(members: list[Trajectory]) -> Batch:
    torch.set_num_threads(1)
    model = batched_model(build_potential("emt", {}, "cpu", "float64"), stress=True)
    return Batch(members, model, dynamics(timestep=3.0, friction=0.01, thermostat_time=100.0, barostat_time=300.0))


def test_each_system_of_a_mixed_batch_goes_as_it_goes_alone():
    """To the last bit, and so with the same statistics."""
    steps = 150
    together = batch_of(zoo())
    sample(together, volume, samples=1, every=steps)
    together.export_states()
    moved = 0
    for trajectory, lonely in zip(together.trajectories, zoo(), strict=True):
        alone = batch_of([lonely])
        sample(alone, volume, samples=1, every=steps)
        alone.export_states()
        assert trajectory.state is not None
        assert lonely.state is not None
        for name in set(DynamicsState.__dataclass_fields__) - {"chain"}:
            np.testing.assert_array_equal(trajectory.state[name], lonely.state[name], f"{trajectory.ensemble} {name}")
        moved += np.abs(trajectory.state["positions"] - trajectory.seed.positions).max() > 0.05
    assert moved == len(together.trajectories)


def test_only_systems_with_a_chain_have_one():
    batch = batch_of(zoo())
    sample(batch, volume, samples=1, every=10)
    assert not batch.state.chain[~batch.systems.nose_hoover].any()


def test_momentum_stays_zero():
    batch = batch_of(zoo())
    found = sample(batch, net_momentum, samples=8, every=150)
    assert found.max() < ROUNDING
    assert kinetic(batch).min() > 0.01


def test_neighbours_of_other_ensembles_do_not_change_the_statistics():
    """Volume and kinetic energy of free atoms, half of the batch at constant volume."""
    n, pressure, thermal = 4, 1.0, constants.KB * 300
    length = ((n + 1) * thermal / (pressure * constants.GPA)) ** (1 / 3)
    seeds = [Atoms(f"Ar{n}", positions=length / 4 * np.eye(4)[:, :3], cell=[length] * 3, pbc=True)] * 128
    names = ["npt_triclinic", "nvt_rescale", "npt_isotropic", "nvt_langevin"] * 32
    settings = dynamics(timestep=1.0, friction=0.1, thermostat_time=10.0, compressibility=1.0, barostat_time=60.0)
    batch = Batch(make_trajectories(seeds, names, 300.0, pressure), Elastic(seeds, shear=2 * thermal), settings)
    found = sample(
        batch, lambda batch: np.stack([volume(batch), kinetic(batch)], axis=1), samples=15, every=150, before=200
    )
    for first, name in enumerate(names[:4]):
        part = found[:, first::4]
        check_distribution(part[..., 1], stats.gamma((3 * n - 3) / 2, scale=thermal))
        if name.startswith("npt"):
            check_distribution(part[..., 0] * pressure * constants.GPA / thermal, stats.gamma(n + 1))
        else:
            np.testing.assert_allclose(part[..., 0], length**3, rtol=1e-12)
