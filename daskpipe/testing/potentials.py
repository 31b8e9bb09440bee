"""Check what a potential promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.testing.structures import VISIBLE, draw_structure, list_equivalents

if TYPE_CHECKING:
    from ase import Atoms


def check_potential(
    name: str,
    params: Mapping[str, Any] | None = None,
    structures: Sequence[Atoms] | None = None,
    *,
    device: str = "cpu",
    dtype: str = "float64",
    tolerance: float = 1e-6,
    step: float = 1e-4,
    slope_tolerance: float = 1e-4,
    supercells: bool = True,
    seed: int = 0,
) -> None:
    """Check that a potential keeps what daskpipe promises about potentials.

    Its batched model takes bulk, slab and molecule in one batch, gives float64 for a float64 state, does not change the
    state, and agrees with its ASE calculator. Results of a structure do not depend on others in its batch. Forces and
    stress are slopes of the energy. Results are the same for rotated, moved and renumbered structures, for atoms moved
    by lattice vectors and for supercells. A charge changes the energy, or the structure is refused.

    Parameters
    ----------
    name
        One of ``daskpipe.potentials.POTENTIALS.known_names()``, those of plugins included.
    params
        Its parameters.
    structures
        Structures of elements that it knows; by default a bulk, a slab and a molecule of one or two of them, at the
        distances of copper.
    device, dtype
        Device and precision to build it for.
    tolerance
        Largest change that counts as none: of energies in eV an atom, forces in eV/Å and stresses in eV/Å^3; relative
        to the largest of them if that is above 1.
    step
        Step of the finite differences, Å; a tenth of it as a strain.
    slope_tolerance
        As `tolerance`, for finite differences.
    supercells
        Whether a supercell must have the same results; not so for a method of electrons with one k point.
    seed
        Seed of the structures and their changes.

    Raises
    ------
    AssertionError
        Naming the promise, the structure and the change that was measured.
    """
    from daskpipe.potentials import batched_model, build_potential

    rng = np.random.default_rng(seed)
    potential = build_potential(name, params or {}, device, dtype)
    if structures is None:
        species = _choose_elements(potential.elements)
        structures = [draw_structure(kind, species, rng) for kind in ("bulk", "slab", "molecule")]
    model = batched_model(potential, stress=True)
    results = run_model(model, structures)
    assert all("stress" not in item for item in run_model(batched_model(potential), structures)), (
        "stress without being asked"
    )
    forces = np.concatenate([item["forces"] for item in results])
    assert np.abs(forces).max() > VISIBLE * tolerance, "there are no forces to be seen on any atom"

    for other in (structures[::-1], structures[:1], structures[-1:]):
        for atoms, item in zip(other, run_model(model, other), strict=True):
            index = next(index for index, original in enumerate(structures) if original is atoms)
            _check_results(item, results[index], tolerance, f"{atoms} with others in its batch")
    _check_charge(potential, structures)
    for atoms, item in zip(structures, results, strict=True):
        _check_calculator(potential.calculator, atoms, item, tolerance)
        _check_slopes(model, atoms, item, step, slope_tolerance, rng)
        for change, changed, order, rotation in list_equivalents(atoms, rng):
            if change == "a supercell" and not supercells:
                continue
            (got,) = run_model(model, [changed])
            expected = {
                "energy": item["energy"] * len(changed) / len(atoms),
                "forces": item["forces"][order] @ rotation.T,
                "stress": rotation @ item["stress"] @ rotation.T,
            }
            _check_results(got, expected, tolerance, f"{change} of {atoms}")


def run_model(model: Any, structures: Sequence[Atoms]) -> list[dict[str, np.ndarray]]:
    """Run a batched model on a float64 state, and check the form of what it returns.

    Returns
    -------
    list of dict
        For each structure: ``energy`` (), ``forces`` (atom, 3) and, if the model computes it, ``stress`` (3, 3).
    """
    import torch

    from daskpipe.potentials.batches import make_state

    state = make_state(structures, model.device, torch.float64)
    before = (state.positions.clone(), state.cell.clone())
    out = model(state)
    assert torch.equal(state.positions, before[0]), "the model changed the positions of its state"
    assert torch.equal(state.cell, before[1]), "the model changed the cells of its state"
    n_atoms = [len(atoms) for atoms in structures]
    shapes = {"energy": (len(structures),), "forces": (sum(n_atoms), 3)}
    shapes |= {"stress": (len(structures), 3, 3)} if model.compute_stress else {}
    for key, shape in shapes.items():
        assert key in out, f"the model returns no {key}"
        assert tuple(out[key].shape) == shape, f"{key} has shape {tuple(out[key].shape)}, not {shape}"
        assert out[key].dtype == torch.float64, f"{key} of a float64 state has dtype {out[key].dtype}"
    values = {key: out[key].detach().cpu() for key in out if key in ("energy", "forces", "stress")}
    parts = {key: value.split(n_atoms) if key == "forces" else value for key, value in values.items()}
    return [{key: part[index].numpy() for key, part in parts.items()} for index in range(len(structures))]


def _choose_elements(elements: frozenset[str] | None) -> list[str]:
    known = elements or {"Au", "Cu"}
    return ["Au", "Cu"] if {"Au", "Cu"} <= known else sorted(known)[:2]


def _check_results(
    results: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float, what: str
) -> None:
    """Check that energy per atom, forces and stress are as expected; NaN only where NaN is expected."""
    n_atoms = len(results["forces"])
    for key in ("energy", "forces", "stress"):
        scale = n_atoms if key == "energy" else 1
        one, two = results[key] / scale, expected[key] / scale
        largest = max(1.0, float(np.nan_to_num(np.abs(two)).max()))
        assert np.array_equal(np.isnan(one), np.isnan(two)), f"{what}: {key} is NaN where it was not, or the reverse"
        change = float(np.nan_to_num(np.abs(one - two)).max()) / largest
        assert change <= tolerance, f"{what} changes its {key} by {change:.2g}"


def _check_charge(potential: Any, structures: Sequence[Atoms]) -> None:
    """Check that no charged structure gets the label of the neutral one."""
    from daskpipe.potentials import Failure, evaluate

    ions = [atoms.copy() for atoms in structures]
    for ion in ions:
        ion.info = {**ion.info, "charge": 1}
    charged = evaluate(potential, ions)
    if not potential.knows_charge:
        for atoms, ion in zip(structures, charged, strict=True):
            assert isinstance(ion, Failure), f"{atoms} with a charge is labelled by a potential that knows none"
        return
    for atoms, neutral, ion in zip(structures, evaluate(potential, structures), charged, strict=True):
        if not isinstance(ion, Failure) and not isinstance(neutral, Failure):
            assert ion.energy != neutral.energy, (
                f"{atoms} has the same energy with a charge; build the potential with Potential(knows_charge=False)"
            )


def _check_calculator(calculator: Any, atoms: Atoms, results: dict[str, np.ndarray], tolerance: float) -> None:
    from ase.stress import voigt_6_to_full_3x3_stress

    from daskpipe.potentials.results import Failure, run_calculator

    expected = run_calculator(calculator, atoms)
    assert not isinstance(expected, Failure), f"the calculator fails with {atoms}: {expected}"
    periodic = bool(atoms.pbc.all())
    _check_results(
        results | ({} if periodic else {"stress": np.zeros(())}),
        {
            "energy": np.asarray(expected.energy),
            "forces": expected.forces,
            "stress": voigt_6_to_full_3x3_stress(expected.stress) if periodic else np.zeros(()),
        },
        tolerance,
        f"the batched model, not the calculator, of {atoms}",
    )
    assert atoms.cell.rank == 3 or np.isnan(results["stress"]).all(), f"{atoms} has a stress, and its cell no volume"


def _check_slopes(
    model: Any, atoms: Atoms, results: dict[str, np.ndarray], step: float, tolerance: float, rng: np.random.Generator
) -> None:
    """Check that forces and stress are the slopes of the energy along a random displacement and a random strain."""
    direction = rng.normal(size=(len(atoms), 3))
    direction /= np.linalg.norm(direction)
    strain = rng.normal(size=(3, 3))
    strain = (strain + strain.T) / np.linalg.norm(strain + strain.T)
    changed = []
    for sign in (1, -1):
        moved, strained = atoms.copy(), atoms.copy()
        moved.positions += sign * step * direction
        deformation = np.eye(3) + sign * step / 10 * strain
        strained.set_cell(atoms.cell.array @ deformation)
        strained.positions = atoms.positions @ deformation
        changed += [moved, strained]
    energies = [float(item["energy"]) for item in run_model(model, changed)]
    work = -float(np.sum(results["forces"] * direction))
    slope = (energies[0] - energies[2]) / (2 * step)
    change = abs(slope - work) / max(1.0, abs(work))
    assert change <= tolerance, f"the forces on {atoms} are off the slope of the energy by {change:.2g}"
    if np.isfinite(results["stress"]).all():
        # Compared as an energy, as the forces are: as a stress, a large volume would hide the difference.
        work = float(np.sum(results["stress"] * strain)) * atoms.get_volume()
        slope = (energies[1] - energies[3]) / (2 * step / 10)
        change = abs(slope - work) / max(1.0, abs(work))
        assert change <= 10 * tolerance, f"the stress of {atoms} is off the slope of the energy by {change:.2g}"
