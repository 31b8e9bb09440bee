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
    assert measure_change(alone, found) <= rounding, "a structure's descriptor depends on the others of the call"
