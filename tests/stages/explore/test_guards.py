from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from explore_samples import HOT, crystal, emt, make_trajectories, seed, settings

from daskpipe.core import constants
from daskpipe.core.geometry import count_parts
from daskpipe.potentials import batched_model
from daskpipe.stages.explore.batch import Batch
from daskpipe.stages.explore.guards import (
    BOND_REACH,
    CANDIDATE,
    RELEASED_ENERGY,
    BatchView,
    batch_guards,
    check_geometry,
    find_faults,
)
from daskpipe.stages.explore.settings import Guards

N_SYSTEMS = 3
GUARDS = Guards(max_disagreement=0.5)


@pytest.fixture
def view() -> BatchView:
    """Three sane crystals of four atoms, the last of them under a barostat."""
    chosen = settings(ensemble="nvt_langevin")
    found = make_trajectories([seed(crystal(), replica=number) for number in range(N_SYSTEMS)], chosen)
    found[2].ensemble = "npt_isotropic"
    batch = Batch(found, batched_model(emt(), stress=True), chosen.dynamics)
    thermal = torch.full((N_SYSTEMS,), constants.KB * HOT, dtype=torch.float64)
    calm = torch.zeros(N_SYSTEMS, dtype=torch.bool)
    return BatchView(
        state=batch.state, systems=batch.systems, thermal_energy=thermal, volume=batch.volume, equilibrating=calm
    )


def broken(view: BatchView, **changes: torch.Tensor) -> dict[int, tuple[str, str]]:
    return find_faults(batch_guards(GUARDS), replace(view, state=replace(view.state, **changes)))


def test_sane_systems_pass(view):
    assert broken(view) == {}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["positions", "momenta", "forces", "energy", "cell"])
def test_what_is_not_finite_is_found_in_its_system_only(view, name, value):
    array = getattr(view.state, name).clone()
    first_of_the_second_system = 1 if name in ("energy", "cell") else 4
    array[first_of_the_second_system] = value
    assert broken(view, **{name: array}) == {
        1: ("not_finite", "positions, momenta, forces, cell or energy are not finite")
    }


def test_largest_force_is_a_length_and_not_a_component(view):
    component = 0.6 * GUARDS.max_force  # below the limit; the vector of three of them is 1.04 limits long
    forces = view.state.forces.clone()
    forces[9] = component
    ((system, (reason, evidence)),) = broken(view, forces=forces).items()
    assert (system, reason) == (2, "force")
    assert evidence == f"a force of {np.sqrt(3) * component:.4g} eV/Å (limit 100)"


def test_runaway_temperature_is_found(view):
    momenta = view.state.momenta.clone()
    momenta[4:8] *= 10
    hot = float(replace(view, state=replace(view.state, momenta=momenta)).kinetic_temperature()[1])
    assert broken(view, momenta=momenta) == {
        1: ("temperature", f"an instantaneous temperature of {hot:.4g} K beyond what its start released (limit 5933)")
    }
    assert find_faults(batch_guards(GUARDS), replace(view, equilibrating=torch.tensor([False, True, False]))) == {}


def test_heat_that_the_start_held_does_not_count_and_heat_that_flows_in_does(view):
    """Four atoms of the second system at 10 000 K, where 5933 K are allowed."""
    momenta = view.state.momenta.clone()
    scale = (10_000 / float(view.kinetic_temperature()[1])) ** 0.5
    momenta[4:8] *= scale
    hot = replace(view.state, momenta=momenta)
    kinetic = 10_000 * constants.KB * 9 / 2  # eV, of nine degrees of freedom
    limit = 5933 * constants.KB * 9 / 2

    def stopped(released: float) -> bool:
        energy = hot.start_energy.clone()
        energy[1] -= released
        return 1 in find_faults(batch_guards(GUARDS), replace(view, state=replace(hot, energy=energy)))

    assert stopped(0.0)
    assert stopped(-5.0), "a potential energy that has risen excuses nothing"
    assert stopped(0.99 * (kinetic - limit))
    assert not stopped(1.01 * (kinetic - limit))


def test_a_hole_in_the_potential_does_not_excuse_any_heat(view):
    momenta = view.state.momenta.clone()
    momenta[4:8] *= (30_000 / float(view.kinetic_temperature()[1])) ** 0.5  # 11.6 eV, where 2.3 eV are allowed
    energy = view.state.energy.clone()
    energy[1] -= 100.0
    (fault,) = broken(view, momenta=momenta, energy=energy).values()
    assert fault[0] == "temperature"
    released = RELEASED_ENERGY * 4 * 2 / 9 / constants.KB
    assert f"of {float(30_000 - released):.4g} K beyond" in fault[1]


def test_equilibration_is_exempt_from_the_temperature_and_from_nothing_else(view):
    momenta = view.state.momenta * 10
    exempt = replace(view, state=replace(view.state, momenta=momenta), equilibrating=torch.tensor([True, True, False]))
    assert list(find_faults(batch_guards(GUARDS), exempt)) == [2]
    forces = view.state.forces.clone()
    forces[0] = 2 * GUARDS.max_force
    pushed = replace(exempt, state=replace(exempt.state, forces=forces))
    assert find_faults(batch_guards(GUARDS), pushed)[0][0] == "force"


@pytest.mark.parametrize("factor", [1.62, 1 / 1.62])
def test_volume_is_watched_where_there_is_a_barostat(view, factor):
    cell = view.state.cell * factor ** (1 / 3)
    assert broken(view, cell=cell) == {2: ("volume", "its volume has changed by a factor of 1.62 (limit 1.6)")}


def test_disagreement_is_an_end_and_not_a_fault(view):
    disagreement = torch.tensor([0.4, 0.6, np.nan], dtype=torch.float64)
    assert broken(view, disagreement=disagreement)[1] == CANDIDATE
    assert 0 not in broken(view, disagreement=disagreement)
    forces = view.state.forces.clone()
    forces[4] = torch.nan
    assert broken(view, disagreement=disagreement, forces=forces)[1][0] == "not_finite"


def test_temperatures_are_those_of_ase_with_the_centre_of_mass_at_rest(view):
    atoms = seed(crystal())
    for system, momenta in enumerate(view.state.momenta.numpy().reshape(N_SYSTEMS, 4, 3)):
        atoms.set_momenta(momenta)
        three_of_twelve_are_fixed = 12 / 9
        expected = atoms.get_temperature() * three_of_twelve_are_fixed
        assert float(view.kinetic_temperature()[system]) == pytest.approx(expected, rel=1e-6)


def test_temperature_limit_is_the_ratio_for_large_systems_and_fluctuation_for_small_ones(view):
    (guard,) = [guard for guard in batch_guards(GUARDS) if guard.reason == "temperature"]
    many, one = 3000.0, 3.0
    sizes = replace(
        view, systems=replace(view.systems, degrees_of_freedom=torch.tensor([many, one, one], dtype=torch.float64))
    )
    large, small, _ = guard.limit(sizes).tolist()
    assert large == pytest.approx(6 * HOT)
    assert small == pytest.approx(HOT * (1 + (2 * np.sqrt(25 * 3) + 50) / 3))


@pytest.mark.parametrize("freedom", [3, 6, 9, 21, 189, 3000])
def test_temperature_limit_is_out_of_reach_of_sane_systems(view, freedom):
    """A healthy system would be stopped in less than one of 10^10 steps, however small it is."""
    from scipy.stats import chi2

    (guard,) = [guard for guard in batch_guards(Guards(max_temperature_ratio=1.0001)) if guard.reason == "temperature"]
    sized = replace(
        view, systems=replace(view.systems, degrees_of_freedom=torch.full((3,), float(freedom), dtype=torch.float64))
    )
    limit = float(guard.limit(sized)[0])
    assert chi2.sf(freedom * limit / HOT, freedom) < 1e-10
    assert limit < 24 * HOT


def test_overlap_is_named_before_what_has_left():
    atoms = Atoms("Cu3", positions=[[0, 0, 0], [0, 0, 0.8], [0, 0, 30]])
    found = check_geometry(atoms, bulk("Cu"), Guards())
    assert found is not None
    assert found[0] == "overlap"


def moved(atoms: Atoms, index: int | list[int], away: tuple[float, float, float]) -> Atoms:
    atoms = atoms.copy()
    atoms.positions[index] += away
    return atoms


def test_what_was_apart_from_the_start_has_not_left():
    pair = molecule("H2O") + Atoms("Ar", positions=[[0, 0, 20.0]])
    assert check_geometry(pair, pair, Guards()) is None
    assert check_geometry(moved(pair, 3, (0, 0, 40)), pair, Guards()) is None
    torn = moved(pair, 2, (0, 10, 0))
    assert check_geometry(torn, pair, Guards()) == (
        "evaporated",
        "H (atom 2) is farther than 2.5 sums of covalent radii from what it was bonded to",
    )
    assert check_geometry(torn, pair, Guards(evaporation=None)) is None


def droplet() -> Atoms:
    """Five methane molecules, 4.1 Å apart, as in the liquid."""
    found = Atoms()
    for place in ([0, 0, 0], [4.1, 0, 0], [0, 4.1, 0], [0, 0, 4.1], [-4.1, 0, 0]):
        methane = molecule("CH4")
        methane.translate(place)
        found += methane
    return found


def test_molecules_that_leave_are_no_fragments_and_pieces_of_them_are():
    start = droplet()
    last = list(range(20, 25))
    assert check_geometry(moved(start, last, (-15, 0, 0)), start, Guards()) is None
    fault = check_geometry(moved(start, 21, (-15, 0, 0)), start, Guards())
    assert fault == ("evaporated", "H (atom 21) is farther than 2.5 sums of covalent radii from what it was bonded to")


def test_adsorbates_that_leave_a_slab_are_fragments():
    start = fcc111("Cu", (2, 2, 3), vacuum=12.0, periodic=True)
    add_adsorbate(start, molecule("CO"), 1.9, "ontop")
    assert count_parts(start, BOND_REACH) == 1
    fault = check_geometry(moved(start, [12, 13], (0, 0, 6)), start, Guards())
    assert fault == ("evaporated", "CO (atom 12) is farther than 2.5 sums of covalent radii from what it was bonded to")


def test_nothing_leaves_matter_that_is_connected_in_three_directions():
    """Liquid methane whose molecules are too far apart to be one part, and one hydrogen that has come loose."""
    start = molecule("CH4")
    start.set_cell([3.97] * 3)  # 0.425 g/cm^3
    start.pbc = True
    start = start.repeat((2, 2, 2))
    assert count_parts(start, BOND_REACH) == 8
    gap = moved(start, 1, (1.4, 1.4, -1.4))
    assert count_parts(gap, 1.3) > 8
    strict = Guards(evaporation=1.3)
    assert check_geometry(gap, start, strict) is None
    gas = start.copy()
    gas.set_cell([20.0] * 3)
    gap.set_cell([20.0] * 3)
    found = check_geometry(gap, gas, strict)
    assert found is not None
    assert found[0] == "evaporated"


def test_parts_are_counted_across_the_boundary():
    chain = Atoms("Cu2", positions=[[0, 0, 0.1], [0, 0, 9.9]], cell=[10, 10, 10], pbc=[False, False, True])
    assert count_parts(chain, 1.1) == 1
    chain.pbc = False
    assert count_parts(chain, 1.1) == 2
    # Longer than a bond between light atoms and shorter than one between heavy ones: radii of the pair decide.
    assert count_parts(Atoms("H2", positions=[[0, 0, 0], [0, 0, 2.5]]), 1.1) == 2
    assert count_parts(Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.5]]), 1.1) == 1


def test_a_cell_that_loses_its_shape_is_found():
    """Its volume is the seed's: what has melted under a barostat for crystals flows so."""
    copper = bulk("Cu", cubic=True).repeat(2)
    for stretch, fault in (
        (1.5, None),
        (1.7, ("shape", "its cell is stretched or squeezed by a factor of 1.7 (limit 1.6)")),
    ):
        long = copper.copy()
        long.set_cell(copper.cell.array @ np.diag([stretch, stretch**-0.5, stretch**-0.5]), scale_atoms=True)
        assert check_geometry(long, copper, GUARDS) == fault
