"""Read charge and spin of a structure from its keys, or as sums of the charges and moments of its atoms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

CHARGE_KEYS = ("charge", "total_charge", "net_charge")
SPIN_KEYS = ("spin_multiplicity", "multiplicity", "spin", "total_spin")
"""Keys of the spin multiplicity 2S + 1; 0 stands for "not given"."""

UNPAIRED_KEY = "uhf"
"""Key of the number of unpaired electrons, xTB's name for it."""

MOST = 127
"""Largest number that the variables ``charge`` and ``spin_multiplicity`` hold."""

TOLERANCE = 0.1
"""Largest difference of a sum over atoms from a whole number: partial charges and moments are rounded."""


class ElectronError(ValueError):
    """Raised for a charge or spin that cannot be used; its reason to count by is ``charge`` or ``spin``."""

    def __init__(self, reason: str, evidence: str) -> None:
        super().__init__(evidence)
        self.reason = reason


def electrons_of(atoms: Atoms) -> dict[str, int]:
    """Return ``charge`` and ``spin_multiplicity`` of a structure, where it has them.

    Parameters
    ----------
    atoms
        Keys of ``info`` have priority. Without them the charge is the sum of the atoms' charges, and the multiplicity
        of a structure that is not periodic is that of the sum of its magnetic moments.

    Raises
    ------
    ElectronError
        If a key holds no whole number, if two keys contradict each other, or if a sum over atoms is no whole number or
        does not fit the number of electrons.

    Examples
    --------
    >>> from ase.build import molecule
    >>> ion = molecule("OH")
    >>> ion.info["total_charge"] = -1
    >>> ion.set_initial_magnetic_moments([0, 0])
    >>> electrons_of(ion)
    {'charge': -1}
    """
    electrons = {}
    if (charge := _charge_of(atoms)) is not None:
        electrons["charge"] = charge
    if (multiplicity := _multiplicity_of(atoms, charge or 0)) is not None:
        electrons["spin_multiplicity"] = multiplicity
    return electrons


def moments_of(atoms: Atoms) -> np.ndarray | None:
    """Return the magnetic moments of the atoms, Bohr magnetons: initial ones, else those computed with the label."""
    return _values_of_atoms(atoms, "initial_magmoms", "magmoms")


def _charge_of(atoms: Atoms) -> int | None:
    charge = _agreed_value("charge", {key: _read_integer(atoms.info, key, "charge") for key in CHARGE_KEYS})
    if charge is None:
        charges = _values_of_atoms(atoms, "initial_charges", "charges")
        if charges is None or not np.isfinite(charges).all():
            return None  # the checks of structures explain what is wrong
        total = float(charges.sum())
        charge = round(total)
        if abs(total - charge) > TOLERANCE:
            raise ElectronError(
                "charge",
                f"the charges of the atoms sum to {total:+.3g} e, which is no whole number; give the total "
                f"charge, e.g. total_charge={charge}",
            )
    if abs(charge) > MOST:
        raise ElectronError("charge", f"total charge {charge} e; it must lie within -{MOST} and {MOST}")
    return charge


def _multiplicity_of(atoms: Atoms, charge: int) -> int | None:
    # Some programs write spin 0 for "not given".
    given = {key: _read_integer(atoms.info, key, "spin") or None for key in SPIN_KEYS}
    unpaired = _read_integer(atoms.info, UNPAIRED_KEY, "spin")
    given[UNPAIRED_KEY] = None if unpaired is None else unpaired + 1
    multiplicity = _agreed_value("spin multiplicity", given)
    if multiplicity is None:
        return None if atoms.pbc.any() else _of_moments(atoms, charge)
    if not 1 <= multiplicity <= MOST:
        raise ElectronError("spin", f"spin multiplicity {multiplicity}; it must lie within 1 and {MOST}")
    return multiplicity


def _of_moments(atoms: Atoms, charge: int) -> int | None:
    """Return the multiplicity that follows from the sum of the moments of the atoms."""
    moments = moments_of(atoms)
    if moments is None or moments.ndim > 1 or not np.isfinite(moments).all():
        return None  # the checks of structures say what is wrong
    total = abs(float(moments.sum()))
    n_electrons = int(atoms.numbers.sum()) - charge
    if abs(total - round(total)) <= TOLERANCE and (n_electrons + round(total)) % 2 == 0:
        return round(total) + 1
    if not atoms.has("initial_magmoms"):
        return None  # computed moments of an approximate method
    raise ElectronError(
        "spin",
        f"the magnetic moments sum to {total:.3g} Bohr magnetons, which {n_electrons} electrons cannot have; give the "
        f"spin multiplicity (2S + 1), e.g. spin_multiplicity={1 + n_electrons % 2}",
    )


def _values_of_atoms(atoms: Atoms, initial: str, computed: str) -> np.ndarray | None:
    """Return the first of two kinds of numbers of atoms that is not all zero; ``None`` if there is none."""
    places = (atoms.arrays.get(initial), (atoms.calc.results if atoms.calc is not None else {}).get(computed))
    for values in places:
        if values is not None and np.asarray(values).any():
            return np.asarray(values, dtype=float)
    return None


def _agreed_value(what: str, given: Mapping[str, int | None]) -> int | None:
    """Return the value on which all keys agree that have one; ``None`` if no key has one."""
    values = {key: value for key, value in given.items() if value is not None}
    if len(set(values.values())) > 1:
        listed = ", ".join(f"{key} gives {value}" for key, value in values.items())
        raise ElectronError(what.partition(" ")[0], f"two keys of the {what} disagree: {listed}; leave one out")
    return next(iter(values.values()), None)


def _read_integer(info: Mapping[str, Any], key: str, reason: str) -> int | None:
    value = info.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not float(value).is_integer():
        raise ElectronError(reason, f"{key} is {value!r}; it must be a whole number")
    return int(value)
