"""Generate the most likely crystals of a chemical formula."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from itertools import count
from typing import Annotated

import numpy as np
from ase import Atoms
from pydantic import AfterValidator, Field

from daskpipe.core.errors import describe_unknown
from daskpipe.stages.generate.bonding import guess_oxidation
from daskpipe.stages.generate.disorder import apply_strain, displace_atoms
from daskpipe.stages.generate.params import CountRange, NotEmpty, Rattle, Strain, check_element, count_range
from daskpipe.stages.generate.ranking import rank_candidates
from daskpipe.stages.generate.supercells import Supercells, conventional_cell, draw_supercell, find_supercells

log = logging.getLogger(__name__)


def check_formula(text: str) -> str:
    """Return a chemical formula if it can be read and counts whole atoms, else raise ValueError.

    Examples
    --------
    >>> check_formula("CsPbI3"), check_formula("Ca(OH)2")
    ('CsPbI3', 'Ca(OH)2')
    """
    from pymatgen.core import Composition

    if not text.strip():
        raise ValueError("the formula is empty; write e.g. MgO")
    try:
        amounts = Composition(text, strict=True).get_el_amt_dict()
    except (ValueError, KeyError) as error:
        raise ValueError(f"cannot read the formula {text!r}; write e.g. MgO, CsPbI3 or Ca(OH)2") from error
    for symbol, amount in amounts.items():
        check_element(symbol)
        if amount != round(amount) or amount < 1:
            raise ValueError(f"formula {text!r} has {amount:g} {symbol}; give whole numbers, e.g. Fe2O3 for FeO1.5")
    return text


Formula = Annotated[str, AfterValidator(check_formula)]
"""A chemical formula of whole numbers."""

ADDED_PARAMETERS = ("prototypes",)
"""Parameters that came later; they leave the keys of earlier runs as they were (see `stage.Request.fingerprint`)."""


def formula(
    *,
    rng: np.random.Generator,
    index: int,
    formula: Formula,
    first: Annotated[int, Field(ge=1, le=100)] = 5,
    prototypes: Annotated[tuple[str, ...], NotEmpty] | None = None,
    n_atoms: CountRange | None = None,
    charge_balance: bool = False,
    strain: Strain = 0.02,
    rattle: Rattle = 0.05,
) -> Iterator[Atoms]:
    """Yield the most likely crystals of a chemical formula: supercell, strain and displacements.

    The structure types with the stoichiometry of the formula, of 280 AFLOW prototypes and some more, are ranked by how
    well its elements fit (`daskpipe.stages.generate.ranking.rank_candidates`). No energy is computed: the true ground
    state is usually among the first five, not always the first.

    Parameters
    ----------
    rng
        Stream of the structures.
    index
        Number of the request: the structure types are gone through in turn, the most likely first.
    formula
        Chemical formula.
    first
        Number of structure types to use, the most likely first; fewer, if fewer have the stoichiometry.
    prototypes
        Names of structure types to choose from, such as ``Molybdenite``, as errors and docs list them; all by default.
    n_atoms
        Number of atoms, or lowest and highest; by default that of the conventional cell. A structure type without a
        supercell of so many atoms is left out.
    charge_balance
        Whether to refuse a formula whose oxidation states cannot balance. Without, that is logged, and the crystals
        have the volumes of the elements, as metals.
    strain
        Largest normal strain and engineering shear strain, 1.
    rattle
        Standard deviation of displacements along each axis, Å.

    Yields
    ------
    ase.Atoms
        Periodic along all three axes.

    Raises
    ------
    ValueError
        When called, if no structure type has the stoichiometry, or a supercell of so many atoms, if one of `prototypes`
        has another stoichiometry, or if the charges cannot balance and have to.
    """
    check_charges(formula, refuse=charge_balance)
    size = count_range(n_atoms) if n_atoms is not None else None
    cells = list_cells(formula, first, size, tuple(prototypes) if prototypes else None)
    return (_draw(rng, cells[index % len(cells)], strain, rattle) for _ in count())


@cache
def check_charges(formula: str, *, refuse: bool) -> None:
    """Log, or refuse, a formula with anions whose oxidation states cannot balance.

    Raises
    ------
    ValueError
        If it is to be refused.
    """
    from pymatgen.core import Composition

    elements = list(Composition(formula))
    if len(elements) < 2 or all(element.is_metal for element in elements) or guess_oxidation(formula):
        return
    said = f"the common oxidation states of {', '.join(map(str, elements))} cannot balance in {formula}"
    if refuse:
        raise ValueError(f"formula: {said}; change the formula, or set charge_balance: false")
    log.warning("%s: its crystals get the volumes of the elements", said)


@cache
def list_cells(
    formula: str, first: int, n_atoms: tuple[int, int] | None, prototypes: tuple[str, ...] | None = None
) -> list[Supercells]:
    """List the supercells of each of the most likely crystals of a formula, see `formula`."""
    cells: list[Supercells] = []
    errors: list[ValueError] = []
    candidates = rank_candidates(formula)
    if prototypes is not None:
        known = [candidate.name for candidate in candidates]
        for name in prototypes:
            if name not in known:
                raise ValueError(f"formula: {describe_unknown('prototype', name, known)} These are those of {formula}.")
        candidates = tuple(candidate for candidate in candidates if candidate.name in prototypes)
    for candidate in candidates:
        crystal = candidate.build()
        if n_atoms is None:
            crystal = conventional_cell(crystal)
            cells.append({len(crystal): [(crystal, (1, 1, 1))]})
        else:
            try:
                cells.append(find_supercells(f"{formula} ({candidate.name})", crystal, n_atoms))
            except ValueError as error:
                errors.append(error)
        if len(cells) == first:
            break
    if not cells:
        raise errors[0]
    return cells


def _draw(rng: np.random.Generator, supercells: Supercells, max_strain: float, rattle: float) -> Atoms:
    atoms = draw_supercell(rng, supercells)
    apply_strain(rng, atoms, max_strain)
    displace_atoms(rng, atoms, rattle)
    atoms.info = {"system_type": "crystal"}
    return atoms
