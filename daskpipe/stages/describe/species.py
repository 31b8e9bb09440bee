"""Check of the elements of structures that all descriptors share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms


def check_species(structures: Sequence[Atoms], species: Sequence[str]) -> None:
    """Check that no structure holds an element that is not in `species`.

    Raises
    ------
    ValueError
        Naming the structure, the elements and what to add.
    """
    for atoms in structures:
        if missing := sorted(set(atoms.symbols) - set(species)):
            raise ValueError(
                f"structure of {atoms.get_chemical_formula()} holds {', '.join(missing)}, "
                f"species are {', '.join(species)}; add the missing ones to species"
            )
