"""Lennard-Jones and EMT in torch: ASE's numbers, and the same bits for a system in any company."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from mixed_structures import random_structure
from torch_sim.models.interface import validate_model_outputs

from daskpipe.potentials import batched_model, build_potential
from daskpipe.potentials.batches import make_state

CPU = torch.device("cpu")
LJ = {"epsilon": 0.3, "sigma": 2.4, "r_cut": 5.5}
NAMES = ("emt", "lj")


def model_of(name: str, *, stress: bool = True, dtype: str = "float64"):
    return batched_model(build_potential(name, LJ if name == "lj" else {}, "cpu", dtype), stress=stress)


def ase_of(name: str) -> Calculator:
    return EMT() if name == "emt" else LennardJones(epsilon=0.3, sigma=2.4, rc=5.5, smooth=True)


def run(model, structures: list[Atoms], dtype: torch.dtype = torch.float64) -> list[dict[str, torch.Tensor]]:
    """Results of each structure of one batch."""
    out = model(make_state(structures, CPU, dtype))
    parts = out | {"forces": out["forces"].split([len(atoms) for atoms in structures])}
    return [{name: part[index] for name, part in parts.items()} for index in range(len(structures))]


def zoo(make) -> dict[str, Atoms]:
    """What has gone wrong in some program before."""
    tiny = bulk("Cu", "fcc", a=3.7)
    tiny.rattle(0.05, seed=1)
    left_handed = make("alloy", 3)
    left_handed.cell[[0, 1]] = left_handed.cell[[1, 0]]
    thick = fcc111("Al", (2, 2, 3), vacuum=5.0, periodic=False)
    thick.rattle(0.1, seed=2)
    wire = make("cluster", 4)
    wire.set_cell([[6.0, 1.0, 0.5], [0, 0, 0], [0, 0, 0]])
    wire.pbc = [True, False, False]
    far = make("alloy", 5)
    far.positions += np.random.default_rng(0).integers(-9, 10, (len(far), 3)) @ far.cell.array
    return {
        "alloy": make("alloy"), "slab": make("slab"), "cluster": make("cluster"), "tiny": tiny,
        "left-handed": left_handed, "slab with vacuum": thick, "wire": wire, "unwrapped": far,
        "atom": Atoms("Ni"), "dimer": Atoms("CuPd", positions=[[0, 0, 0], [0, 0, 2.3]]),
        "two far atoms": Atoms("Au2", positions=[[0, 0, 0], [0, 0, 40.0]]),
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_ases_numbers_in_one_mixed_batch(name: str, make) -> None:
    structures = zoo(make)
    for (kind, atoms), found in zip(structures.items(), run(model_of(name), list(structures.values())), strict=True):
        atoms.calc = ase_of(name)
        assert float(found["energy"]) == pytest.approx(atoms.get_potential_energy(), rel=0, abs=1e-9), kind
        np.testing.assert_allclose(found["forces"].numpy(), atoms.get_forces(), rtol=0, atol=1e-9, err_msg=kind)
        if atoms.cell.rank == 3:
            wanted = atoms.get_stress(voigt=False)
            np.testing.assert_allclose(found["stress"].numpy(), wanted, rtol=0, atol=1e-9, err_msg=kind)
        else:
            assert found["stress"].isnan().all(), kind


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", NAMES)
def test_ases_numbers_for_random_structures(name: str, seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    structures = [random_structure(rng) for _ in range(6)]
    for atoms, found in zip(structures, run(model_of(name), structures), strict=True):
        atoms.calc = ase_of(name)
        scale = max(1.0, abs(atoms.get_potential_energy()))
        assert float(found["energy"]) == pytest.approx(atoms.get_potential_energy(), abs=1e-9 * scale)
        np.testing.assert_allclose(found["forces"].numpy(), atoms.get_forces(), atol=1e-9 * scale)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", NAMES)
def test_a_system_is_the_same_bits_in_any_company(name: str, seed: int, make) -> None:
    rng = np.random.default_rng(seed)
    structures = [*zoo(make).values(), *(random_structure(rng) for _ in range(6))]
    order = rng.permutation(len(structures))[: rng.integers(2, len(structures) + 1)]
    for stress in (True, False):
        together = run(model_of(name, stress=stress), [structures[index] for index in order])
        for index, found in zip(order, together, strict=True):
            (alone,) = run(model_of(name), [structures[index]])
            for key, value in found.items():
                np.testing.assert_array_equal(value.numpy(), alone[key].numpy(), err_msg=f"{key} of {index}")


@pytest.mark.parametrize("name", NAMES)
def test_a_trajectory_is_the_same_bits_in_any_company(name: str, make) -> None:
    """The model remembers neighbours from step to step; what it remembers must not show."""
    others = [make("slab"), make("alloy", 2)]
    alone, together = make("cluster", 1), make("cluster", 1)
    model = model_of(name)
    for step in range(30):
        (one,) = run(model_of(name, stress=False), [alone])
        two = run(model, [others[0], together, others[1]])[1]
        np.testing.assert_array_equal(one["forces"].numpy(), two["forces"].numpy())
        alone.positions += 0.05 * one["forces"].numpy()
        together.positions += 0.05 * two["forces"].numpy()
        others[step % 2].rattle(0.3, seed=step)
    assert np.abs(alone.positions - make("cluster", 1).positions).max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_near_and_takes_states_of_either_dtype(name: str, make) -> None:
    structures = [make("alloy"), make("slab"), make("cluster")]
    fine, rough = run(model_of(name), structures), run(model_of(name, dtype="float32"), structures)
    single = run(model_of(name, dtype="float32"), structures, torch.float32)
    for one, two, three in zip(fine, rough, single, strict=True):
        assert {value.dtype for value in two.values()} == {torch.float64}
        assert {value.dtype for value in three.values()} == {torch.float32}
        for key in ("energy", "forces"):
            assert not torch.equal(one[key], two[key])
            torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=2e-5)
            torch.testing.assert_close(three[key].double(), one[key], rtol=1e-5, atol=2e-4)


def test_torch_sims_own_contract() -> None:
    validate_model_outputs(model_of("lj"), CPU, torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_a_lost_system_has_no_energy_and_leaves_the_others_alone(name: str, make) -> None:
    structures = [make("alloy"), make("alloy", 1), make("slab")]
    state = make_state(structures, CPU, torch.float64)
    state.positions[len(structures[0])] = torch.nan
    energies = model_of(name)(state)["energy"]
    assert energies.isnan().tolist() == [False, True, False]
    assert float(energies[0]) == float(run(model_of(name), structures[:1])[0]["energy"])


def test_a_model_is_built_once() -> None:
    potential = build_potential("emt", {}, "cpu", "float64")
    assert batched_model(potential) is batched_model(potential)
    assert batched_model(potential, stress=True) is batched_model(potential, stress=True)
    assert batched_model(potential, stress=True) is not batched_model(potential)
