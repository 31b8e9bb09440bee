"""Contract kits that plugin authors run on what they register: `check_descriptor` and `check_potential`.

A kit raises AssertionError with the promise that was not kept; it needs no test framework.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

type Kind = Literal["bulk", "slab", "molecule"]

SHIFT = 20.0
"""Largest translation, Å: several cells."""

VISIBLE = 50.0
"""How many tolerances a descriptor must move by when an atom does: one that never changes passes no kit."""


def check_descriptor(
    factory: Callable[..., Any],
    *,
    species: Sequence[str] = ("Au", "Cu"),
    kinds: Sequence[Kind] = ("bulk", "slab", "molecule"),
    per_atom: bool = True,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> None:
    """Check that a descriptor keeps what daskpipe promises about descriptors.

    Shapes and dtype known beforehand; finite numbers; hyper-parameters as JSON; structures left as they were, and
    each described by itself; the same for rotated, moved and renumbered structures, for atoms moved by lattice vectors
    and for supercells; another one for another structure; a refusal of unknown elements that names them.

    Parameters
    ----------
    factory
        Called with ``species`` and ``average``; `functools.partial` gives it parameters of its own.
    species
        Two or more chemical symbols that it may be given.
    kinds
        Periodicities that it can describe: ``bulk``, ``slab``, ``molecule``.
    per_atom
        Whether it has a row an atom (``average="off"``); a row a structure (``average="outer"``) it has in any case.
    tolerance
        Largest change, relative to the largest component of a row, that counts as none.
    seed
        Draws the structures.

    Raises
    ------
    AssertionError
        Naming the promise, the kind of structure and the change that was measured.
    """
    rng = np.random.default_rng(seed)
    for average in ("off", "outer") if per_atom else ("outer",):
        descriptor = factory(species=list(species), average=average)
        check_hypers(descriptor)
        check_strangers(descriptor, species)
        for kind in kinds:
            atoms = example(kind, species, rng)
            check_form(descriptor, [atoms, example(kind, species, rng)], rows_are_atoms=average == "off")
            expected = descriptor.compute([atoms])
            for name, changed, order, _ in same_structures(atoms, rng):
                change = distance(descriptor.compute([changed]), expected[order] if average == "off" else expected)
                assert change <= tolerance, f"{name} of a {kind} changes its descriptor by {change:.2g} ({average=})"
            change = distance(descriptor.compute([distorted(atoms, rng)]), expected)
            least = VISIBLE * tolerance
            assert change > least, f"a distorted {kind} has the same descriptor to {change:.2g} ({average=})"


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

    Its batched model takes bulk, slab and molecule in one batch, gives float64 for a float64 state, leaves the state
    alone, and agrees with its ASE calculator; a system's numbers do not depend on the others of its batch; forces and
    stress are slopes of the energy; they are the same for rotated, moved and renumbered structures, for atoms moved by
    lattice vectors and for supercells. A charge changes the energy, or the structure is refused.

    Parameters
    ----------
    name
        One of ``daskpipe.potentials.POTENTIALS.names()``, those of plugins included.
    params
        Its parameters.
    structures
        Of elements that it knows; by default a bulk, a slab and a molecule of one or two of them, at the distances of
        copper.
    device, dtype
        That it is built for.
    tolerance
        Largest change that counts as none: of energies in eV an atom, forces in eV/Å and stresses in eV/Å^3, or of a
        part of the largest of them if that is above 1.
    step
        Of the finite differences, Å; as a strain, a tenth of it.
    slope_tolerance
        As `tolerance`, for finite differences.
    supercells
        Whether a supercell is to be the same; not so for a method of electrons with one k point.
    seed
        Draws the structures and their changes.

    Raises
    ------
    AssertionError
        Naming the promise, the structure and the change that was measured.
    """
    from daskpipe.potentials import batched_model, build_potential

    rng = np.random.default_rng(seed)
    potential = build_potential(name, params or {}, device, dtype)
    if structures is None:
        species = _two_elements(potential.elements)
        structures = [example(kind, species, rng) for kind in ("bulk", "slab", "molecule")]
    model = batched_model(potential, stress=True)
    found = predict(model, structures)
    assert all("stress" not in item for item in predict(batched_model(potential), structures)), (
        "stress without being asked"
    )
    forces = np.concatenate([item["forces"] for item in found])
    assert np.abs(forces).max() > VISIBLE * tolerance, "there are no forces to be seen on any atom"

    for other in (structures[::-1], structures[:1], structures[-1:]):
        for atoms, item in zip(other, predict(model, other), strict=True):
            index = next(index for index, original in enumerate(structures) if original is atoms)
            _same(item, found[index], tolerance, f"{atoms} with others in its batch")
    _check_charge(potential, structures)
    for atoms, item in zip(structures, found, strict=True):
        _check_calculator(potential.calculator, atoms, item, tolerance)
        _check_slopes(model, atoms, item, step, slope_tolerance, rng)
        for change, changed, order, turn in same_structures(atoms, rng):
            if change == "a supercell" and not supercells:
                continue
            (got,) = predict(model, [changed])
            expected = {
                "energy": item["energy"] * len(changed) / len(atoms),
                "forces": item["forces"][order] @ turn.T,
                "stress": turn @ item["stress"] @ turn.T,
            }
            _same(got, expected, tolerance, f"{change} of {atoms}")


def predict(model: Any, structures: Sequence[Atoms]) -> list[dict[str, np.ndarray]]:
    """Run a batched model on a float64 state, and see that what it returns has the form that it is to have.

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


def _two_elements(elements: frozenset[str] | None) -> list[str]:
    known = elements or {"Au", "Cu"}
    return ["Au", "Cu"] if {"Au", "Cu"} <= known else sorted(known)[:2]


def _same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float, what: str) -> None:
    """See that energy an atom, forces and stress are the same; NaN only where NaN is expected."""
    n_atoms = len(found["forces"])
    for key in ("energy", "forces", "stress"):
        scale = n_atoms if key == "energy" else 1
        one, two = found[key] / scale, expected[key] / scale
        largest = max(1.0, float(np.nan_to_num(np.abs(two)).max()))
        assert np.array_equal(np.isnan(one), np.isnan(two)), f"{what}: {key} is NaN where it was not, or the reverse"
        change = float(np.nan_to_num(np.abs(one - two)).max()) / largest
        assert change <= tolerance, f"{what} changes its {key} by {change:.2g}"


def _check_charge(potential: Any, structures: Sequence[Atoms]) -> None:
    """See that no charged structure gets the label of the neutral one."""
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


def _check_calculator(calculator: Any, atoms: Atoms, found: dict[str, np.ndarray], tolerance: float) -> None:
    from ase.stress import voigt_6_to_full_3x3_stress

    from daskpipe.potentials.results import Failure, run_calculator

    expected = run_calculator(calculator, atoms)
    assert not isinstance(expected, Failure), f"the calculator fails with {atoms}: {expected}"
    periodic = bool(atoms.pbc.all())
    _same(
        found | ({} if periodic else {"stress": np.zeros(())}),
        {
            "energy": np.asarray(expected.energy),
            "forces": expected.forces,
            "stress": voigt_6_to_full_3x3_stress(expected.stress) if periodic else np.zeros(()),
        },
        tolerance,
        f"the batched model, not the calculator, of {atoms}",
    )
    assert atoms.cell.rank == 3 or np.isnan(found["stress"]).all(), f"{atoms} has a stress, and its cell no volume"


def _check_slopes(
    model: Any, atoms: Atoms, found: dict[str, np.ndarray], step: float, tolerance: float, rng: np.random.Generator
) -> None:
    """See that forces and stress are the slopes of the energy along a random displacement and a random strain."""
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
    energies = [float(item["energy"]) for item in predict(model, changed)]
    work = -float(np.sum(found["forces"] * direction))
    slope = (energies[0] - energies[2]) / (2 * step)
    change = abs(slope - work) / max(1.0, abs(work))
    assert change <= tolerance, f"the forces on {atoms} are off the slope of the energy by {change:.2g}"
    if np.isfinite(found["stress"]).all():
        # An energy, as forces are that of a displacement: a stress would hide it behind a large volume.
        work = float(np.sum(found["stress"] * strain)) * atoms.get_volume()
        slope = (energies[1] - energies[3]) / (2 * step / 10)
        change = abs(slope - work) / max(1.0, abs(work))
        assert change <= 10 * tolerance, f"the stress of {atoms} is off the slope of the energy by {change:.2g}"


def check_hypers(descriptor: Any) -> None:
    """See that the hyper-parameters are JSON types and give the same descriptor."""
    hypers = descriptor.hypers()
    assert json.loads(json.dumps(hypers)) == hypers, f"hypers() are no JSON types: {hypers}"
    again = type(descriptor)(**hypers)
    assert again.hypers() == hypers, f"{type(descriptor).__name__}(**hypers()) has other hypers: {again.hypers()}"
    assert again.n_features == descriptor.n_features, "the class called with hypers() has another number of features"


def check_strangers(descriptor: Any, species: Sequence[str]) -> None:
    """See that an element beyond `species` is refused by name."""
    from ase import Atoms

    stranger = next(symbol for symbol in ("Xe", "Ne") if symbol not in species)
    try:
        descriptor.compute([Atoms([species[0], stranger], positions=[[0, 0, 0], [0, 0, 2.5]])])
    except Exception as error:  # its class is the author's choice
        said = str(error)
    else:
        raise AssertionError(f"a structure with {stranger} was described, species are {', '.join(species)}")
    assert stranger in said, f"the refusal of {stranger} does not name it: {said}"


def check_form(descriptor: Any, structures: Sequence[Atoms], *, rows_are_atoms: bool) -> None:
    """See that shape and dtype are those announced, and that each structure is described by itself and left alone."""
    before = [atoms.copy() for atoms in structures]
    found = descriptor.compute(structures)
    n_rows = sum(map(len, structures)) if rows_are_atoms else len(structures)
    assert found.shape == (n_rows, descriptor.n_features), f"shape {found.shape}, not {(n_rows, descriptor.n_features)}"
    assert found.dtype == descriptor.dtype, f"dtype {found.dtype}, not {descriptor.dtype}"
    assert np.isfinite(found).all(), "not all numbers are finite"
    nothing = descriptor.compute([])
    assert nothing.shape == (0, descriptor.n_features), f"no structures give shape {nothing.shape}"
    assert all(atoms == copy for atoms, copy in zip(structures, before, strict=True)), "a structure was changed"
    alone = np.concatenate([descriptor.compute([atoms]) for atoms in structures])
    rounding = 100 * float(np.finfo(found.dtype).eps)
    assert distance(alone, found) <= rounding, "a structure's descriptor depends on the others of the call"


def example(kind: Kind, species: Sequence[str], rng: np.random.Generator) -> Atoms:
    """Draw a structure without symmetry, at the distances of a metal."""
    from ase import Atoms
    from ase.build import bulk, fcc111

    if kind == "bulk":
        atoms = bulk("Cu", "fcc", a=3.9, cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-0.08, 0.08, (3, 3))), scale_atoms=True)
    elif kind == "slab":
        atoms = fcc111("Cu", (1, 2, 3), a=3.9, vacuum=6.0, periodic=False)
    else:
        atoms = Atoms("Cu5", positions=2.5 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]))
    atoms.rattle(0.12, rng=rng)
    symbols = rng.choice(list(species), len(atoms))
    symbols[: len(species)] = species[: len(symbols)]
    atoms.symbols[:] = [str(symbol) for symbol in rng.permutation(symbols)]
    return Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def same_structures(atoms: Atoms, rng: np.random.Generator) -> list[tuple[str, Atoms, np.ndarray, np.ndarray]]:
    """Return what is the same structure: name, structure, the row of `atoms` that each atom is, and its rotation."""
    from scipy.spatial.transform import Rotation

    unchanged, upright = np.arange(len(atoms)), np.eye(3)
    rotation = Rotation.random(rng=rng).as_matrix()
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ rotation.T)
    turned.positions = atoms.positions @ rotation.T
    moved = atoms.copy()
    moved.positions += rng.uniform(-SHIFT, SHIFT, 3)
    order = rng.permutation(len(atoms))
    found = [
        ("a rotation", turned, unchanged, rotation),
        ("a translation", moved, unchanged, upright),
        ("a new order", atoms[order], order, upright),
    ]
    if atoms.pbc.any():
        wrapped = atoms.copy()
        wrapped.positions += (rng.integers(-2, 3, (len(atoms), 3)) * atoms.pbc) @ atoms.cell.array
        found.append(("moving atoms by lattice vectors", wrapped, unchanged, upright))
        times = np.where(atoms.pbc, [2, 1, 2], 1)
        found.append(("a supercell", atoms.repeat(times), np.tile(unchanged, int(times.prod())), upright))
    return found


def distorted(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Return another structure: each atom moved by about half an ångström."""
    other = atoms.copy()
    other.positions += rng.normal(scale=0.3, size=other.positions.shape)
    return other


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest expected component."""
    assert found.shape == expected.shape, f"shape {found.shape}, not {expected.shape}"
    largest = float(np.abs(expected).max())
    return float(np.abs(found.astype(float) - expected).max()) / largest if largest else float(np.abs(found).max())
