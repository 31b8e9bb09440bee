from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from torch_sim.models.interface import validate_model_outputs

from daskpipe.core.torch_sim import torch_sim
from daskpipe.potentials import batched_model, build_potential, evaluate
from daskpipe.potentials.ase_model import AseModel
from daskpipe.potentials.batches import make_state


def state_of(*structures: Atoms) -> torch_sim.SimState:
    return torch_sim.io.atoms_to_state(
        list(structures), torch.device("cpu"), torch.float64,
        system_extras_map={"charge": "charge", "spin": "spin_multiplicity"},
    )  # fmt: skip


def test_torch_sims_own_contract() -> None:
    model = AseModel(build_potential("lj", {}, "cpu", "float64").calculator, compute_stress=True)
    validate_model_outputs(model, torch.device("cpu"), torch.float64)


def test_a_system_is_the_same_bits_in_any_company(make) -> None:
    model = AseModel(build_potential("emt", {}, "cpu", "float64").calculator)
    structures = [make("alloy", seed) for seed in range(4)]
    together = model(state_of(*structures))
    backwards = model(state_of(*structures[::-1]))
    for index, atoms in enumerate(structures):
        alone = model(state_of(atoms))
        for other, place in ((together, index), (backwards, len(structures) - 1 - index)):
            assert float(other["energy"][place]) == float(alone["energy"][0])
            rows = slice(place * len(atoms), (place + 1) * len(atoms))
            np.testing.assert_array_equal(other["forces"][rows].numpy(), alone["forces"].numpy())


def test_each_system_has_its_own_periodicity(metals: list[Atoms]) -> None:
    potential = build_potential("emt", {}, "cpu", "float64")
    out = AseModel(potential.calculator, compute_stress=True)(make_state(metals, torch.device("cpu"), torch.float64))
    expected = evaluate(potential, metals)
    np.testing.assert_allclose(out["energy"].numpy(), [item.energy for item in expected], rtol=0, atol=1e-12)
    np.testing.assert_allclose(out["forces"].numpy(), np.concatenate([item.forces for item in expected]), atol=1e-12)
    assert [float(stress.isnan().all()) for stress in out["stress"]] == [0, 1, 1]


def test_a_failing_system_fails_alone() -> None:
    model = batched_model(build_potential("xtb", {"max_iterations": 3}, "cpu", "float64"))
    assert isinstance(model, AseModel)
    state = state_of(Atoms("He"), molecule("CH3OH"), Atoms("Ne"))
    out = model(state)
    assert list(model.failures) == [1]
    assert "unconverged: SCF not converged in 3 cycles" in model.failures[1]
    assert torch.isnan(out["energy"]).tolist() == [False, True, False]
    assert torch.isnan(out["forces"]).any(dim=1).tolist() == [False, *[True] * 6, False]
    model(state_of(Atoms("He")))
    assert model.failures == {}


def test_charge_and_spin_come_with_the_state() -> None:
    potential = build_potential("xtb", {}, "cpu", "float64")
    cation = molecule("H2O")
    cation.info = {"charge": 1, "spin_multiplicity": 2}
    neutral = molecule("H2O")
    neutral.info = {"charge": 0, "spin_multiplicity": 1}
    energies = batched_model(potential)(state_of(cation, neutral))["energy"]
    ionisation = float(energies[0] - energies[1])
    # Water's vertical ionisation energy is 12.6 eV; GFN2 overshoots, as it is not made for it.
    assert 10 < ionisation < 20


def test_output_follows_the_state(make) -> None:
    model = AseModel(build_potential("emt", {}, "cpu", "float64").calculator, compute_stress=True)
    state = torch_sim.io.atoms_to_state([make("alloy")], torch.device("cpu"), torch.float32)
    assert {value.dtype for value in model(state).values()} == {torch.float32}
    assert model(state)["stress"].shape == (1, 3, 3)
    assert model.dtype == torch.float64


def test_stress_without_a_periodic_cell_is_nan() -> None:
    model = batched_model(build_potential("xtb", {}, "cpu", "float64"), stress=True)
    out = model(state_of(molecule("H2O")))
    assert torch.isnan(out["stress"]).all()
    assert torch.isfinite(out["forces"]).all()
    with pytest.raises(AttributeError):
        state_of(molecule("H2O")).charge  # noqa: B018 (a state without extras is what forward must bear)
