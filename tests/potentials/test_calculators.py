"""Each potential against the program that it comes from, and against the laws that any potential obeys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator
from scipy.spatial.transform import Rotation

from daskpipe.core.torch_sim import torch_sim
from daskpipe.potentials import Failure, Potential, Results, batched_model, build_potential, evaluate, make_periodic

ALL = ("chgnet", "emt", "lj", "mace", "xtb")
PARAMS: dict[str, dict[str, object]] = {
    # A well near the distances of metals, and a cutoff within the smallest cell's reach.
    "lj": {"epsilon": 0.3, "sigma": 2.4, "r_cut": 5.5},
    "xtb": {"method": "GFN1-xTB", "accuracy": 0.1, "min_width": 0},  # the numbers of one k-point are compared
}
# Energies carry the noise of float32 (CHGNet) or of an SCF (xTB), so that their differences need a longer step.
STEP = {"chgnet": 2e-2, "xtb": 1e-3}
FORCE_TOLERANCE = {"chgnet": 2e-2, "xtb": 1e-4}
STRESS_TOLERANCE = {"chgnet": 2e-2, "xtb": 1e-3}


def get(name: str) -> Potential:
    return build_potential(name, PARAMS.get(name, {}), "cpu", "float64")


def results(potential: Potential, *structures: Atoms) -> list[Results]:
    found = evaluate(potential, structures)
    assert all(isinstance(item, Results) for item in found), found
    return [item for item in found if isinstance(item, Results)]


def upstream(name: str) -> Calculator:
    if name == "emt":
        from ase.calculators.emt import EMT

        return EMT()
    if name == "lj":
        from ase.calculators.lj import LennardJones

        return LennardJones(epsilon=0.3, sigma=2.4, rc=5.5, smooth=True)
    if name == "xtb":
        from tblite.ase import TBLite

        return TBLite(method="GFN1-xTB", accuracy=0.1, verbosity=0)
    if name == "chgnet":
        from chgnet.model.dynamics import CHGNetCalculator

        return CHGNetCalculator(use_device="cpu")
    from mace.calculators import MACECalculator

    return MACECalculator(models=get("mace").calculator.models, device="cpu", default_dtype="float64")


@pytest.mark.parametrize("name", ALL)
def test_same_numbers_as_upstream(name: str, metals: list[Atoms]) -> None:
    structures = [molecule("CH3OH"), metals[0]] if name == "xtb" else metals
    for atoms, found in zip(structures, results(get(name), *structures), strict=True):
        # CHGNet takes any structure as periodic, and its own calculator needs the box from us.
        reference = make_periodic(atoms, 12.0) if name == "chgnet" else atoms.copy()
        reference.calc = upstream(name)
        tight = {"rtol": 1e-5, "atol": 1e-4} if name == "chgnet" else {"rtol": 1e-8, "atol": 1e-7}
        np.testing.assert_allclose(found.energy, reference.get_potential_energy(), **tight)
        np.testing.assert_allclose(found.forces, reference.get_forces(), **tight)
        if atoms.pbc.all():
            np.testing.assert_allclose(found.stress, reference.get_stress(), **tight)
        else:
            assert np.isnan(found.stress).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["alloy", "slab", "cluster"])
def test_forces_are_the_slope_of_the_energy(name: str, kind: str, make) -> None:
    atoms = molecule("CH3OH") if name == "xtb" and kind != "alloy" else make(kind)
    potential, step = get(name), STEP.get(name, 1e-4)
    direction = np.random.default_rng(3).normal(size=(len(atoms), 3))
    direction /= np.linalg.norm(direction)
    moved = []
    for sign in (1, -1):
        moved.append(atoms.copy())
        moved[-1].positions += sign * step * direction
    middle, up, down = results(potential, atoms, *moved)
    slope = (up.energy - down.energy) / (2 * step)
    assert abs(slope) > 0.01, "the direction must matter"
    assert -np.sum(middle.forces * direction) == pytest.approx(slope, abs=FORCE_TOLERANCE.get(name, 1e-5))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("left_handed", [False, True])
def test_stress_is_the_slope_of_the_energy(name: str, left_handed: bool, make) -> None:
    atoms = make("alloy")
    if left_handed:
        atoms.cell[[0, 1]] = atoms.cell[[1, 0]]
    assert (atoms.cell.handedness < 0) == left_handed
    step = STEP.get(name, 1e-4) / 10
    strain = np.random.default_rng(4).normal(size=(3, 3))
    strain = (strain + strain.T) / 2
    strained = []
    for sign in (1, -1):
        strained.append(atoms.copy())
        strained[-1].set_cell(atoms.cell.array @ (np.eye(3) + sign * step * strain), scale_atoms=True)
    middle, up, down = results(get(name), atoms, *strained)
    slope = (up.energy - down.energy) / (2 * step) / atoms.get_volume()
    assert abs(slope) > 0.005, "the strain must matter"
    # Off-diagonal parts count twice in Voigt's order.
    work = np.sum(middle.stress * np.array([1, 1, 1, 2, 2, 2]) * strain.flat[[0, 4, 8, 5, 2, 1]])
    assert work == pytest.approx(slope, rel=STRESS_TOLERANCE.get(name, 1e-4))


@pytest.mark.parametrize("name", ALL)
def test_rotation(name: str, metals: list[Atoms]) -> None:
    structures = [molecule("CH3OH")] if name == "xtb" else metals
    turn = Rotation.random(rng=5).as_matrix()
    turned = [atoms.copy() for atoms in structures]
    for atoms in turned:
        atoms.set_cell(atoms.cell.array @ turn.T)
        atoms.positions = atoms.positions @ turn.T
    tolerance = {"chgnet": 2e-4, "xtb": 1e-5}.get(name, 1e-8)
    before, after = results(get(name), *structures), results(get(name), *turned)
    for one, two in zip(before, after, strict=True):
        assert two.energy == pytest.approx(one.energy, abs=tolerance)
        np.testing.assert_allclose(two.forces, one.forces @ turn.T, atol=tolerance)


@pytest.mark.parametrize("name", ALL)
def test_many_at_once_equals_one_by_one(name: str, metals: list[Atoms], make) -> None:
    structures = (
        [molecule("H2O"), molecule("CH4")] if name == "xtb" else [*metals, make("alloy", 6), make("cluster", 7)]
    )
    together = results(get(name), *structures)
    for atoms, found in zip(structures, together, strict=True):
        (alone,) = results(get(name), atoms)
        tolerance = {"chgnet": 1e-4, "mace": 1e-9}.get(name, 0.0)
        assert found.energy == pytest.approx(alone.energy, rel=0, abs=tolerance)
        np.testing.assert_allclose(found.forces, alone.forces, rtol=0, atol=tolerance)
        np.testing.assert_allclose(found.stress, alone.stress, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["alloy", "cluster"])
def test_the_batched_model_agrees_with_the_calculator(name: str, kind: str, make) -> None:
    structures = [molecule("H2O"), molecule("CH4")] if name == "xtb" else [make(kind, 8), make(kind, 9)]
    potential = get(name)
    model = batched_model(potential, stress=True)
    state = torch_sim.io.atoms_to_state(structures, model.device, model.dtype)
    out = model(state)
    tolerance = 1e-4 if name == "chgnet" else 1e-8
    forces = out["forces"].split([len(atoms) for atoms in structures])
    for index, (atoms, found) in enumerate(zip(structures, results(potential, *structures), strict=True)):
        assert float(out["energy"][index]) == pytest.approx(found.energy, abs=tolerance)
        np.testing.assert_allclose(forces[index].numpy(), found.forces, atol=tolerance)
        if atoms.pbc.all():
            full = out["stress"][index].numpy()
            np.testing.assert_allclose(full.flat[[0, 4, 8, 5, 2, 1]], found.stress, atol=tolerance)
    assert "stress" not in batched_model(potential)(state)


@pytest.mark.parametrize("name", ["mace", "lj"])
def test_float32_is_near_float64(name: str, metals: list[Atoms]) -> None:
    single = build_potential(name, PARAMS.get(name, {}), "cpu", "float32")
    assert batched_model(single).dtype == torch.float32
    for rough, fine in zip(results(single, *metals), results(get(name), *metals), strict=True):
        assert rough.energy == pytest.approx(fine.energy, rel=1e-5)
        np.testing.assert_allclose(rough.forces, fine.forces, atol=2e-4)


@pytest.mark.parametrize("name", ALL)
def test_structures_are_left_alone(name: str, make) -> None:
    atoms = molecule("H2O") if name == "xtb" else make("slab")
    atoms.info["charge"] = 0
    before = atoms.copy()
    assert not isinstance(evaluate(get(name), [atoms])[0], Failure)
    assert atoms == before
    assert atoms.info == before.info
    assert atoms.calc is None
