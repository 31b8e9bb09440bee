"""Contract kits that plugin authors run on what they register: ``daskpipe.testing.check_descriptor(factory)``.

A kit raises AssertionError with the promise that was not kept; it needs no test framework.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
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
            for name, changed, order in same_structures(atoms, rng):
                change = distance(descriptor.compute([changed]), expected[order] if average == "off" else expected)
                assert change <= tolerance, f"{name} of a {kind} changes its descriptor by {change:.2g} ({average=})"
            change = distance(descriptor.compute([distorted(atoms, rng)]), expected)
            least = VISIBLE * tolerance
            assert change > least, f"a distorted {kind} has the same descriptor to {change:.2g} ({average=})"


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


def same_structures(atoms: Atoms, rng: np.random.Generator) -> list[tuple[str, Atoms, np.ndarray]]:
    """Return what is the same structure: a name, the structure, and the row of `atoms` that each of its atoms is."""
    from scipy.spatial.transform import Rotation

    unchanged = np.arange(len(atoms))
    rotation = Rotation.random(rng=rng).as_matrix()
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ rotation.T)
    turned.positions = atoms.positions @ rotation.T
    moved = atoms.copy()
    moved.positions += rng.uniform(-SHIFT, SHIFT, 3)
    order = rng.permutation(len(atoms))
    found = [
        ("a rotation", turned, unchanged),
        ("a translation", moved, unchanged),
        ("a new order", atoms[order], order),
    ]
    if atoms.pbc.any():
        wrapped = atoms.copy()
        wrapped.positions += (rng.integers(-2, 3, (len(atoms), 3)) * atoms.pbc) @ atoms.cell.array
        found.append(("moving atoms by lattice vectors", wrapped, unchanged))
        times = np.where(atoms.pbc, [2, 1, 2], 1)
        found.append(("a supercell", atoms.repeat(times), np.tile(unchanged, int(times.prod()))))
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
