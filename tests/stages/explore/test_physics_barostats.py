"""Each barostat gives the volumes, shapes and stresses of its ensemble, where these are known exactly."""

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
    volume,
)
from scipy import stats

from daskpipe.core import constants
from daskpipe.potentials import batched_model, build_potential
from daskpipe.stages.explore.batch import Batch
from daskpipe.stages.explore.ensembles import choose_ensemble
from daskpipe.stages.explore.integrate import cell_determinant, sum_per_system
from daskpipe.stages.explore.trajectory import Trajectory

pytestmark = [pytest.mark.slow, pytest.mark.physics]

WHOLE = ("npt_isotropic", "npt_anisotropic", "npt_triclinic")
KT = constants.KB * 300
GASES = (3, 8, 24)
PRESSURES = {3: 1.0, 8: 2.0, 24: 1.0}
"""GPa, of each number of atoms."""
REPLICAS = 40


def gas(n_atoms: int, mean_volume: float) -> Atoms:
    length = mean_volume ** (1 / 3)
    positions = np.random.default_rng(n_atoms).random((n_atoms, 3)) * length
    return Atoms(f"Ar{n_atoms}", positions=positions, cell=[length] * 3, pbc=True)


@pytest.fixture(scope="module")
def gases() -> dict[tuple[str, int], np.ndarray]:
    """Volume and kinetic energy of ideal gases, shape (sample, replica, 2).

    The barostat relaxes in 60 steps. With 20, two atoms are now and then pressed so hard that the next step explodes,
    for the noise goes with 1 / sqrt(V).
    """
    torch.set_num_threads(1)
    cases = [(name, n) for name in WHOLE for n in GASES]
    members = []
    for name, n in cases:
        start = gas(n, (n + 1) * KT / (PRESSURES[n] * constants.GPA))
        members += make_trajectories([start] * REPLICAS, name, 300.0, PRESSURES[n])
    # Nothing holds the shape of a cell of free atoms: without an energy of shape it would become a needle.
    model = Elastic([member.seed for member in members], shear=2 * KT)
    # One compressibility serves all: the gas under twice the pressure relaxes twice as fast.
    settings = dynamics(timestep=1.0, friction=0.1, compressibility=1.0, barostat_time=60.0)
    found = sample(
        Batch(members, model, settings),
        lambda batch: np.stack([volume(batch), kinetic(batch)], axis=1),
        samples=20,
        every=150,
        before=200,
    )
    return dict(zip(cases, np.split(found, len(cases), axis=1), strict=True))


@pytest.mark.parametrize("n_atoms", GASES)
@pytest.mark.parametrize("name", WHOLE)
def test_ideal_gas_has_the_volumes_of_its_ensemble(gases, name, n_atoms):
    """V^N exp(-PV / kT) dV, the gamma distribution of N + 1, however the cell may strain."""
    found = gases[name, n_atoms][..., 0] * PRESSURES[n_atoms] * constants.GPA / KT
    check_mean(found, n_atoms + 1)
    # Euler's step makes the variance of what relaxes at a rate of k larger by k dt / 2.
    check_mean((found - (n_atoms + 1)) ** 2, n_atoms + 1, bias=(n_atoms + 1) * PRESSURES[n_atoms] / 60 / 2)
    check_distribution(found, stats.gamma(n_atoms + 1))


@pytest.mark.parametrize("name", WHOLE)
def test_ideal_gas_of_one_atom_more_or_less_would_be_found_out(gases, name):
    found = gases[name, 8][..., 0] * PRESSURES[8] * constants.GPA / KT
    for wrong in (8, 10):
        with pytest.raises(AssertionError, match="distance"):
            check_distribution(found, stats.gamma(wrong))


@pytest.mark.parametrize("n_atoms", GASES)
@pytest.mark.parametrize("name", WHOLE)
def test_ideal_gas_under_a_barostat_keeps_its_temperature(gases, name, n_atoms):
    found, law = gases[name, n_atoms][..., 1], stats.gamma((3 * n_atoms - 3) / 2, scale=KT)
    check_mean(found, law.mean())
    check_mean((found - law.mean()) ** 2, law.var())
    check_distribution(found, law)


@pytest.mark.parametrize("periodic", [True, False], ids=["vacuum", "open"])
def test_ideal_gas_in_a_slab_has_the_areas_of_its_ensemble(periodic, monkeypatch):
    """A^N exp(-P h A / kT) dA with the height h of the cell, which stays. No pressure acts on slabs otherwise."""
    monkeypatch.setattr(Trajectory, "has_pressure", True)
    n, pressure = 8, 1.0
    height = 12.0 if periodic else 2.0  # Å; an open cell spans the atoms and an Å on either side
    if periodic:
        pressure /= 6
    side = np.sqrt((n + 1) * KT / (pressure * constants.GPA * height))
    places = np.random.default_rng(1).random((n, 3)) * [side, side, 0]
    seed = Atoms(f"Ar{n}", positions=places, cell=[side, side, height], pbc=[True, True, periodic])
    settings = dynamics(timestep=1.0, friction=0.1, compressibility=1 / pressure, barostat_time=50.0)
    batch = Batch(make_trajectories([seed] * 96, "npt_plane", 300.0, pressure), IdealGas(), settings)
    found = sample(batch, volume, samples=14, every=150, before=200) * pressure * constants.GPA / KT
    check_mean(found, n + 1)
    check_mean((found - (n + 1)) ** 2, n + 1)
    check_distribution(found, stats.gamma(n + 1))
    assert np.allclose(batch.state.cell[:, 2], torch.tensor([0, 0, height])), "the height has changed"


FRAME = 10.0
"""Shape energy over kT of the elastic cells."""
STIFF = 60.0
"""Volume energy over kT, so that the volume fluctuates by an eighth."""
CRYSTALS = (1, 8)


@pytest.fixture(scope="module")
def crystals() -> dict[tuple[str, int], np.ndarray]:
    """Logarithm of the volume and energy of shape over kT of elastic crystals, shape (sample, replica, 2)."""
    torch.set_num_threads(1)
    cases = [(name, n) for name in WHOLE for n in CRYSTALS]
    members = []
    for name, n in cases:
        sites = 3 * np.argwhere(np.ones((2, 2, 2)))[:n]
        members += make_trajectories([Atoms(f"Ar{n}", positions=sites, cell=[6] * 3, pbc=True)] * 72, name)
    seeds = [member.seed for member in members]
    model = Elastic(seeds, spring=1.0, bulk=STIFF * KT, shear=FRAME * KT)
    start = seeds[0].get_volume()
    compressibility = constants.GPA * start / (STIFF * KT)
    settings = dynamics(timestep=2.0, friction=0.05, compressibility=compressibility, barostat_time=60.0)

    def observe(batch: Batch) -> np.ndarray:
        deformation = model.unstrain @ batch.state.cell
        square = (deformation**2).sum(dim=(1, 2)) / torch.linalg.det(deformation) ** (2 / 3)
        return np.stack([np.log(volume(batch) / start), FRAME / 2 * (square.numpy() - 3)], axis=1)

    found = sample(Batch(members, model, settings), observe, samples=20, every=90, before=180)
    return dict(zip(cases, np.split(found, len(cases), axis=1), strict=True))


@pytest.mark.parametrize("n_atoms", CRYSTALS)
@pytest.mark.parametrize("name", WHOLE)
def test_forces_of_atoms_weigh_against_their_momenta(crystals, name, n_atoms):
    """Springs that strain with the cell take all but one of the N of V^N: V exp(-E(V) / kT) dV is left."""
    dilation, law = crystals[name, n_atoms][..., 0], stats.norm(2 / STIFF, STIFF**-0.5)
    check_mean(dilation, law.mean())
    check_mean((dilation - law.mean()) ** 2, law.var())
    check_distribution(dilation, law)


def shape_energy(name: str) -> float:
    """Mean energy of shape over kT, by quadrature over the principal logarithmic strains a, b and -a-b.

    Cells that only change their lengths have the measure da db. That of all shapes has a factor sinh |a_i - a_j| for
    each pair (Helgason, Groups and Geometric Analysis, theorem I.5.8), for a cell may be strained along any axes.
    """
    a, b = np.meshgrid(*[np.linspace(-3, 3, 1201)] * 2)
    c = -a - b
    energy = FRAME / 2 * (np.exp(2 * a) + np.exp(2 * b) + np.exp(2 * c) - 3)
    weight = np.exp(-energy)
    if name == "npt_triclinic":
        weight *= np.abs(np.sinh(a - b) * np.sinh(b - c) * np.sinh(c - a))
    return float((weight * energy).sum() / weight.sum())


@pytest.mark.parametrize("n_atoms", CRYSTALS)
@pytest.mark.parametrize("name", WHOLE[1:])
def test_shapes_have_the_energy_that_their_ensemble_gives_them(crystals, name, n_atoms):
    """Close to kT / 2 for each of two or five shear strains, by which the others would be found out."""
    expected = shape_energy(name)
    assert expected == pytest.approx(1.0 if name == "npt_anisotropic" else 2.5, rel=0.1)
    check_mean(crystals[name, n_atoms][..., 1], expected)


def test_isotropic_barostat_leaves_the_shape(crystals):
    assert np.abs(crystals["npt_isotropic", 8][..., 1]).max() < 1e-9


def copper(repeat: int = 1) -> Atoms:
    return bulk("Cu", cubic=True, a=3.59).repeat(repeat)


def emt_batch(seeds, ensembles, temperature: float, pressure: float, **settings) -> Batch:
    torch.set_num_threads(1)
    model = batched_model(build_potential("emt", {}, "cpu", "float64"), stress=True)
    return Batch(make_trajectories(seeds, ensembles, temperature, pressure), model, dynamics(**settings))


def inner_pressure(batch: Batch) -> np.ndarray:
    """Pressure tensors, GPa, shape (system, 6); the centre of mass, which rests, has its share."""
    state, systems = batch.state, batch.systems
    thermal = [
        constants.KB * trajectory.temperature_at(batch.dynamics, trajectory.step) for trajectory in batch.trajectories
    ]
    pairs = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    products = torch.stack([state.momenta[:, i] * state.momenta[:, j] for i, j in pairs], dim=1) / systems.masses
    flow = sum_per_system(products, systems) + torch.tensor(thermal)[:, None] * torch.tensor([1, 1, 1, 0, 0, 0])
    stress = torch.stack([state.stress[:, i, j] for i, j in pairs], dim=1)
    return (flow / cell_determinant(state.cell).abs()[:, None] - stress).numpy() / constants.GPA


@pytest.mark.parametrize("name", WHOLE[1:])
def test_crystal_takes_on_the_pressure_and_a_sheared_one_becomes_straight(name):
    """All components of the stress; under npt_anisotropic the angles stay, and the shears are not looked at."""
    pressure = 3.0
    bent = copper()
    strain = (
        [[0.03, 0.04, -0.03], [0, -0.02, 0.05], [0, 0, 0.01]] if name == "npt_triclinic" else np.diag([3, -2, 1]) / 100
    )
    bent.set_cell(bent.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    settings = {"timestep": 4.0, "friction": 0.01, "compressibility": 0.007, "barostat_time": 150.0}
    batch = emt_batch([bent] * 16, name, 300.0, pressure, **settings)
    lengths_first = np.linalg.norm(bent.cell.array, axis=1)

    def observe(batch: Batch) -> np.ndarray:
        cell = batch.state.cell.numpy()
        lengths = np.linalg.norm(cell, axis=2)
        unit = cell / lengths[:, :, None]
        cosines = [(unit[:, i] * unit[:, j]).sum(axis=1) for i, j in ((1, 2), (0, 2), (0, 1))]
        return np.concatenate([inner_pressure(batch), np.stack(cosines, axis=1), np.log(lengths)], axis=1)

    found = sample(batch, observe, samples=60, every=20, before=300)
    looked_at = range(6) if name == "npt_triclinic" else range(3)
    for component in looked_at:
        check_mean(found[..., component], pressure if component < 3 else 0.0)
    if name == "npt_triclinic":
        for angle in range(6, 9):
            check_mean(found[..., angle], 0.0)
        assert np.abs(observe(emt_batch([bent], name, 300.0, pressure))[0, 6:9]).min() > 0.02
    for one, other in ((9, 10), (10, 11)):
        check_mean(found[..., one] - found[..., other], 0.0)  # the crystal is cubic again
    assert np.ptp(np.log(lengths_first)) > 0.01


def test_volume_of_cold_copper_fluctuates_by_its_bulk_modulus():
    """kT V / B, with B from the curvature of the energy; so cold a crystal (20 K) has the modulus of one at rest."""
    cold = 20.0
    energies, volumes = [], np.linspace(0.98, 1.02, 9)
    for factor in volumes:
        atoms = copper()
        atoms.set_cell(atoms.cell.array * factor ** (1 / 3), scale_atoms=True)
        energies.append(float(emt_batch([atoms], "nve", cold, 0.0).state.energy[0]))
    fit = np.poly1d(np.polyfit(volumes * copper().get_volume(), energies, 5))
    near = np.real([root for root in fit.deriv().roots if abs(root.imag) < 1e-9])
    rest = near[np.abs(near - copper().get_volume()).argmin()]
    modulus = rest * fit.deriv(2)(rest)
    assert 100 < modulus / constants.GPA < 180
    seed = copper()
    seed.set_cell(seed.cell.array * (rest / seed.get_volume()) ** (1 / 3), scale_atoms=True)
    settings = {"timestep": 4.0, "friction": 0.01, "compressibility": constants.GPA / modulus, "barostat_time": 100.0}
    batch = emt_batch([seed] * 32, "npt_isotropic", cold, 0.0, **settings)
    found = sample(batch, volume, samples=40, every=50, before=200)
    expected = constants.KB * cold * rest / modulus
    # Euler's step, as above: it relaxes in 25 steps.
    check_mean((found - found.mean()) ** 2, expected, bias=expected / 50)


def test_auto_lets_an_ordered_alloy_find_its_axis_ratio():
    """L1_0 CuAu along x, y and z, 2.8 GPa apart: strained evenly it keeps the ratio that it came with."""
    came_with = 3.72 / 2.72
    seed = Atoms("CuAu", positions=[[0, 0, 0], [0.5, 0.5, 0.5]], cell=np.eye(3), pbc=True)
    seed.set_cell(np.diag([2.72, 2.72, 3.72]), scale_atoms=True)
    seed = seed.repeat(2)
    assert choose_ensemble(seed) == "npt_anisotropic"
    settings = {"timestep": 4.0, "friction": 0.01, "compressibility": 0.007, "barostat_time": 100.0}

    def ratio(batch: Batch) -> np.ndarray:
        cell = batch.state.cell.numpy()
        return cell[:, 2, 2] / np.sqrt(cell[:, 0, 0] * cell[:, 1, 1])

    evenly = emt_batch([seed] * 8, "npt_isotropic", 300.0, 0.0, **settings)
    np.testing.assert_allclose(sample(evenly, ratio, samples=2, every=20, before=20), came_with, rtol=1e-9)
    freely = emt_batch([seed] * 8, choose_ensemble(seed), 300.0, 0.0, **settings)
    found = sample(freely, ratio, samples=20, every=10, before=500)
    assert found.mean() < came_with - 0.02
