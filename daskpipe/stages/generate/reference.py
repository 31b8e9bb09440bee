"""Generate reference structures: isolated atoms, pairs of atoms over distances, crystals over volumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii, ground_state_magnetic_moments
from pydantic import Field

from daskpipe.core.isolated_atoms import CONFIG_TYPE as ISOLATED_ATOM
from daskpipe.core.structures import structure_id
from daskpipe.stages.generate.base import OF, Base, copy_base, hash_base, probe_base
from daskpipe.stages.generate.disorder import strain_periodic
from daskpipe.stages.generate.params import Element, NotEmpty, Vacuum

Kind = Literal["atom", "dimer", "eos"]

CONFIG_TYPES: dict[Kind, str] = {"atom": ISOLATED_ATOM, "dimer": "Dimer", "eos": "EquationOfState"}
"""``config_type`` of each kind; the first is the word by which MACE finds the energies of isolated atoms."""

Distances = Annotated[tuple[Annotated[float, Field(ge=0.6, le=5)], ...], NotEmpty]
Volumes = Annotated[tuple[Annotated[float, Field(ge=0.5, le=2)], ...], NotEmpty]


class Item(NamedTuple):
    """One reference structure: its kind, its elements or the number of a crystal, and distance or volume."""

    kind: Kind
    symbols: tuple[str, ...] = ()
    crystal: int = 0
    factor: float = 1.0


def reference(
    *,
    rng: np.random.Generator,
    elements: Annotated[tuple[Element, ...], NotEmpty] | None = None,
    of: Base | None = None,
    kinds: Annotated[tuple[Kind, ...], NotEmpty] | None = None,
    distances: Distances = (0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 1.6, 1.8, 2.1, 2.5, 3.0),
    volumes: Volumes = (0.85, 0.9, 0.94, 0.97, 1.0, 1.03, 1.06, 1.1, 1.15),
    vacuum: Vacuum = 12.0,
    item: Annotated[int, Field(ge=0)] | None = None,
) -> Iterator[Atoms]:
    """Yield isolated atoms, pairs of atoms, and crystals over volumes, each once.

    Parameters
    ----------
    rng
        Ignored: nothing is random.
    elements
        Elements of atoms and pairs.
    of
        Crystals: a formula, a file, or a generator with its parameters. All structures of a list; a few of a random
        generator, the same ones for any seed of the run.
    kinds
        ``atom`` and ``dimer`` of `elements`, ``eos`` (equation of state) of the crystals; by default all that are
        given.
    distances
        ``dimer``: distances as multiples of the sum of the covalent radii.
    volumes
        ``eos``: volumes as multiples of that of the crystal.
    vacuum
        Gap between atoms or pairs and their image, had the cell one, Å.
    item
        Number of a single structure of the list; all of them by default.

    Yields
    ------
    ase.Atoms
        In ``info``: system type ``atom``, ``dimer`` or that of the crystal; ``config_type`` from `CONFIG_TYPES`;
        ``reference``, by which exploration does not move them, selection always picks them, and they stay in train; and
        the ``spin_multiplicity`` of an atom's ground state. The spin state of pairs is not known, nor set.

    Raises
    ------
    ValueError
        When called, if there is nothing to make for a kind.
    """
    items = list_items(elements=elements, of=of, kinds=kinds, distances=distances, volumes=volumes)
    chosen = items if item is None else items[item : item + 1]
    return (make_item(each, of, vacuum) for each in chosen)


def list_items(
    *,
    elements: tuple[str, ...] | None,
    of: Mapping[str, Any] | None,
    kinds: tuple[Kind, ...] | None,
    distances: tuple[float, ...],
    volumes: tuple[float, ...],
) -> list[Item]:
    """List the reference structures, atoms first; see `reference`.

    Raises
    ------
    ValueError
        If there is nothing to make for a kind.
    """
    if elements is None and of is None:
        raise ValueError("give elements for atoms and dimers, or of, crystals for equations of state, or both")
    chosen = kinds or (*(("atom", "dimer") if elements else ()), *(("eos",) if of else ()))
    if elements is None and {"atom", "dimer"} & set(chosen):
        raise ValueError("kinds: atom and dimer need elements, e.g. elements: [Mg, O]")
    if of is None and "eos" in chosen:
        raise ValueError("kinds: eos needs crystals, e.g. of: MgO")
    symbols = tuple(dict.fromkeys(elements or ()))
    items: list[Item] = []
    if "atom" in chosen:
        items += [Item("atom", (symbol,)) for symbol in symbols]
    if "dimer" in chosen:
        pairs = list(combinations_with_replacement(symbols, 2))
        items += [Item("dimer", pair, factor=factor) for pair in pairs for factor in distances]
    if "eos" in chosen:
        assert of is not None
        distinct = {structure_id(atoms): number for number, atoms in reversed(list(enumerate(probe_base(of))))}
        crystals = sorted(number for number in distinct.values() if probe_base(of)[number].pbc.any())
        if not crystals:
            raise ValueError("of: no structure is periodic; an equation of state needs a crystal")
        items += [Item("eos", crystal=number, factor=factor) for number in crystals for factor in volumes]
    return items


def make_item(item: Item, of: Mapping[str, Any] | None, vacuum: float) -> Atoms:
    """Make one reference structure."""
    if item.kind == "eos":
        assert of is not None
        atoms = copy_base(probe_base(of)[item.crystal])
        strain_periodic(atoms, (item.factor ** (1 / atoms.pbc.sum()) - 1) * np.eye(3))
    else:
        numbers = [atomic_numbers[symbol] for symbol in item.symbols]
        distance = item.factor * covalent_radii[numbers].sum()
        atoms = Atoms(numbers, positions=[[0, 0, 0], [0, 0, distance]][: len(numbers)])
        atoms.center(vacuum=vacuum / 2)
        atoms.info = {"system_type": item.kind, "charge": 0}
    if item.kind == "atom":
        atoms.info["spin_multiplicity"] = round(float(ground_state_magnetic_moments[numbers[0]])) + 1
    atoms.info |= {"config_type": CONFIG_TYPES[item.kind], "reference": True}
    return atoms


def expand_requests(params: dict[str, Any], n: int | None, base_dir: Path) -> list[tuple[dict[str, Any], str]]:
    """Return the parameters of one request for each reference structure, the first `n` if that is given.

    Raises
    ------
    ValueError
        If `n` is larger than the number of structures.
    """
    names = ("elements", OF, "kinds", "distances", "volumes")
    n_items = len(list_items(**{name: params[name] for name in names}))
    if n is not None and n > n_items:
        raise ValueError(f"n: {n} structures were asked for and there are {n_items}; lower n, or leave it out")
    digest = hash_base(params)
    return [({**params, "item": number}, digest) for number in range(n or n_items)]
