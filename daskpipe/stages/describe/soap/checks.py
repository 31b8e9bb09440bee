"""Checks of the arguments of `daskpipe.SOAP`, which takes and refuses what dscribe's takes and refuses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.stages.describe.soap.engine import COMPRESSIONS, NO_CENTRE, WEIGHTINGS

if TYPE_CHECKING:
    from ase import Atoms

HIGHEST_L_MAX = 20
"""As in dscribe."""

DECAYED = 1e-2
"""Weight at which an environment ends, unless the weighting says otherwise."""

FUNCTION_PARAMETERS = {"poly": ("r0", "c", "m"), "pow": ("r0", "c", "d", "m"), "exp": ("r0", "c", "d")}
"""Parameters that each weighting function needs."""


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Check that a parameter is one of its choices; raises ValueError, which lists them."""
    if value not in (choices := list(choices)):
        raise ValueError(f"{name} must be one of {', '.join(choices)}, received {value!r}")


def find_numbers(species: object) -> tuple[int, ...]:
    """Return the atomic numbers of chemical symbols or atomic numbers, sorted, each once.

    Raises
    ------
    ValueError
        If `species` is no iterable, is empty, or holds what is no element.
    """
    from ase.data import atomic_numbers

    if isinstance(species, str) or not isinstance(species, Iterable):
        raise ValueError(f"species must be a list of chemical symbols or of atomic numbers, received {species!r}")
    given = list(species)
    if not given:
        raise ValueError("species must name at least one element, received none")
    highest = max(atomic_numbers.values())
    if all(isinstance(one, int | np.integer) for one in given):
        if wrong := [one for one in given if not 0 <= one <= highest]:
            raise ValueError(f"species must be atomic numbers from 0 to {highest}, received {wrong[0]}")
        return tuple(sorted({int(one) for one in given}))
    if unknown := sorted(str(one) for one in set(given) if one not in atomic_numbers):
        raise ValueError(f"species must be chemical symbols such as Cu, or all numbers, received {', '.join(unknown)}")
    return tuple(sorted({atomic_numbers[one] for one in given}))


def check_radial(r_cut: float, n_max: int | None, l_max: int | None, sigma: float, rbf: str) -> None:
    """Check the parameters of the radial basis and the largest degree.

    Raises
    ------
    ValueError
        If one is missing or out of its range.
    """
    if sigma <= 0:
        raise ValueError(f"sigma must be a positive width in Å, received {sigma}")
    if n_max is None or l_max is None:
        raise ValueError(f"n_max and l_max must be given, such as n_max=8, l_max=6; received {n_max} and {l_max}")
    if n_max < 1:
        raise ValueError(f"n_max must be at least one radial function, received {n_max}")
    if not 0 <= l_max <= HIGHEST_L_MAX:
        raise ValueError(f"l_max must be from 0 to {HIGHEST_L_MAX}, received {l_max}")
    if rbf == "gto" and r_cut <= 1:
        raise ValueError(f"r_cut must be more than 1 Å, where the radial functions begin, received {r_cut}")


def check_weighting(weighting: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the weighting of neighbours by distance, with its numbers as floats; empty for none.

    Raises
    ------
    ValueError
        If the function is not known, or a parameter of it is missing or out of its range.
    """
    checked = dict(weighting or {})
    if checked.get("w0") is None:
        checked.pop("w0", None)
    elif checked["w0"] < 0:
        raise ValueError(f"weighting: w0 must not be negative, received {checked['w0']}")
    else:
        checked["w0"] = float(checked["w0"])
    if (function := checked.get("function")) is None:
        checked.pop("function", None)
        return checked
    check_choice("weighting: function", function, WEIGHTINGS[1:])
    for name in FUNCTION_PARAMETERS[function]:
        value = checked.get(name)
        if value is None or value < 0 or (name == "r0" and value == 0):
            least = "positive" if name == "r0" else "at least 0"
            raise ValueError(f"weighting: {function} needs {name}, {least}; received {value}")
        checked[name] = float(value)
    if function != "poly":
        checked["threshold"] = float(checked.get("threshold", DECAYED))
    return checked


def choose_r_cut(r_cut: float | None, weighting: Mapping[str, Any]) -> float:
    """Return the radius of an environment, Å: `r_cut`, or where a checked weighting has decayed.

    Raises
    ------
    ValueError
        If there is neither `r_cut` nor a weighting function.
    """
    if r_cut:
        return float(r_cut)
    function = weighting.get("function")
    if function is None:
        raise ValueError("r_cut or a weighting function must be given, such as r_cut=5.0; received neither")
    if function == "poly":
        return float(weighting["r0"])
    ratio = weighting["c"] / weighting["threshold"] - weighting["d"]
    if function == "pow":
        return float(weighting["r0"] * ratio ** (1 / weighting["m"]))
    return float(weighting["r0"] * math.log(ratio))


def check_compression(
    compression: Mapping[str, Any] | str, species: Iterable[Any]
) -> tuple[dict[str, Any], tuple[float, ...]]:
    """Return dscribe's dict of a compression, and the weight of each element in the order of its atomic number.

    Parameters
    ----------
    compression
        dscribe's dict, or the mode alone.
    species
        Chemical symbols or atomic numbers.

    Returns
    -------
    tuple of dict, tuple of float
        The weights are empty if there are none.

    Raises
    ------
    ValueError
        If the mode is not known, or if the weights are not of the same elements as `species`.
    """
    checked = {"mode": compression} if isinstance(compression, str) else dict(compression)
    checked = {"mode": "off", "species_weighting": None, **checked}
    check_choice("compression: mode", checked["mode"], COMPRESSIONS)
    weights = checked["species_weighting"]
    if weights is None:
        return checked, ()
    if not isinstance(weights, Mapping):
        raise ValueError(f"compression: species_weighting must be None or a dict by species, received {weights!r}")
    species = list(species)
    if set(weights) != set(species):
        raise ValueError(
            f"compression: species_weighting must have the keys of species, {species}; received {list(weights)}"
        )
    by_number = {find_numbers([one])[0]: float(weights[one]) for one in species}
    return checked, tuple(by_number[number] for number in sorted(by_number))


def find_centers(atoms: Atoms, centers: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of centres, and the atom that each moves with if it is attached.

    Parameters
    ----------
    atoms
        Structure.
    centers
        Indices of atoms and Cartesian points (Å) in any mixture; ``None`` for all atoms.

    Returns
    -------
    tuple of numpy.ndarray
        Points, shape (centre, 3), float64, Å, and atoms, shape (centre,), int64, -1 for a Cartesian point.

    Raises
    ------
    ValueError
        If there is no centre, or one is neither an index nor three numbers.
    IndexError
        If there is no atom of an index.
    """
    if centers is None:
        return np.ascontiguousarray(atoms.positions), np.arange(len(atoms))
    wanted = "centers must be a list of atomic indices or of Cartesian positions of three numbers"
    if not isinstance(centers, list | tuple | np.ndarray) or len(centers) == 0:
        raise ValueError(f"{wanted}, with at least one; received {centers!r}")
    points, owners = np.empty((len(centers), 3)), np.full(len(centers), NO_CENTRE)
    for number, centre in enumerate(centers):
        if isinstance(centre, int | np.integer) and not isinstance(centre, bool):
            points[number] = atoms.positions[centre]
            owners[number] = centre % len(atoms)
        elif isinstance(centre, list | tuple | np.ndarray) and len(centre) == 3:
            points[number] = centre
        else:
            raise ValueError(f"{wanted}; received {centre!r}")
    return points, owners


def check_cell(atoms: Atoms) -> None:
    """Check that a structure has a cell, which dscribe asks of all structures where ``periodic=True``.

    Raises
    ------
    ValueError
        If the cell has no volume.
    """
    if atoms.cell.volume == 0:
        raise ValueError(
            f"structure of {atoms.get_chemical_formula()} has no cell with a volume; set atoms.cell or periodic=False"
        )


def find_included(n_atoms: int, include: Sequence[int] | None, exclude: Sequence[int] | None) -> np.ndarray:
    """Return the indices of the atoms by which features are differentiated, int64.

    Raises
    ------
    ValueError
        If both lists are given, if an index is of no atom, or if no atom is left.
    """
    if include is not None and exclude is not None:
        raise ValueError("include and exclude cannot be given together; leave one out")
    listed = np.unique(exclude) if exclude is not None else np.asarray([] if include is None else include)
    if len(listed) and not 0 <= listed.min() <= listed.max() < n_atoms:
        name = "include" if exclude is None else "exclude"
        raise ValueError(f"{name} must hold indices from 0 to {n_atoms - 1}, received {listed.tolist()}")
    included = np.arange(n_atoms) if include is None else listed.astype(np.int64)
    if exclude is not None:
        included = np.delete(included, listed.astype(np.int64))
    if not len(included):
        raise ValueError("at least one atom must be included in the derivatives, received none")
    return included
