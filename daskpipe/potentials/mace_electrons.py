"""Charge and spin of structures, for MACE models that were trained with them, such as those on OMol25."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskpipe.core import structures
from daskpipe.core.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

INFO_KEYS = {"total_charge": "charge", "total_spin": "spin_multiplicity"}
"""MACE's names for charge and spin of a structure, and daskpipe's. MACE's total spin is 2S + 1."""


def specs_of(module: Any) -> dict[str, dict[str, Any]]:
    """Return the ``embedding_specs`` of a MACE module: its needs of a structure beside the atoms; empty for most."""
    return dict(getattr(module, "embedding_specs", None) or {})


def check_features(module: Any, path: Path) -> None:
    """Refuse a module that needs more of a structure than charge and spin.

    Raises
    ------
    InputError
        Naming what it needs.
    """
    if strange := sorted(specs_of(module).keys() - INFO_KEYS.keys()):
        raise InputError(
            f"model file {str(path)!r} needs {', '.join(strange)} of each structure; daskpipe knows charge and "
            "spin_multiplicity: give a MACE that needs no more"
        )


def with_electrons(atoms: Atoms) -> Atoms:
    """Return a copy with charge and spin multiplicity in ``info``, defaults included."""
    atoms = atoms.copy()
    atoms.info |= {"charge": structures.total_charge(atoms), "spin_multiplicity": structures.spin_multiplicity(atoms)}
    return atoms


def find_unknown_electrons(specs: Mapping[str, Mapping[str, Any]], charge: int, spin: int) -> str | None:
    """Return which of charge and spin a model has no embedding for, and for which it has; ``None`` if it has both."""
    for name, what, value in (("total_charge", "charge", charge), ("total_spin", "spin multiplicity", spin)):
        spec = specs.get(name, {})
        if spec.get("type") != "categorical":
            continue
        first = -int(spec.get("offset", 0))
        last = first + int(spec["num_classes"]) - 1
        if not first <= value <= last:
            return f"{what} {value} is not among those that the model knows, {first} to {last}"
    return None
