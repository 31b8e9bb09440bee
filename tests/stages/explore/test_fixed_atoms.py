"""Fixed atoms do not move and count no degrees of freedom; isotopes have their masses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc111
from ase.constraints import FixAtoms
from ase.optimize import FIRE
from explore_samples import crystal, emt, positions, run_trajectories, seed, settings
from physics_samples import IdealGas, check_distribution, check_mean, dynamics, kinetic, sample
from physics_samples import make_trajectories as thermal_walkers
from scipy import stats

from daskpipe.core import constants
from daskpipe.potentials import batched_model, build_potential
from daskpipe.stages.explore.batch import Batch
from daskpipe.stages.explore.ensembles import choose_ensemble, explain_refusal
from daskpipe.stages.explore.fixed_atoms import count_degrees_of_freedom, free_components, without_drift
from daskpipe.stages.explore.settings import MonteCarlo, Relaxation
from daskpipe.stages.explore.stage import explore_partition
from daskpipe.stages.explore.trajectory import Condition

HOT = 300.0
KT = constants.KB * HOT
FIXED_VOLUME = ("nve", "nvt_langevin", "nvt_nose_hoover", "nvt_rescale")


def slab() -> Atoms:
    """Six layers of which the lowest two are fixed, and a third one along z."""
    atoms = fcc111("Cu", (2, 1, 4), vacuum=6.0, orthogonal=False)
    atoms.rattle(0.05, seed=3)
    fixed = np.zeros((len(atoms), 3), dtype=bool)
    height = np.argsort(atoms.positions[:, 2])
    fixed[height[:4]] = True
    fixed[height[4], 2] = True
    atoms.set_array("fixed", fixed)
    return atoms


def mixture() -> Atoms:
    """Eight atoms of two masses; one is fixed, and another along z."""
    atoms = Atoms("ArHe" * 4, positions=3.0 * np.indices((2, 2, 2)).reshape(3, 8).T, cell=[6] * 3, pbc=True)
    fixed = np.zeros((8, 3), dtype=bool)
    fixed[0] = True
    fixed[1, 2] = True
    atoms.set_array("fixed", fixed)
    return atoms


@pytest.mark.parametrize("name", FIXED_VOLUME)
def test_fixed_atoms_do_not_move(name: str) -> None:
    start = seed(slab(), temperature=HOT)
    (trajectory,) = run_trajectories([start], settings(ensemble=name, steps=40, stride=10, timestep=3.0))
    assert not trajectory.stops
    fixed = start.arrays["fixed"]
    for frame in positions(trajectory):
        assert np.array_equal(frame[fixed], start.positions[fixed])
        assert (np.abs(frame - start.positions)[~fixed] > 0).all()
    assert np.array_equal(trajectory.state["momenta"][fixed], np.zeros(fixed.sum()))
    (product, *_) = trajectory.output_frames(settings().dynamics)
    assert np.array_equal(product.arrays["fixed"], fixed)


def test_others_of_the_batch_go_the_same_way_beside_a_system_with_fixed_atoms() -> None:
    free = seed(crystal(), temperature=HOT)
    chosen = settings(ensemble="nvt_langevin", steps=10)
    (alone,) = run_trajectories([free], chosen)
    _, beside = run_trajectories([seed(slab(), temperature=HOT), free], chosen)
    assert np.array_equal(positions(alone), positions(beside))


def test_degrees_of_freedom() -> None:
    free = np.ones((5, 3), dtype=bool)
    assert count_degrees_of_freedom(free) == 12
    free[0, 2] = False
    assert count_degrees_of_freedom(free) == 12  # 10 - 2 in the plane, 4 along z, where the centre of mass moves
    free[0] = False
    assert count_degrees_of_freedom(free) == 12
    free[:] = False
    free[3] = True
    assert count_degrees_of_freedom(free) == 3
    assert count_degrees_of_freedom(np.ones((1, 3), dtype=bool)) == 3
    assert free_components(Atoms("Cu2")).all()


def test_drift_is_taken_off_axes_on_which_nothing_is_fixed() -> None:
    momenta, masses = np.random.default_rng(0).normal(size=(7, 4, 3)), np.array([1.0, 2, 3, 4])
    free = np.ones((4, 3), dtype=bool)
    free[1, 2] = False
    found = without_drift(momenta, masses, free)
    assert np.allclose(found.sum(axis=1)[:, :2], 0, atol=1e-12)
    assert np.array_equal(found[:, [0, 2, 3], 2], momenta[:, [0, 2, 3], 2])
    assert np.array_equal(found[:, 1, 2], np.zeros(7))


@pytest.mark.parametrize("name", ["nvt_langevin", "nvt_rescale"])
def test_kinetic_energy_is_that_of_what_is_free(name: str) -> None:
    torch.set_num_threads(1)
    replicas, n_free = 64, 24 - 4
    members = thermal_walkers([mixture()] * replicas, [name] * replicas, HOT)
    batch = Batch(members, IdealGas(), dynamics(timestep=5.0, friction=0.05, thermostat_time=10.0))
    assert batch.systems.degrees_of_freedom.tolist() == [n_free] * replicas
    found, law = sample(batch, kinetic, samples=40, every=12, before=36), stats.gamma(n_free / 2, scale=KT)
    check_mean(found, law.mean())
    check_distribution(found, law)
    with pytest.raises(AssertionError, match="expected"):
        check_mean(found, stats.gamma((24 - 3) / 2, scale=KT).mean())  # as if nothing were fixed


@pytest.mark.slow
@pytest.mark.physics
def test_nose_hoover_knows_what_is_free() -> None:
    torch.set_num_threads(1)
    replicas, n_free = 16, 24 - 4
    members = thermal_walkers([mixture()] * replicas, ["nvt_nose_hoover"] * replicas, HOT)
    model = batched_model(build_potential("lj", {"sigma": 2.6, "r_cut": 4.0}, "cpu", "float64"))
    batch = Batch(members, model, dynamics(timestep=4.0, thermostat_time=50.0))
    check_mean(sample(batch, kinetic, samples=60, every=30, before=400), n_free / 2 * KT)


def test_barostats_are_refused_and_auto_takes_none() -> None:
    atoms = crystal()
    assert choose_ensemble(atoms) == "npt_anisotropic"
    atoms.set_array("fixed", np.array([[True] * 3, [False] * 3, [False] * 3, [False, False, True]]))
    assert choose_ensemble(atoms) == "nvt_langevin"
    assert explain_refusal("nvt_langevin", atoms) is None
    assert explain_refusal("npt_isotropic", atoms) == (
        "npt_isotropic strains the cell with all atoms in it, and 2 are fixed; give nvt_langevin, or auto"
    )


def test_a_seed_that_is_fixed_as_a_whole_is_refused() -> None:
    atoms = seed(crystal())
    atoms.set_array("fixed", np.ones((4, 3), dtype=bool))
    (payload,) = explore_partition([atoms], emt, settings(), 0)
    (rejection,) = payload.rejected
    assert rejection.reason == "fixed"
    assert "all of its 4 atoms are fixed, so that nothing moves; free some of them" in rejection.evidence


@pytest.mark.parametrize("n_free", [0, 6])
def test_trial_moves_leave_fixed_atoms_where_they_are(n_free: int) -> None:
    atoms = crystal().repeat((2, 1, 1))
    atoms.symbols[::2] = "Au"
    atoms.set_cell(atoms.cell.array * 1.06, scale_atoms=True)
    fixed = np.ones((8, 3), dtype=bool)
    fixed[:n_free] = False
    fixed[n_free, 0] = False  # so that something moves
    atoms.set_array("fixed", fixed)
    start = seed(atoms, temperature=3000.0)
    moves = MonteCarlo(every=2, swaps=4, hops=2, oxidation_states={"Cu": 0, "Au": 0}, min_distance=0.3)
    (trajectory,) = run_trajectories(
        [start], settings(ensemble="nvt_langevin", steps=20, timestep=1.0, monte_carlo=moves)
    )
    assert (trajectory.tallies["swaps_accepted"] > 0) == (trajectory.tallies["swaps_tried"] > 0) == (n_free > 0)
    for frame in positions(trajectory):
        assert np.array_equal(frame[fixed], start.positions[fixed])
    assert np.array_equal(trajectory.state["momenta"][fixed], np.zeros(fixed.sum()))


def test_relaxation_leaves_fixed_atoms_where_they_are_and_ends_where_ase_does() -> None:
    start = slab()
    start.arrays["fixed"][:] = start.arrays["fixed"].all(axis=1)[:, None]
    relax = Relaxation(fmax=0.01, steps=400, cell="auto")
    atoms = seed(start)
    atoms.info["condition"] = Condition(temperature=HOT, relaxation=True)
    (payload,) = explore_partition([atoms], emt, settings(relax=relax, ensemble="auto", steps=5, stride=5), 0)
    last = np.flatnonzero(payload.arrays["ensemble"] == "relaxation")[-1]
    relaxed = payload.arrays["positions"].reshape(-1, len(start), 3)[last]
    fixed = start.arrays["fixed"]
    assert np.array_equal(relaxed[fixed], atoms.positions[fixed].astype("f4"))
    reference = atoms.copy()
    reference.set_constraint(FixAtoms(np.flatnonzero(fixed.all(axis=1))))
    reference.calc = emt().calculator
    FIRE(reference, logfile=None).run(fmax=0.01, steps=400)
    ours = atoms.copy()
    ours.positions = relaxed.astype(float)
    ours.calc = emt().calculator
    assert abs(ours.get_potential_energy() - reference.get_potential_energy()) < 1e-3
    assert payload.tallies["relaxations_converged"] == 1


def test_isotopes_move_by_their_masses() -> None:
    heavy, plain = crystal(), crystal()
    heavy.set_masses([2 * 63.546] * 4)
    (slow, fast) = run_trajectories(
        [seed(heavy, temperature=HOT), seed(plain, temperature=HOT)], settings(ensemble="nve", steps=1, stride=1)
    )
    assert np.allclose(slow.masses, 2 * fast.masses)
    energies = [np.sum(trajectory.state["momenta"] ** 2 / trajectory.masses[:, None]) for trajectory in (slow, fast)]
    assert 0.2 < energies[0] / energies[1] < 5  # both at the temperature
    (product,) = slow.output_frames(settings().dynamics)
    assert product.get_masses().tolist() == heavy.get_masses().tolist()
