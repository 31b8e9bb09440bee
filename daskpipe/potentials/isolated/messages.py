"""Write the questions that `daskpipe.potentials.isolated.child` answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.core.structures import spin_multiplicity, total_charge
from daskpipe.potentials.isolated.child import write_message

if TYPE_CHECKING:
    from ase import Atoms


def write_structures(variant: str, structures: Sequence[Atoms]) -> bytes:
    """Return the message that asks for the properties of structures.

    Parameters
    ----------
    variant
        Name of the settings to compute with.
    structures
        Charge, multiplicity and initial magnetic moments go with them.
    """
    arrays = {
        "n_atoms": np.array([len(atoms) for atoms in structures], dtype="<i8"),
        "numbers": np.concatenate([atoms.numbers for atoms in structures]).astype("<i8"),
        "positions": np.concatenate([atoms.positions for atoms in structures]).astype("<f8"),
        "cell": np.array([atoms.cell.array for atoms in structures], dtype="<f8"),
        "pbc": np.array([atoms.pbc for atoms in structures], dtype=bool),
        "charge": np.array([total_charge(atoms) for atoms in structures], dtype="<i8"),
        "multiplicity": np.array([spin_multiplicity(atoms) for atoms in structures], dtype="<i8"),
    }
    if any(atoms.has("initial_magmoms") for atoms in structures):
        moments = [atoms.get_initial_magnetic_moments() for atoms in structures]
        arrays["magmoms"] = np.concatenate(moments).astype("<f8")
    return write_message({"variant": variant}, arrays)
