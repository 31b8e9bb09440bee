"""Check what a descriptor promises."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.testing.structures import (
    VISIBLE,
    Kind,
    distort_structure,
    draw_structure,
    list_equivalents,
    measure_change,
)

if TYPE_CHECKING:
    from ase import Atoms


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

    Shapes and dtype are known beforehand, numbers are finite, and hyper-parameters are JSON types. Structures are not
    changed, and each is described by itself. Features are the same for rotated, moved and renumbered structures, for
    atoms moved by lattice vectors and for supercells, and differ for another structure. Unknown elements are refused
    by name.

    Parameters
    ----------
    factory
        Called with ``species`` and ``average``; `functools.partial` gives it parameters of its own.
    species
        Two or more chemical symbols that it may be given.
    kinds
        Periodicities that it can describe: ``bulk``, ``slab``, ``molecule``.
    per_atom
        Whether it gives a row for each atom (``average="off"``); every descriptor gives one for each structure
        (``average="outer"``).
    tolerance
        Largest change, relative to the largest component of a row, that counts as none.
    seed
        Seed of the structures.

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
            atoms = draw_structure(kind, species, rng)
            check_form(descriptor, [atoms, draw_structure(kind, species, rng)], rows_are_atoms=average == "off")
            expected = descriptor.compute([atoms])
            for name, changed, order, _ in list_equivalents(atoms, rng):
                change = measure_change(
                    descriptor.compute([changed]), expected[order] if average == "off" else expected
                )
                assert change <= tolerance, f"{name} of a {kind} changes its descriptor by {change:.2g} ({average=})"
            change = measure_change(descriptor.compute([distort_structure(atoms, rng)]), expected)
            least = VISIBLE * tolerance
            assert change > least, f"a distorted {kind} has the same descriptor to {change:.2g} ({average=})"


def check_hypers(descriptor: Any) -> None:
    """Check that the hyper-parameters are JSON types and give the same descriptor."""
    hypers = descriptor.hypers()
    assert json.loads(json.dumps(hypers)) == hypers, f"hypers() are no JSON types: {hypers}"
    again = type(descriptor)(**hypers)
    assert again.hypers() == hypers, f"{type(descriptor).__name__}(**hypers()) has other hypers: {again.hypers()}"
    assert again.n_features == descriptor.n_features, "the class called with hypers() has another number of features"


def check_strangers(descriptor: Any, species: Sequence[str]) -> None:
    """Check that an element that is not in `species` is refused by name."""
    from ase import Atoms

    stranger = next(symbol for symbol in ("Xe", "Ne") if symbol not in species)
    try:
        descriptor.compute([Atoms([species[0], stranger], positions=[[0, 0, 0], [0, 0, 2.5]])])
    except Exception as error:  # its class is the author's choice
        message = str(error)
    else:
        raise AssertionError(f"a structure with {stranger} was described, species are {', '.join(species)}")
    assert stranger in message, f"the refusal of {stranger} does not name it: {message}"


def check_form(descriptor: Any, structures: Sequence[Atoms], *, rows_are_atoms: bool) -> None:
    """Check shape and dtype, and that each structure is described by itself and not changed."""
    before = [atoms.copy() for atoms in structures]
    features = descriptor.compute(structures)
    n_rows = sum(map(len, structures)) if rows_are_atoms else len(structures)
    assert features.shape == (n_rows, descriptor.n_features), (
        f"shape {features.shape}, not {(n_rows, descriptor.n_features)}"
    )
    assert features.dtype == descriptor.dtype, f"dtype {features.dtype}, not {descriptor.dtype}"
    assert np.isfinite(features).all(), "not all numbers are finite"
    nothing = descriptor.compute([])
    assert nothing.shape == (0, descriptor.n_features), f"no structures give shape {nothing.shape}"
    assert all(atoms == copy for atoms, copy in zip(structures, before, strict=True)), "a structure was changed"
    alone = np.concatenate([descriptor.compute([atoms]) for atoms in structures])
    rounding = 100 * float(np.finfo(features.dtype).eps)
    assert measure_change(alone, features) <= rounding, "a structure's descriptor depends on the others of the call"
