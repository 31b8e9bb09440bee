"""Each thermostat gives the canonical distribution of momenta and positions, not only its mean temperature."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from physics_samples import (
    Elastic,
    IdealGas,
    check_distribution,
    check_mean,
    dynamics,
    kinetic,
    make_trajectories,
    sample,
)
from scipy import stats

from daskpipe.core import constants
from daskpipe.potentials import batched_model, build_potential
from daskpipe.stages.explore import integrate
from daskpipe.stages.explore.batch import Batch
from daskpipe.stages.explore.settings import Ramp

pytestmark = [pytest.mark.slow, pytest.mark.physics]

THERMOSTATS = ("nvt_langevin", "nvt_nose_hoover", "nvt_rescale", "npt_isotropic", "npt_anisotropic", "npt_triclinic")
REPLICAS = 16
SIGMA = 3.4
HOT = 241.4
"""K: twice the depth of argon's well, so that the fluid is hot and dense gas and forgets fast."""
KT = constants.KB * HOT
ALIKE = 0.1
"""Largest correlation of samples that are taken as independent: the error of their number is twice that."""


def mixture() -> Atoms:
    """Eight atoms of two masses in a periodic box, at a reduced density of one half."""
    atoms = bulk("Ar", cubic=True, a=SIGMA * 2 ** (2 / 3)).repeat((2, 1, 1))
    atoms.set_cell([SIGMA * 16 ** (1 / 3)] * 3, scale_atoms=True)
    atoms.symbols[::2] = "He"
    return atoms


def fluid(ensembles, replicas: int) -> Batch:
    torch.set_num_threads(1)
    # The cutoff is short, for speed: any smooth potential will do.
    model = batched_model(build_potential("lj", {"r_cut": 1.6 * SIGMA}, "cpu", "float64"), stress=True)
    names = [name for name in ensembles for _ in range(replicas)]
    settings = dynamics(timestep=5.0, friction=0.02, thermostat_time=50.0, compressibility=3.0, barostat_time=1000.0)
    return Batch(make_trajectories([mixture()] * len(names), names, HOT, 0.15), model, settings)


def second_moments(batch: Batch) -> np.ndarray:
    """Mean of p_x^2 / m, p_y^2 / m and p_z^2 / m over the atoms of each species, shape (system, species, 3)."""
    squares = (batch.state.momenta**2 / batch.systems.masses).numpy()
    n_systems = len(batch.trajectories)
    light = (
        np.concatenate([trajectory.seed.numbers for trajectory in batch.trajectories])
        == batch.trajectories[0].seed.numbers[0]
    )
    return np.stack([squares[mask].reshape(n_systems, -1, 3).mean(axis=1) for mask in (light, ~light)], axis=1)


@pytest.fixture(scope="module")
def hot_fluid() -> dict[str, dict[str, np.ndarray]]:
    """Samples of each thermostat, shape (sample, replica, ...)."""
    batch = fluid(THERMOSTATS, REPLICAS)

    def observe(batch):
        return np.concatenate([kinetic(batch)[:, None], second_moments(batch).reshape(-1, 6)], axis=1)

    found = sample(batch, observe, samples=60, every=40, before=400)
    return {
        name: {"kinetic": part[..., 0], "moments": part[..., 1:].reshape(*part.shape[:2], 2, 3)}
        for name, part in zip(THERMOSTATS, np.split(found, len(THERMOSTATS), axis=1), strict=True)
    }


def chi_square(n_atoms: int, thermal: float):
    """Law of the kinetic energy of atoms whose centre of mass rests."""
    return stats.gamma((3 * n_atoms - 3) / 2, scale=thermal)


@pytest.mark.parametrize("name", THERMOSTATS)
def test_kinetic_energy_has_the_canonical_distribution(hot_fluid, name):
    found, law = hot_fluid[name]["kinetic"], chi_square(8, KT)
    assert len(found) * found.shape[1] > 900
    check_mean(found, law.mean())
    check_mean((found - law.mean()) ** 2, law.var())
    check_distribution(found, law)


@pytest.mark.parametrize("name", THERMOSTATS)
def test_light_and_heavy_atoms_share_the_energy_equally_in_all_directions(hot_fluid, name):
    masses = mixture().get_masses()
    for species, mass in enumerate(masses[:2]):
        # The centre of mass rests, so an atom lacks its part of the mass.
        expected = KT * (1 - mass / masses.sum())
        for axis in range(3):
            check_mean(hot_fluid[name]["moments"][:, :, species, axis], expected)


def test_a_thermostat_of_berendsen_would_be_found_out(monkeypatch):
    def berendsen(kinetic, coupling, rates):
        wanted = 21 / 2 * coupling.thermal_energy  # eight atoms
        return torch.sqrt(1 + rates.dt / rates.thermostat_time * (wanted / kinetic - 1))

    monkeypatch.setattr(integrate, "rescaling_factor", berendsen)
    found, law = sample(fluid(["nvt_rescale"], 24), kinetic, samples=30, every=30, before=200), chi_square(8, KT)
    check_mean(found, law.mean(), bias=0.05 * law.mean())  # the mean tells nothing
    with pytest.raises(AssertionError, match="expected"):
        check_mean((found - law.mean()) ** 2, law.var())
    with pytest.raises(AssertionError, match="distance"):
        check_distribution(found, law)


def test_wrong_degrees_of_freedom_would_be_found_out():
    found = stats.gamma((3 * 8 - 3) / 2).rvs(size=(60, REPLICAS), random_state=1)
    with pytest.raises(AssertionError, match="expected"):
        check_mean(found, 3 * 8 / 2)


LIGHT, HEAVY = 1.008, 196.97
"""amu; hydrogen and gold."""


def molecule(n: int = 4) -> Atoms:
    """Half hydrogen, half gold; where its sites are does not matter."""
    return Atoms(f"H{n // 2}Au{n // 2}", positions=2.0 * np.arange(3 * n).reshape(n, 3) ** 0.5, cell=[9] * 3, pbc=True)


def at_rest(batch: Batch) -> Batch:
    """Take all momenta away, so that what is measured comes from the thermostat."""
    batch.export_states()
    for trajectory in batch.trajectories:
        assert trajectory.state is not None
        trajectory.state["momenta"][:] = 0
    batch.load_states()
    return batch


def test_langevin_heats_atoms_of_unlike_masses_equally():
    seeds = [molecule()] * 128
    model = Elastic(seeds, spring=0.5)
    batch = at_rest(Batch(make_trajectories(seeds, "nvt_langevin"), model, dynamics(timestep=1.0, friction=0.02)))
    found = sample(batch, second_moments, samples=20, every=80, before=300)
    masses = molecule().get_masses()
    assert masses.min() == LIGHT
    assert round(masses.max(), 2) == HEAVY
    for species, mass in enumerate((masses[0], masses[-1])):
        # Velocity Verlet turns in a harmonic well as if the momentum at the step were too small.
        lag = 1 - 0.5 / mass * constants.FS**2 / 4
        for axis in range(3):
            check_mean(
                found[:, :, species, axis],
                constants.KB * 300 * (1 - mass / masses.sum()),
                bias=(1 - lag) * constants.KB * 300,
            )


@pytest.mark.parametrize("stride", [0.3, 1.0, 1.6], ids=lambda stride: f"omega dt {stride}")
def test_positions_in_a_harmonic_solid_are_exact_at_any_time_step(stride):
    """The configurations of BAOAB; momenta at the step are too small by 1 - (omega dt)^2 / 4, which shows that the
    step was long."""
    n = 8
    seeds = [Atoms(f"Ar{n}", positions=3 * np.argwhere(np.ones((2, 2, 2))), cell=[6] * 3, pbc=True)] * 96
    timestep = 5.0
    mass = seeds[0].get_masses()[0]
    spring = mass * (stride / (timestep * constants.FS)) ** 2
    batch = Batch(
        make_trajectories(seeds, "nvt_langevin"),
        Elastic(seeds, spring),
        dynamics(timestep=timestep, friction=0.1 * stride),
    )
    found = sample(
        batch,
        lambda batch: np.stack([batch.state.energy.numpy(), kinetic(batch)], axis=1),
        samples=40,
        every=round(8 / stride),
        before=round(30 / stride),
    )
    thermal = constants.KB * 300
    check_mean(found[..., 0], 3 * (n - 1) / 2 * thermal)
    check_distribution(found[..., 0], chi_square(n, thermal))
    check_mean(found[..., 1], 3 * (n - 1) / 2 * thermal * (1 - stride**2 / 4))


@pytest.mark.parametrize("name", ["nvt_langevin", "nvt_rescale"])
def test_lonely_atom_has_three_degrees_of_freedom(name):
    seeds = [Atoms("Ar", cell=[9] * 3, pbc=True)] * 192
    settings = dynamics(timestep=1.0, friction=0.1, thermostat_time=10.0)
    found = sample(
        Batch(make_trajectories(seeds, name), IdealGas(), settings), kinetic, samples=20, every=40, before=40
    )
    law = stats.gamma(1.5, scale=constants.KB * 300)
    check_mean(found, law.mean())
    check_mean((found - law.mean()) ** 2, law.var())
    check_distribution(found, law)


@pytest.mark.parametrize("cycles", [0, 2])
@pytest.mark.parametrize("name", ["nvt_langevin", "nvt_rescale"])
def test_temperature_follows_a_ramp(name, cycles):
    """Free atoms: the mean kinetic energy after each step is known exactly, with the lag of the coupling."""
    ramp = Ramp(start=100.0, end=900.0, cycles=cycles)
    before, steps = 40, 400
    settings = dynamics(
        temperatures=[ramp],
        timestep=1.0,
        steps=before + steps,
        stride=steps,
        equilibration=before,
        friction=0.05,
        thermostat_time=10.0,
    )
    n = 4
    seeds = [Atoms(f"Ar{n}", positions=2.5 * np.eye(4)[:, :3], cell=[9] * 3, pbc=True)] * 160
    batch = Batch(make_trajectories(seeds, name, ramp), IdealGas(), settings)
    found = sample(batch, kinetic, samples=before + steps) / (3 * (n - 1) / 2 * constants.KB)
    # Energy is lost at twice the friction; both baths are given the same rates.
    keep = np.exp(-0.1)
    expected = [100.0]
    for step in range(1, before + steps + 1):
        progress = max(0, step - before) / steps
        phase = progress if not cycles else 1 - abs(1 - 2 * (progress * cycles % 1))
        expected.append(keep * expected[-1] + (1 - keep) * (100 + 800 * phase))
    assert max(expected) > 800
    # All steps together, and each tenth of the ramp on its own.
    away = found / np.array(expected[1:])[:, None]
    for part in [away, *np.array_split(away, 10)]:
        check_mean(part, 1.0)
