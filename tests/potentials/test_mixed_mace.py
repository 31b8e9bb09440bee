"""The batched MACE: MACECalculator's numbers for a batch of all periodicities, and what makes it faster."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule, surface
from test_mace import random_module, save

from daskpipe.core.errors import ConfigError
from daskpipe.core.third_party import import_mace
from daskpipe.potentials import Potential, batched_model, build_potential, evaluate, identify_potential
from daskpipe.potentials.batches import make_state

import_mace()
from daskpipe.potentials.mace_model import check_acceleration  # noqa: E402

AGREEMENT = 1e-5
"""eV, eV/Å and eV/Å^3: what the project promises for float64."""


def coinage(make) -> list[Atoms]:
    """Clusters, slabs and bulk of Cu, Ag and Au, wrapped or not, of either hand."""
    left_handed = make("alloy", 3)
    left_handed.cell[[0, 1]] = left_handed.cell[[1, 0]]
    far = make("alloy", 5)
    far.positions += np.random.default_rng(0).integers(-5, 6, (len(far), 3)) @ far.cell.array
    vacuum = fcc111("Au", (2, 2, 3), vacuum=6.0, periodic=False)
    vacuum.rattle(0.1, seed=3)
    return [
        make("alloy"), make("slab", 1), make("cluster", 2), left_handed, far, vacuum, bulk("Cu"), Atoms("Au"),
        Atoms("CuAg", positions=[[0, 0, 0], [0, 0, 2.5]]),
    ]  # fmt: skip


def organic() -> list[Atoms]:
    """Molecules, a slab and bulk of H, C and O."""
    diamond = bulk("C", cubic=True)
    diamond.rattle(0.05, seed=1)
    slab = surface(bulk("C", cubic=True), (1, 1, 1), 2)
    slab.pbc = [True, True, False]
    slab.rattle(0.05, seed=2)
    return [molecule("CH3CH2OH"), diamond, slab, molecule("H2O"), molecule("C6H6")]


def agrees(potential: Potential, structures: list[Atoms], tolerance: float) -> None:
    """See that one mixed batch gives MACECalculator's energies, forces and stresses."""
    from mace.calculators import MACECalculator

    out = batched_model(potential, stress=True)(make_state(structures, torch.device("cpu"), torch.float64))
    assert {value.dtype for value in out.values()} == {torch.float64}
    forces = out["forces"].split([len(atoms) for atoms in structures])
    calculator = potential.calculator
    reference = MACECalculator(models=calculator.models, device="cpu", default_dtype=calculator.default_dtype)
    largest = 0.0
    for index, atoms in enumerate(structures):
        atoms.calc = reference
        assert float(out["energy"][index]) == pytest.approx(atoms.get_potential_energy(), abs=tolerance)
        np.testing.assert_allclose(forces[index].numpy(), atoms.get_forces(), rtol=0, atol=tolerance)
        largest = max(largest, np.abs(atoms.get_forces()).max())
        if atoms.cell.rank < 3:
            assert out["stress"][index].isnan().all()
        elif atoms.pbc.all():
            found = out["stress"][index].numpy()
            np.testing.assert_allclose(found, atoms.get_stress(voigt=False), rtol=0, atol=tolerance)
            assert np.isfinite(found).all()
    assert largest > 100 * tolerance


def test_a_mixed_batch_agrees_with_the_calculator(make) -> None:
    agrees(build_potential("mace", {}, "cpu", "float64"), coinage(make), AGREEMENT)


@pytest.fixture
def organic_file(tmp_path: Path) -> Path:
    path = tmp_path / "organic.model"
    changes = {"atomic_numbers": [1, 6, 8], "num_elements": 3, "hidden_irreps": "4x0e+4x1o"}
    save(random_module(seed=1, **changes), path)
    return path


def test_a_mixed_batch_of_other_elements_agrees_with_the_calculator(organic_file: Path) -> None:
    potential = build_potential("mace", {"model": str(organic_file)}, "cpu", "float64")
    assert potential.elements == {"H", "C", "O"}
    agrees(potential, organic(), AGREEMENT)


def test_float32_in_a_float64_state(make) -> None:
    agrees(build_potential("mace", {}, "cpu", "float32"), coinage(make)[:4], 5e-5)


def test_the_stress_of_a_slab_is_the_virial_over_its_cell(make) -> None:
    """MACECalculator wants all vectors periodic for a stress; a vacuum beyond the cutoff changes no energy."""
    slab = fcc111("Ag", (2, 2, 3), vacuum=8.0, periodic=False)
    slab.rattle(0.1, seed=4)
    closed = slab.copy()
    closed.pbc = True
    out = batched_model(build_potential("mace", {}, "cpu", "float64"), stress=True)(
        make_state([slab, closed], torch.device("cpu"), torch.float64)
    )
    assert float(out["stress"][1].abs().max()) > 1e-4
    torch.testing.assert_close(out["stress"][0], out["stress"][1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_how_far_a_system_has_drifted_costs_no_precision(dtype: str, make) -> None:
    near = [make("cluster"), make("slab"), make("alloy")]
    far = [atoms.copy() for atoms in near]
    for atoms in far:
        atoms.positions += 2048.0
    model = batched_model(build_potential("mace", {}, "cpu", dtype))
    one, two = (model(make_state(structures, torch.device("cpu"), torch.float64)) for structures in (near, far))
    tolerance = 1e-9 if dtype == "float64" else 5e-5
    torch.testing.assert_close(two["forces"], one["forces"], rtol=0, atol=tolerance)


def test_a_lost_system_has_no_energy_and_leaves_the_others_alone(make) -> None:
    structures = [make("alloy"), make("cluster"), make("slab"), make("alloy", 2)]
    model = batched_model(build_potential("mace", {}, "cpu", "float64"), stress=True)
    whole = model(make_state(structures, torch.device("cpu"), torch.float64))
    state = make_state(structures, torch.device("cpu"), torch.float64)
    state.positions[len(structures[0])] = torch.nan
    state.cell[3] = torch.nan
    out = model(state)
    assert out["energy"].isnan().tolist() == [False, True, False, True]
    torch.testing.assert_close(out["energy"][[0, 2]], whole["energy"][[0, 2]])


def test_it_computes_where_gradients_are_switched_off(make) -> None:
    model = batched_model(build_potential("mace", {}, "cpu", "float64"))
    state = make_state([make("alloy")], torch.device("cpu"), torch.float64)
    expected = model(state)["forces"]
    with torch.no_grad():
        found = model(state)["forces"]
    assert not found.requires_grad
    torch.testing.assert_close(found, expected)


# --- acceleration -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cpu", r"cueq needs cuequivariance, cuequivariance_torch; pip install cuequivariance cuequivariance-torch or"),
        ("cuda", r"cueq needs cuequivariance, .*, cuequivariance_ops_torch; pip .* cuequivariance-ops-torch-cu12 or"),
    ],
)
def test_cueq_that_is_not_installed(device: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskpipe.potentials.mace_model.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=message):
        check_acceleration("cueq", device)


def test_a_potential_without_what_its_acceleration_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskpipe.potentials.mace_model.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"potential 'mace': acceleration=cueq needs cuequivariance"):
        batched_model(build_potential("mace", {"acceleration": "cueq"}, "cpu", "float32"))


def test_unknown_acceleration() -> None:
    with pytest.raises(
        ConfigError,
        match=r"acceleration: Input should be 'auto', 'none', 'symmetrix', 'cueq' or 'compile', received 'oeq'",
    ):
        build_potential("mace", {"acceleration": "oeq"}, "cpu")


def test_compiling_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"acceleration=compile needs the compiler g\+\+, which is not in PATH"):
        build_potential("mace", {"acceleration": "compile", "head": "Default"}, "cpu", "float32")


@pytest.mark.filterwarnings("ignore:cuequivariance_ops_torch is not available:UserWarning")
def test_cueq_gives_the_same(make) -> None:
    pytest.importorskip("cuequivariance_torch")
    before = torch.get_default_dtype()
    agrees(build_potential("mace", {"acceleration": "cueq"}, "cpu", "float64"), coinage(make), AGREEMENT)
    assert torch.get_default_dtype() == before


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_compiled_gives_the_same(tmp_path: Path) -> None:
    """Compare a small model with itself, compiled: without care torch compiles one whose forces are zero."""
    organic_file = tmp_path / "small.model"
    shape = {"atomic_numbers": [1, 6, 8], "num_elements": 3, "max_ell": 1, "num_interactions": 1}
    save(random_module(seed=1, **shape), organic_file)
    params = {"model": str(organic_file), "acceleration": "compile"}
    potential = build_potential("mace", params, "cpu", "float64")
    agrees(potential, organic(), AGREEMENT)
    agrees(potential, organic()[1:4], AGREEMENT)
    # As many systems as the first batch was filled up to.
    agrees(potential, [molecule("H2O") for _ in range(64)], AGREEMENT)
    plain = build_potential("mace", {"model": str(organic_file)}, "cpu", "float64")
    assert plain is not potential
    agrees(plain, organic(), AGREEMENT)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_labels_are_not_accelerated(organic_file: Path) -> None:
    accelerated = {"model": str(organic_file), "acceleration": "compile"}
    assert identify_potential("mace", accelerated) == identify_potential("mace", {"model": str(organic_file)})
    one, two = (
        evaluate(build_potential("mace", params, "cpu", "float64"), organic()[:2])
        for params in (accelerated, {"model": str(organic_file)})
    )
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first.forces, second.forces)


def evaluations_of_a_process(*dtypes: str) -> list[str]:
    """Forces of a mixed batch in float32, as hex, of the third last evaluations of a fresh process."""
    code = """
import sys
import torch
from ase.build import bulk, fcc111
from daskpipe.potentials import batched_model, build_potential
from daskpipe.potentials.batches import make_state

torch.set_num_threads(1)
structures = [bulk("Cu", cubic=True), fcc111("Ag", (1, 2, 3), vacuum=5.0), bulk("Au", cubic=True).repeat((2, 1, 1))]
for number, atoms in enumerate(structures):
    atoms.rattle(0.1, seed=number)
state = make_state(structures, torch.device("cpu"), torch.float64)
for dtype in sys.argv[1:]:
    forces = batched_model(build_potential("mace", {}, "cpu", dtype), stress=True)(state)["forces"]
    if dtype == "float32":
        print(forces.numpy().tobytes().hex())
"""
    command = [sys.executable, "-c", code, *dtypes]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.slow
def test_the_first_evaluation_of_a_process_rounds_as_later_ones() -> None:
    """TorchScript's optimiser would make the first call of a fresh process another one."""
    alone = evaluations_of_a_process("float32", "float32", "float32")
    after_another = evaluations_of_a_process("float64", "float32")
    assert len(alone) == 3
    assert len({*alone, *after_another}) == 1
