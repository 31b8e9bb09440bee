import numpy as np
import pytest
import torch
import torch_sim as ts
from ase.units import kB
from explore_samples import HOT, crystal, seed
from torch_sim.integrators.md import MDState

from daskpipe.explore.guards import check, temperature_limit, temperatures

N_SYSTEMS = 3
LIMITS = torch.full((N_SYSTEMS,), 3600.0, dtype=torch.float64)
MAX_FORCE = 100.0


def state() -> MDState:
    """Three sane crystals of four atoms."""
    still = ts.io.atoms_to_state([seed(crystal())] * N_SYSTEMS, torch.device("cpu"), torch.float64)
    rng = np.random.default_rng(0)
    shape = tuple(still.positions.shape)
    momenta = rng.standard_normal(shape) * np.sqrt(kB * HOT * still.masses.numpy()[:, None])
    forces = rng.standard_normal(shape)
    return MDState.from_state(
        still, momenta=torch.as_tensor(momenta), forces=torch.as_tensor(forces), energy=torch.zeros(N_SYSTEMS).double()
    )


def test_sane_systems_pass():
    assert check(state(), LIMITS, MAX_FORCE) == {}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["positions", "momenta", "forces", "energy"])
def test_what_is_not_finite_is_found_in_its_system_only(name, value):
    broken = state()
    array = getattr(broken, name)
    first_of_the_second_system = 1 if name == "energy" else 4
    array[first_of_the_second_system] = value
    assert check(broken, LIMITS, MAX_FORCE) == {
        1: ("not_finite", "positions, momenta, forces or energy are not finite")
    }


def test_largest_force_is_a_length_and_not_a_component():
    broken = state()
    component = 0.6 * MAX_FORCE  # below the limit; the vector of three of them is 1.04 limits long
    broken.forces[9] = component
    ((system, (reason, evidence)),) = check(broken, LIMITS, MAX_FORCE).items()
    assert (system, reason) == (2, "force")
    assert evidence == f"a force of {np.sqrt(3) * component:.4g} eV/Å (limit 100)"


def test_runaway_temperature_is_found():
    broken = state()
    broken.momenta[4:8] *= 10
    hot = float(temperatures(broken)[1])
    assert check(broken, LIMITS, MAX_FORCE) == {
        1: ("temperature", f"an instantaneous temperature of {hot:.4g} K (limit 3600)")
    }


def test_temperatures_are_those_of_ase():
    batch = state()
    atoms = seed(crystal())
    for system, momenta in enumerate(batch.momenta.numpy().reshape(N_SYSTEMS, 4, 3)):
        atoms.set_momenta(momenta)
        assert float(temperatures(batch)[system]) == pytest.approx(atoms.get_temperature(), rel=1e-6)


def test_temperature_limit_is_the_ratio_for_large_systems_and_fluctuation_for_small_ones():
    ratio, many, one = 6.0, 1000, 1
    large, small = temperature_limit(np.array([300.0, 300.0]), np.array([many, one]), ratio)
    assert large == ratio * 300
    assert small == pytest.approx(300 * (1 + 8 * np.sqrt(2 / 3)))
    assert small > large


def test_temperature_limit_is_out_of_reach_of_sane_systems():
    """Kinetic energies of a million small systems in equilibrium stay below the limit of the least ratio."""
    n_systems, least = 1_000_000, np.nextafter(1, 2)
    rng = np.random.default_rng(0)
    for n_atoms in (2, 8, 64):
        instantaneous = HOT * rng.chisquare(3 * n_atoms, size=n_systems) / (3 * n_atoms)
        (limit,) = temperature_limit(np.array([HOT]), np.array([n_atoms]), least)
        share_beyond = np.mean(instantaneous > limit)
        assert share_beyond < 1e-4
