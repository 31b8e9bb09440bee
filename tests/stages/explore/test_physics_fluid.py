"""The Lennard-Jones fluid under each barostat has the density of its published equation of state."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from physics_samples import SIGMAS, check_mean, dynamics, make_trajectories, mean, sample, volume

from daskpipe.core import constants
from daskpipe.potentials import batched_model, build_potential
from daskpipe.potentials.lj import smooth_pair
from daskpipe.stages.explore.batch import Batch
from daskpipe.stages.explore.integrate import sum_per_system

pytestmark = [pytest.mark.slow, pytest.mark.physics]

EPSILON, SIGMA = 0.0104, 3.4
R_CUT = 2.5 * SIGMA
REDUCED_PRESSURE = EPSILON / SIGMA**3

X = (
    0.8623085097507421, 2.976218765822098, -8.402230115796038, 0.1054136629203555, -0.8564583828174598,
    1.582759470107601, 0.7639421948305453, 1.753173414312048, 2.798291772190376e3, -4.8394220260857657e-2,
    0.9963265197721935, -3.698000291272493e1, 2.084012299434647e1, 8.305402124717285e1, -9.574799715203068e2,
    -1.477746229234994e2, 6.398607852471505e1, 1.603993673294834e1, 6.805916615864377e1, -2.791293578795945e3,
    -6.245128304568454, -8.116836104958410e3, 1.488735559561229e1, -1.059346754655084e4, -1.131607632802822e2,
    -8.867771540418822e3, -3.986982844450543e1, -4.689270299917261e3, 2.593535277438717e2, -2.694523589434903e3,
    -7.218487631550215e2, 1.721802063863269e2,
)  # fmt: skip
"""Table 10 of Johnson, Zollweg and Gubbins, Mol. Phys. 78, 591 (1993), DOI 10.1080/00268979300100411."""


def equation_of_state(density: float, t: float) -> float:
    """Pressure of the Lennard-Jones fluid with all of its tail, all in reduced units (their equation 7)."""
    x = (np.nan, *X)
    a = (
        x[1] * t + x[2] * np.sqrt(t) + x[3] + x[4] / t + x[5] / t**2,
        x[6] * t + x[7] + x[8] / t + x[9] / t**2,
        x[10] * t + x[11] + x[12] / t,
        x[13],
        x[14] / t + x[15] / t**2,
        x[16] / t,
        x[17] / t + x[18] / t**2,
        x[19] / t**2,
    )
    b = (
        x[20] / t**2 + x[21] / t**3,
        x[22] / t**2 + x[23] / t**4,
        x[24] / t**2 + x[25] / t**3,
        x[26] / t**2 + x[27] / t**4,
        x[28] / t**2 + x[29] / t**3,
        x[30] / t**2 + x[31] / t**3 + x[32] / t**4,
    )
    powers = sum(value * density ** (i + 2) for i, value in enumerate(a))
    gauss = np.exp(-3 * density**2) * sum(value * density ** (2 * i + 3) for i, value in enumerate(b))
    return density * t + powers + gauss


def tail(density: float) -> float:
    """Pressure that the cutoff takes away, reduced: 2 pi / 3 rho^2 times the integral of r^3 (u' - u_cut'), g = 1."""
    r = SIGMA * np.linspace(1, 60, 600_001)
    full = -24 * EPSILON * (2 * (SIGMA / r) ** 12 - (SIGMA / r) ** 6) / r
    slopes = smooth_pair(torch.as_tensor(r), EPSILON, SIGMA, R_CUT)[1].numpy()
    missing = full - np.where(r < R_CUT, slopes, 0)
    beyond = 16 / 3 * np.pi * (SIGMA / r[-1]) ** 3  # the end of the tail, in closed form, reduced
    inner = 2 * np.pi / 3 * np.trapezoid(r**3 * missing, r) / EPSILON / SIGMA**3
    return -(density**2) * (inner + beyond)


@pytest.mark.parametrize(
    ("t", "density", "pressure"),
    # NIST Standard Reference Simulation Website, Monte Carlo with long-range corrections.
    [(0.85, 0.820, 0.55355), (0.85, 0.860, 1.2660), (0.90, 0.776, 0.24056), (0.90, 0.860, 1.5781)],
)
def test_equation_of_state_agrees_with_published_simulations(t, density, pressure):
    assert equation_of_state(density, t) == pytest.approx(pressure, abs=0.01)  # 0.001 in the density


def test_equation_of_state_has_its_published_critical_point():
    """T = 1.313 and a density of 0.310, to which the authors bound their fit."""
    step = 1e-4
    below, at, above = (equation_of_state(0.310 + shift, 1.313) for shift in (-step, 0, step))
    assert (above - below) / (2 * step) == pytest.approx(0, abs=1e-4)
    assert (above - 2 * at + below) / step**2 == pytest.approx(0, abs=1e-2)


def test_tail_is_that_of_a_cut_and_shifted_potential_between_onset_and_cutoff():
    """By parts, the smooth cutoff takes 2 pi rho^2 times the integral of r^2 u (1 - S), and S falls from 1 to 0."""

    def cut_and_shifted(cut: float) -> float:
        return 8 * np.pi * (cut**-9 / 9 - cut**-3 / 3)

    assert cut_and_shifted(0.66 * 2.5) < tail(1.0) < cut_and_shifted(2.5)


WHOLE = ("npt_isotropic", "npt_anisotropic", "npt_triclinic")
TEMPERATURE, DENSITY = 2.0, 0.7
KELVIN = TEMPERATURE * EPSILON / constants.KB


def fluid(ensembles, volume_of_atom: float, pressure: float) -> Batch:
    torch.set_num_threads(1)
    seed = bulk("Ar", cubic=True, a=(4 * volume_of_atom) ** (1 / 3)).repeat(3)
    model = batched_model(
        build_potential("lj", {"epsilon": EPSILON, "sigma": SIGMA, "r_cut": R_CUT}, "cpu", "float64"), stress=True
    )
    settings = dynamics(timestep=10.0, friction=0.005, compressibility=3.0, barostat_time=300.0)
    return Batch(make_trajectories([seed] * len(ensembles), ensembles, KELVIN, pressure), model, settings)


def virial_pressure(batch: Batch) -> np.ndarray:
    """Pressure, GPa, shape (system,); the centre of mass, which rests, has its share."""
    state, systems = batch.state, batch.systems
    inner = sum_per_system(state.momenta**2 / systems.masses, systems).sum(dim=1) / 3 + constants.KB * KELVIN
    trace = state.stress.diagonal(dim1=1, dim2=2).sum(dim=1) / 3
    return (inner.numpy() / volume(batch) - trace.numpy()) / constants.GPA


@pytest.fixture(scope="module")
def argon() -> dict[str, np.ndarray]:
    """Reduced density and pressure over the one asked for, shape (sample, 2), of each ensemble."""
    pressure = (equation_of_state(DENSITY, TEMPERATURE) - tail(DENSITY)) * REDUCED_PRESSURE / constants.GPA
    names = (*WHOLE, "nvt_langevin")

    def observe(batch: Batch) -> np.ndarray:
        n_atoms = batch.systems.n_atoms.numpy()
        return np.stack([n_atoms * SIGMA**3 / volume(batch), virial_pressure(batch) / pressure], axis=1)

    found = sample(fluid(names, SIGMA**3 / DENSITY, pressure), observe, samples=400, every=4, before=300)
    return {name: found[:, system] for system, name in enumerate(names)}


def blocks(samples: np.ndarray, n: int = 8) -> np.ndarray:
    """Cut a series into blocks, shape (sample, block), each longer than what it remembers."""
    return samples.reshape(n, -1).T


def test_tail_matters(argon):
    """What is left out would be seen in the density."""
    slope = (equation_of_state(DENSITY + 1e-4, TEMPERATURE) - equation_of_state(DENSITY - 1e-4, TEMPERATURE)) / 2e-4
    together = np.concatenate([blocks(argon[name][:, 0]) for name in WHOLE], axis=1)
    assert abs(tail(DENSITY)) / slope > SIGMAS * mean(together)[1]


def test_fluid_at_constant_volume_has_the_pressure_of_the_equation_of_state(argon):
    check_mean(blocks(argon["nvt_langevin"][:, 1]), 1.0)


def test_fluid_under_pressure_has_the_density_of_the_equation_of_state(argon):
    check_mean(np.concatenate([blocks(argon[name][:, 0]) for name in WHOLE], axis=1), DENSITY)
    for name in WHOLE:
        check_mean(blocks(argon[name][:, 0]), DENSITY)
        check_mean(blocks(argon[name][:, 1]), 1.0)
