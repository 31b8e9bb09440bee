"""The repulsion of nuclei, against a slow loop and against MACE's implementation of the same formula."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.collections import g2
from ase.data import covalent_radii
from mixed_structures import random_structure
from solids import solids

from daskpipe.core.third_party import silence_libraries
from daskpipe.potentials import batched_model, build_potential
from daskpipe.potentials.batches import make_state
from daskpipe.potentials.zbl import REACH, add_repulsion

CPU = torch.device("cpu")
WEIGHTS, RATES = (0.1818, 0.5099, 0.2802, 0.02817), (3.2, 0.9423, 0.4029, 0.2016)
NOTHING = {"epsilon": 1e-12, "sigma": 0.5, "r_cut": 1.0}
"""A Lennard-Jones whose energies are below 1e-9 eV where these tests look: what is left is the repulsion."""


def wall(*, stress: bool = True):
    return add_repulsion(batched_model(build_potential("lj", NOTHING, "cpu", "float64"), stress=stress))


def run(model, structures: list[Atoms]) -> list[dict[str, torch.Tensor]]:
    out = model(make_state(structures, CPU, torch.float64))
    parts = out | {"forces": out["forces"].split([len(atoms) for atoms in structures])}
    return [{name: part[index] for name, part in parts.items()} for index in range(len(structures))]


def pair_energy(first: int, second: int, distance: float) -> float:
    reach = REACH * (covalent_radii[first] + covalent_radii[second])
    if distance >= reach:
        return 0.0
    length = 0.8854 * units.Bohr / (first**0.23 + second**0.23)
    screening = sum(w * np.exp(-rate * distance / length) for w, rate in zip(WEIGHTS, RATES, strict=True))
    x = distance / reach
    coulomb = units.Hartree * units.Bohr * first * second / distance
    return float(coulomb * screening * (1 - 28 * x**6 + 48 * x**7 - 21 * x**8))


def slow_energy(atoms: Atoms) -> float:
    """Half the sum over atoms, their partners and the images of these that a pair of large atoms can reach."""
    images = [range(-3, 4) if periodic else [0] for periodic in atoms.pbc]
    total = 0.0
    for first, second in itertools.product(range(len(atoms)), repeat=2):
        for image in itertools.product(*images):
            if first == second and not any(image):
                continue
            distance = np.linalg.norm(atoms.positions[second] + image @ atoms.cell.array - atoms.positions[first])
            total += 0.5 * pair_energy(atoms.numbers[first], atoms.numbers[second], float(distance))
    return total


def squeezed(make) -> list[Atoms]:
    """Structures whose atoms are within reach of each other."""
    structures = [make("alloy"), make("slab", 1), make("cluster", 2)]
    for atoms in structures:
        atoms.set_cell(0.5 * atoms.cell.array)
        atoms.positions *= 0.5
    return structures


def test_energy_is_that_of_a_slow_loop(make) -> None:
    structures = squeezed(make)
    for atoms, found in zip(structures, run(wall(), structures), strict=True):
        expected = slow_energy(atoms)
        assert expected > 10
        assert float(found["energy"]) == pytest.approx(expected, rel=1e-9)


def test_forces_and_stress_are_slopes(make) -> None:
    structures, step, rng = squeezed(make), 1e-5, np.random.default_rng(0)
    for atoms, found in zip(structures, run(wall(), structures), strict=True):
        direction, strain = rng.normal(size=(len(atoms), 3)), rng.normal(size=(3, 3))
        strain = (strain + strain.T) / 2

        def energy(move: float, deform: float, atoms=atoms, direction=direction, strain=strain) -> float:
            other = atoms.copy()
            other.positions += move * direction
            other.set_cell(other.cell.array @ (np.eye(3) + deform * strain), scale_atoms=True)
            return slow_energy(other)

        slope = (energy(step, 0) - energy(-step, 0)) / (2 * step)
        assert -np.sum(found["forces"].numpy() * direction) == pytest.approx(slope, rel=1e-6)
        if atoms.pbc.all():
            slope = (energy(0, step) - energy(0, -step)) / (2 * step) / atoms.get_volume()
            assert np.sum(found["stress"].numpy() * strain) == pytest.approx(slope, rel=1e-6)
        else:
            assert found["stress"].isnan().all()


def test_it_ends_smoothly_at_its_reach() -> None:
    reach = REACH * (covalent_radii[29] + covalent_radii[79])
    distances = reach - np.array([1e-3, 1e-6, -1e-6])
    dimers = [Atoms("CuAu", positions=[[0, 0, 0], [0, 0, distance]]) for distance in distances]
    inner, edge, outer = run(wall(), dimers)
    # The cubic zero of 1 - 28 x^6 + 48 x^7 - 21 x^8 at x = 1 has 56 for a factor.
    bare = pair_energy(29, 79, reach / 2) / (1 - 28 / 64 + 48 / 128 - 21 / 256)
    assert 0 < float(inner["energy"]) < bare * 56 * (1e-3 / reach) ** 3
    assert float(inner["forces"].abs().max()) > 1e-9
    # The slope has a quadratic zero: a thousandth of the way to the end leaves a millionth of it.
    assert 0 < float(edge["forces"].abs().max()) < 1.1e-6 * float(inner["forces"].abs().max())
    assert float(outer["energy"]) == float(outer["forces"].abs().max()) == 0.0


def test_solids_and_molecules_at_equilibrium_do_not_feel_it() -> None:
    crystals = solids()
    molecules = [g2[name] for name in g2.names if len(g2[name]) > 1]
    assert len(crystals) >= 40
    assert len(molecules) > 140
    found = wall().wall(make_state([*crystals.values(), *molecules], CPU, torch.float64))
    assert float(found["energy"].abs().max()) == float(found["forces"].abs().max()) == 0.0


def test_maces_repulsion_is_the_same_formula() -> None:
    from daskpipe.core.third_party import import_mace

    import_mace()
    from mace.modules.radial import ZBLBasis

    with silence_libraries():
        theirs = ZBLBasis(p=6).double()
    # MACE has a fit of its own for the screening length, with a Bohr radius of 0.529; here it gets that of ZBL. What is
    # left are its 0.4028 for 0.4029 and the digits of the Coulomb constant.
    theirs.a_exp = torch.tensor(0.23, dtype=torch.float64)
    theirs.a_prefactor = torch.tensor(0.8854 * units.Bohr / 0.529, dtype=torch.float64)
    theirs.covalent_radii *= REACH  # MACE's repulsion ends at the sum of the covalent radii
    numbers = torch.tensor([6, 29, 79])
    for first, second, distance in ((0, 1, 1.1), (1, 2, 1.6), (2, 2, 0.8), (1, 1, 1.5)):
        atoms = Atoms([int(numbers[first]), int(numbers[second])], positions=[[0, 0, 0], [0, 0, distance]])
        found = run(wall(), [atoms])[0]["energy"]
        kinds = torch.eye(3, dtype=torch.float64)[[first, second]]
        edges = torch.tensor([[0, 1], [1, 0]])
        wanted = theirs(torch.full((2, 1), distance, dtype=torch.float64), kinds, edges, numbers).sum()
        assert float(wanted) > 0.1
        assert float(found) == pytest.approx(float(wanted), rel=1e-3)


def test_it_adds_to_a_model_and_leaves_the_rest(make) -> None:
    structures = squeezed(make)
    members = [{"name": "emt"}, {"name": "mace"}]
    bare = batched_model(build_potential("committee", {"members": members}, "cpu", "float64"), stress=True)
    for alone, sum_, extra in zip(
        run(bare, structures),
        run(add_repulsion(bare, {"Ag", "Au", "Cu"}), structures),
        run(wall(), structures),
        strict=True,
    ):
        assert torch.equal(sum_["force_disagreement"], alone["force_disagreement"])
        for key in ("energy", "forces", "stress"):
            torch.testing.assert_close(sum_[key], alone[key] + extra[key], equal_nan=True)
    without = add_repulsion(batched_model(build_potential("emt", {}, "cpu", "float64")))
    assert "stress" not in run(without, structures)[0]


def test_failures_are_those_of_the_model() -> None:
    model = add_repulsion(batched_model(build_potential("xtb", {"max_iterations": 1}, "cpu", "float64")))
    run(model, [Atoms("OH2", positions=[[0, 0, 0], [0, 0, 1], [0, 1, 0]])])
    assert list(model.failures) == [0]
    assert add_repulsion(batched_model(build_potential("emt", {}, "cpu", "float64"))).failures == {}


@pytest.mark.parametrize("seed", range(5))
def test_a_system_is_the_same_bits_in_any_company(seed: int, make) -> None:
    rng = np.random.default_rng(seed)
    structures = [*squeezed(make), *(random_structure(rng) for _ in range(6))]
    order = rng.permutation(len(structures))
    for stress in (True, False):
        for index, found in zip(order, run(wall(stress=stress), [structures[i] for i in order]), strict=True):
            (alone,) = run(wall(), [structures[index]])
            for key, value in found.items():
                np.testing.assert_array_equal(value.numpy(), alone[key].numpy())
