"""Charge and spin of structures for MACE models that were trained with them, such as those on OMol25."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskpipe.core import structures
from daskpipe.core.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

INFO_KEYS = {"total_charge": "charge", "total_spin": "spin_multiplicity"}
"""MACE's names of what it may ask of a structure, and ours. MACE's total spin is 2S + 1."""


def specs_of(module: Any) -> dict[str, dict[str, Any]]:
    """Return what a MACE module asks of a structure beside its atoms: MACE's ``embedding_specs``, empty for most."""
    return dict(getattr(module, "embedding_specs", None) or {})


def check_features(module: Any, path: Path) -> None:
    """Refuse a module that asks for more than charge and spin of a structure.

    Raises
    ------
    InputError
        Naming what it asks for.
    """
    if strange := sorted(specs_of(module).keys() - INFO_KEYS.keys()):
        raise InputError(
            f"model file {str(path)!r} asks for {', '.join(strange)} of each structure; daskpipe knows charge and "
            "spin_multiplicity: give a MACE without"
        )


def with_electrons(atoms: Atoms) -> Atoms:
    """Return a copy that says its charge and spin multiplicity, the defaults too."""
    atoms = atoms.copy()
    atoms.info |= {"charge": structures.total_charge(atoms), "spin_multiplicity": structures.spin_multiplicity(atoms)}
    return atoms


def find_unknown_electrons(specs: Mapping[str, Mapping[str, Any]], charge: int, spin: int) -> str | None:
    """Return which of charge and spin a model has no embedding for, and those that it has; ``None`` if it has both."""
    for name, what, value in (("total_charge", "charge", charge), ("total_spin", "spin multiplicity", spin)):
        spec = specs.get(name, {})
        if spec.get("type") != "categorical":
            continue
        first = -int(spec.get("offset", 0))
        last = first + int(spec["num_classes"]) - 1
        if not first <= value <= last:
            return f"{what} {value} is not among those that the model knows, {first} to {last}"
    return None
