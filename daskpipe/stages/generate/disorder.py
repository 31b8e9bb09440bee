"""Draw chemical and geometric disorder from the random stream of a structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii

from daskpipe.core.connectivity import find_neighbours
from daskpipe.stages.generate.params import atomic_volume

SWEEPS = 10
"""Sweeps over the elements in `sample_fractions`. With five elements five give the moments of exact draws."""

REDRAWS, HALVINGS = 10, 8
"""Number of times that a displacement is drawn again, and then halved, in `displace_apart`."""


def sample_fractions(rng: np.random.Generator, ranges: Mapping[str, tuple[float, float]]) -> np.ndarray:
    """Draw a composition, uniform among those that lie within the ranges and sum to one.

    A Gibbs sampler starts from a point inside and redistributes the sum of two elements at a time. Its time does not
    depend on the ranges, while rejection sampling would not end for narrow ones.

    Parameters
    ----------
    rng
        The structure's stream.
    ranges
        Lowest and highest fraction of each element, from `daskpipe.stages.generate.params.check_composition`.

    Returns
    -------
    numpy.ndarray
        Fractions in the order of `ranges`, shape (element,).
    """
    lows, highs = np.array(list(ranges.values())).T
    slack = (highs - lows).sum()
    start = lows + (1 - lows.sum()) / slack * (highs - lows) if slack else lows
    # Lists of floats: single numbers of arrays take several times as long.
    low, high, fractions = lows.tolist(), highs.tolist(), start.tolist()
    n = len(fractions)
    for first, second, place in rng.random((SWEEPS * n if n > 1 else 0, 3)).tolist():
        i, j = int(first * n), int(second * (n - 1))
        j += j >= i
        both = fractions[i] + fractions[j]
        least, most = max(low[i], both - high[j]), min(high[i], both - low[j])
        fractions[i] = least + place * max(0.0, most - least)
        fractions[j] = both - fractions[i]
    drawn = np.array(fractions)
    return np.asarray(drawn / drawn.sum())


def occupy_sites(rng: np.random.Generator, n_atoms: int, ranges: Mapping[str, tuple[float, float]]) -> np.ndarray:
    """Draw the elements of `n_atoms` sites.

    Parameters
    ----------
    rng
        The structure's stream.
    n_atoms
        Number of sites.
    ranges
        Lowest and highest fraction of each element.

    Returns
    -------
    numpy.ndarray
        Atomic numbers in random order, shape (n_atoms,), dtype int64. The count of each element is its fraction of
        `n_atoms` rounded up or down, and right on average.
    """
    numbers = np.array([chemical_symbols.index(symbol) for symbol in ranges], dtype=np.int64)
    edges = np.cumsum(sample_fractions(rng, ranges)) * n_atoms
    sites = np.searchsorted(edges[:-1], np.arange(n_atoms) + rng.random(), side="right")
    return rng.permutation(numbers[sites])


def mean_volume(numbers: np.ndarray) -> float:
    """Return the volume of an atom in an alloy, Å^3: the mean over its elements (Zen's rule, Vegard's for volumes)."""
    kinds, counts = np.unique(numbers, return_counts=True)
    volumes = [atomic_volume(chemical_symbols[number]) for number in kinds]
    return float(np.average(volumes, weights=counts))


def apply_strain(rng: np.random.Generator, atoms: Atoms, amplitude: float, *, axes: Sequence[int] = (0, 1, 2)) -> None:
    """Strain a cell and the atoms in it, in place.

    Parameters
    ----------
    rng
        The structure's stream.
    atoms
        The structure.
    amplitude
        Largest normal strain, and largest engineering shear strain, 1; all are uniform within it.
    axes
        Cartesian axes to strain along.
    """
    tensor = draw_strain(rng, amplitude)
    kept = np.isin(np.arange(3), axes)
    tensor[~kept] = tensor[:, ~kept] = 0
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + tensor), scale_atoms=True)


def draw_strain(rng: np.random.Generator, amplitude: float) -> np.ndarray:
    """Draw a symmetric strain tensor, shape (3, 3): normal and engineering shear strains uniform within `amplitude`."""
    normal, shear = rng.uniform(-amplitude, amplitude, (2, 3, 3))
    tensor = np.triu(shear / 2, 1)
    return np.asarray(tensor + tensor.T + np.diag(np.diag(normal)))


def strain_periodic(atoms: Atoms, tensor: np.ndarray) -> None:
    """Strain a cell and the atoms in it, in place, within the space that the periodic cell vectors span."""
    basis = np.linalg.qr(atoms.cell.array[atoms.pbc].T)[0]
    projector = basis @ basis.T
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + projector @ tensor @ projector))
    atoms.positions = atoms.positions @ (np.eye(3) + projector @ tensor @ projector)


def displace_atoms(rng: np.random.Generator, atoms: Atoms, amplitude: float) -> None:
    """Displace atoms, in place, by Gaussian noise of standard deviation `amplitude`, Å, along each axis."""
    atoms.positions += rng.normal(scale=amplitude, size=atoms.positions.shape)


def spread_evenly(rng: np.random.Generator, index: int, attempt: int, limits: tuple[float, float]) -> float:
    """Return a number within limits, such that those of successive requests fill the range evenly.

    Multiples of the golden ratio, modulo one (a Weyl sequence); after the first attempt of a request a random number.

    Examples
    --------
    >>> [round(spread_evenly(np.random.default_rng(0), index, 0, (0, 10)), 1) for index in range(4)]
    [5.0, 1.2, 7.4, 3.5]
    """
    place = (0.5 + index * (5**0.5 - 1) / 2) % 1 if attempt == 0 else rng.random()
    return float(limits[0] + place * (limits[1] - limits[0]))


def find_close_atoms(atoms: Atoms, min_distance: float) -> np.ndarray:
    """Return the indices of the atoms that are too close to another one, or to an image of their own.

    Parameters
    ----------
    atoms
        Any structure.
    min_distance
        Shortest distance allowed, as a fraction of the sum of the two covalent radii.

    Examples
    --------
    >>> find_close_atoms(Atoms("H3", positions=[[0, 0, 0], [0, 0, 0.3], [0, 0, 5]]), 0.6).tolist()
    [0, 1]
    """
    return np.unique(find_neighbours(atoms, min_distance * covalent_radii[atoms.numbers], "i"))


def displace_apart(rng: np.random.Generator, atoms: Atoms, amplitude: float, min_distance: float) -> None:
    """Displace atoms, in place, by Gaussian noise that brings no two of them too close; fixed atoms stay.

    Atoms that come too close to others draw their displacement again, ten times at most. Then theirs is halved, until
    the distance is kept (after the Monte Carlo rattle of hiPhive, https://doi.org/10.1002/adts.201800184).

    Parameters
    ----------
    rng
        The structure's stream.
    atoms
        The structure. Atoms that are too close before they are displaced stay where they are.
    amplitude
        Standard deviation along each axis, Å.
    min_distance
        Shortest distance allowed, as a fraction of the sum of the two covalent radii.
    """
    start = atoms.positions.copy()
    free = ~atoms.arrays.get("fixed", np.zeros((len(atoms), 3), dtype=bool))
    moves = rng.normal(scale=amplitude, size=start.shape) * free
    for attempt in range(REDRAWS + HALVINGS):
        atoms.positions = start + moves
        close = find_close_atoms(atoms, min_distance)
        if not len(close):
            return
        if attempt < REDRAWS:
            moves[close] = rng.normal(scale=amplitude, size=(len(close), 3)) * free[close]
        else:
            moves[close] *= 0.5
    moves[close] = 0
    atoms.positions = start + moves


def choose_size[T](rng: np.random.Generator, shapes: Mapping[int, Sequence[T]]) -> T:
    """Draw a number of atoms from the keys of `shapes`, then one of the shapes with that many."""
    of_size = shapes[sorted(shapes)[int(rng.integers(len(shapes)))]]
    return of_size[int(rng.integers(len(of_size)))]


def missing_size_error(what: str, n_atoms: tuple[int, int], sizes: Sequence[int]) -> ValueError:
    """Return the error for a range without any possible size; it names the nearest possible sizes."""
    low, high = n_atoms
    near = sorted(size for size in sizes if size < low)[-2:] + sorted(size for size in sizes if size > high)[:2]
    hint = f"; the nearest sizes are {', '.join(map(str, near))}" if near else ""
    return ValueError(f"n_atoms: there is no {what} of {low} to {high} atoms{hint}; widen the range")
