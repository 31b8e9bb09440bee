"""Measure structures from the flat arrays of one block of a dataset, for the quality gate."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from daskpipe.core.geometry import complete_open_axes
from daskpipe.core.seeds import order_by_hash
from daskpipe.core.structures import electronic_states
from daskpipe.store.leakage import neighbours_in_family

type Columns = Mapping[str, np.ndarray]

LAST_ELEMENT = 118

BONDED = 1.3
"""Distance of the first search for neighbours, in sums of covalent radii: almost all atoms have one there."""

REACH = 3.5
"""Smallest range of the pairs in a fingerprint, Å: large enough to include the angles of light atoms."""

N_RADIAL = 4
"""Number of radial functions of a fingerprint."""

N_FINGERPRINT = 2 * N_RADIAL + 4
"""Length of a fingerprint: two moments of each radial function, extent, distance of fragments, closest pair and
loneliest atom."""

MOST_IN_FRAGMENTS = 256
"""Most atoms for which the distances between fragments are measured, each pair on its own."""

MIN_WIDTH = 0.3
"""Thickness of a cell, Å, below which it holds too many images of an atom to search for neighbours."""

MOST_PAIRS = 512
MOST_PAIR_ATOMS = 2**20
"""Most pairs of frames whose energies are compared with forces, and most atoms in them, which bounds the memory."""

MOST_NEIGHBOURS = 16
"""Nearest frames in feature space that a frame without lineage is compared with, where the nearest one is too far."""

MAX_DISPLACEMENT = 0.8
"""Largest displacement of an atom between two such frames, Å; beyond, the mean force does not give the work."""

MAX_STRAIN = 0.1
"""Largest strain between two such frames."""


def measure_cells(block: Columns) -> dict[str, np.ndarray]:
    """Measure cells.

    Parameters
    ----------
    block
        ``n_atoms``, ``atom_start``, ``positions``, ``cell``, ``pbc`` of some structures.

    Returns
    -------
    dict
        By name, shape (structure,): ``finite`` (positions and cell), ``n_periodic``, ``fullness`` (volume, area or
        length that the periodic vectors span, over the product of their lengths; 0 where they span nothing),
        ``left_handed``, ``volume`` (Å^3 per atom; NaN unless periodic along all axes) and ``searchable`` (whether
        neighbours can be searched for).
    """
    cell, pbc, n_atoms = block["cell"], block["pbc"], block["n_atoms"]
    finite = np.isfinite(cell).all(axis=(1, 2)) & ~reduce_atoms(
        np.logical_or, ~np.isfinite(block["positions"]).all(axis=1), block
    )
    cell = np.where(finite[:, None, None], cell, 0.0)
    lengths = np.linalg.norm(cell, axis=2)
    unit = cell / np.where(lengths > 0, lengths, 1)[:, :, None]
    n_periodic = pbc.sum(axis=1)
    # Open axes count as unit normals of the others: with one open axis the volume is an area.
    fullness = np.ones(len(pbc))
    volume = np.linalg.det(unit)
    fullness[n_periodic == 3] = np.abs(volume[n_periodic == 3])
    for open_axis in range(3):
        rows = np.flatnonzero((n_periodic == 2) & ~pbc[:, open_axis])
        normal = np.cross(unit[rows, open_axis - 2], unit[rows, open_axis - 1])
        fullness[rows] = np.linalg.norm(normal, axis=1)
    fullness[(pbc & (lengths == 0)).any(axis=1)] = 0.0
    per_atom = np.where(n_periodic == 3, np.abs(np.linalg.det(cell)) / np.maximum(n_atoms, 1), np.nan)
    shortest = np.where(pbc, lengths, np.inf).min(axis=1)
    # Matter is never as dense as 0.3 Å^3 per atom; above, the number of images is bounded.
    searchable = finite & (n_atoms > 0) & (fullness * shortest > MIN_WIDTH) & ~(per_atom < MIN_WIDTH)
    return {
        "finite": finite,
        "n_periodic": n_periodic,
        "fullness": fullness,
        "left_handed": (n_periodic > 0) & (volume < 0),
        "volume": per_atom,
        "searchable": searchable,
    }


def measure_distances(block: Columns, searchable: np.ndarray, reach: float) -> dict[str, np.ndarray]:
    """Measure distances between atoms, periodic images included, in sums of their covalent radii.

    Parameters
    ----------
    block
        ``n_atoms``, ``atom_start``, ``numbers``, ``positions``, ``cell``, ``pbc``.
    searchable
        Structures to measure, shape (structure,), bool.
    reach
        Largest distance of the search, in sums of covalent radii.

    Returns
    -------
    dict
        ``closest``, shape (structure,): distance of the closest pair. ``loneliest``, shape (structure,): largest
        distance of an atom from its nearest neighbour. Both are infinite where no other atom is within `reach`, and
        NaN where not measured. ``fingerprint``, shape (structure, 12): equal for structures that differ by a motion or
        reflection of the whole, by the order of atoms or by the origin of the cell. Random displacements of all atoms
        change it by 0.5 (metals) to 8 (water) per Å of displacement, for any number of atoms.
    """
    from ase.data import covalent_radii

    n_structures = len(searchable)
    closest, loneliest = np.full(n_structures, np.nan), np.full(n_structures, np.nan)
    fingerprint = np.full((n_structures, N_FINGERPRINT), np.nan)
    for row in np.flatnonzero(searchable).tolist():
        numbers, positions, cell, pbc = geometry_of(block, row)
        n_atoms, covalent = len(numbers), covalent_radii[numbers]
        radii = np.maximum(BONDED * covalent, REACH / 2)
        i, j, d = find_neighbours(positions, cell, pbc, radii, "ijd")
        nearest = _nearest_distances(i, d / (covalent[i] + covalent[j]), n_atoms)
        if (nearest > BONDED).any():
            a, b, far = find_neighbours(positions, cell, pbc, reach * covalent, "ijd")
            nearest = _nearest_distances(a, far / (covalent[a] + covalent[b]), n_atoms)
        closest[row], loneliest[row] = nearest.min(), nearest.max()
        x = (d / (radii[i] + radii[j])) ** 2
        term = numbers[j] * (1 - x) ** 2
        moments = np.empty((N_RADIAL, n_atoms))
        for k in range(N_RADIAL):
            moments[k] = np.bincount(i, weights=term, minlength=n_atoms)
            term = term * x
        sums = np.concatenate([(moments * numbers).mean(axis=1), np.sqrt((moments**2).mean(axis=1))])
        if pbc.all():
            extent = abs(np.linalg.det(cell)) / n_atoms
        else:
            extent = np.sqrt((positions @ np.linalg.inv(cell))[:, ~pbc].var(axis=0).sum())
        separation = _measure_fragment_distance(positions, cell, pbc, i, j)
        # Independent displacements change a mean by 1 / sqrt(n).
        fingerprint[row, :-2] = np.sqrt(n_atoms) * np.log(np.append(sums, [1 + extent, 1 + separation]) + 1e-12)
        # These tell structures apart whose atoms are too far from each other to count in the sums, such as dimers.
        fingerprint[row, -2:] = np.minimum([closest[row], loneliest[row]], reach + 1)
    return {"closest": closest, "loneliest": loneliest, "fingerprint": fingerprint}


def measure_forces(block: Columns) -> dict[str, np.ndarray]:
    """Measure forces.

    Returns
    -------
    dict
        ``forces_finite``, ``largest_force`` (eV/Å; NaN if not finite), ``net_force`` (length of the sum, eV/Å per
        atom) and ``zero_forces`` (all exactly 0 although there is more than one atom), shape (structure,); and
        ``force_norms`` (eV/Å) of the atoms of structures with finite forces, shape (atom,).
    """
    forces = block["forces"].astype(np.float64)
    n_atoms = block["n_atoms"]
    norms = np.linalg.norm(forces, axis=1)
    finite = ~reduce_atoms(np.logical_or, ~np.isfinite(norms), block)
    largest = reduce_atoms(np.maximum, norms, block)
    total = np.stack([reduce_atoms(np.add, forces[:, axis], block) for axis in range(3)], axis=1)
    with np.errstate(invalid="ignore"):
        net = np.linalg.norm(total, axis=1) / np.maximum(n_atoms, 1)
    return {
        "forces_finite": finite,
        "largest_force": np.where(finite, largest, np.nan),
        "net_force": np.where(finite, net, np.nan),
        "zero_forces": (largest == 0) & (n_atoms > 1),
        "force_norms": norms[np.repeat(finite, n_atoms)],
    }


def largest_stress(stress: np.ndarray) -> np.ndarray:
    """Return the largest absolute component of each stress, shape (structure,), eV/Å^3.

    NaN where all components are NaN, which means that there is no stress; infinite where some are not finite.

    Parameters
    ----------
    stress
        Voigt components, shape (structure, 6), eV/Å^3.

    Examples
    --------
    >>> stress = np.array([[0.1, -0.3, 0, 0, 0, 0], [np.nan] * 6, [np.inf, 0, 0, 0, 0, 0]])
    >>> largest_stress(stress).tolist()
    [0.3, nan, inf]
    """
    largest = np.abs(stress).max(axis=1)
    missing = np.isnan(stress).all(axis=1)
    return np.asarray(np.where(missing, np.nan, np.where(np.isfinite(stress).all(axis=1), largest, np.inf)))


def percentile_99(top: np.ndarray, n: int) -> float:
    """Return the 99th percentile of `n` numbers, as `numpy.percentile` does, from the largest hundredth of them.

    Examples
    --------
    >>> numbers = np.arange(1000.0)
    >>> round(percentile_99(numbers[-12:], 1000), 6)
    989.01
    """
    if n == 0:
        return 0.0
    place = 0.99 * (n - 1)
    low = int(place)
    ordered = np.sort(top)
    first = n - len(ordered)
    below, above = ordered[low - first], ordered[min(low + 1, n - 1) - first]
    return float(below + (above - below) * (place - low))


def has_asymmetric_atom(block: Columns, row: int) -> bool:
    """Return whether an atom of a structure has surroundings without the symmetry that makes its force 0.

    Where symmetry makes the force 0, a weighted sum of unit vectors to the neighbours vanishes, too.
    """
    from ase.data import covalent_radii

    numbers, positions, cell, pbc = geometry_of(block, row)
    radii = np.maximum(BONDED * covalent_radii[numbers], REACH / 2)
    i, j, d, vector = find_neighbours(positions, cell, pbc, radii, "ijdD")
    weight = numbers[j] * (1 - (d / (radii[i] + radii[j])) ** 2) ** 2
    pulls = np.stack([np.bincount(i, weights=weight * part / np.maximum(d, 1e-9)) for part in vector.T])
    return bool((np.linalg.norm(pulls, axis=0) > 1e-3 * np.bincount(i, weights=weight)).any())


def hash_magnetic_states(block: Columns) -> np.ndarray:
    """Hash the magnetic moments of each structure, shape (structure,), int64; 0 without moments."""
    states = electronic_states({name: block[name] for name in ("n_atoms", "initial_magmoms")})
    none = electronic_states({"n_atoms": np.ones(1, dtype=np.int64)})[0]
    digests = [b"" if state == none else hashlib.blake2b(state, digest_size=7).digest() for state in states]
    return np.array([int.from_bytes(digest) for digest in digests], dtype=np.int64)


def count_elements(block: Columns) -> np.ndarray:
    """Count the atoms of each element, shape (structure, 119), int32."""
    rows = np.repeat(np.arange(len(block["n_atoms"])), block["n_atoms"])
    width = LAST_ELEMENT + 1
    numbers = np.minimum(block["numbers"].astype(np.int64), LAST_ELEMENT)
    counts = np.bincount(rows * width + numbers, minlength=len(block["n_atoms"]) * width)
    return counts.reshape(-1, width).astype(np.int32)


def geometry_of(block: Columns, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return numbers (int64), positions (float64), cell and pbc of one structure of a block."""
    atoms = slice(start := int(block["atom_start"][row]), start + int(block["n_atoms"][row]))
    positions = block["positions"][atoms].astype(np.float64)
    return block["numbers"][atoms].astype(np.int64), positions, full_cell(block, row), block["pbc"][row]


def full_cell(block: Columns, row: int) -> np.ndarray:
    """Return the cell of a structure, its vectors along open axes replaced by unit normals of the periodic ones."""
    return complete_open_axes(block["cell"][row], block["pbc"][row])


def find_neighbours(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, radii: np.ndarray, quantities: str
) -> tuple[np.ndarray, ...]:
    """Find the pairs of atoms, images included, whose spheres overlap; results as of matscipy's ``neighbour_list``."""
    from matscipy.neighbours import neighbour_list

    scaled = np.linalg.solve(cell.T, positions.T).T
    # Along open axes the cell becomes a box around the atoms: the search sorts them into bins within it.
    origin = np.where(pbc, 0, scaled.min(axis=0))
    extent = np.where(pbc, 1, np.maximum(np.ptp(scaled, axis=0), 1))
    pairs: tuple[np.ndarray, ...] = neighbour_list(
        quantities,
        cutoff=radii,
        positions=positions,
        cell=cell * extent[:, None],
        pbc=pbc,
        cell_origin=origin @ cell,
    )
    return pairs


def reduce_atoms(reduce: np.ufunc, values: np.ndarray, block: Columns) -> np.ndarray:
    """Reduce an array of shape (atom,) over the atoms of each structure; 0 where there are none."""
    out = np.zeros(len(block["n_atoms"]), dtype=values.dtype)
    filled = np.flatnonzero(block["n_atoms"] > 0)
    if len(filled):
        out[filled] = reduce.reduceat(values, block["atom_start"][filled])
    return out


def choose_pairs(columns: Columns, *, further: bool = False) -> np.ndarray:
    """Choose pairs of consecutive frames of one seed and composition, shape (pair, 2).

    Parameters
    ----------
    columns
        ``structure_id``, ``origin``, ``composition`` (number), ``n_atoms`` and, if they are known, ``replica``,
        ``step`` and ``features``; of structures with finite labels. A structure that is the only one of its seed, as
        imported frames in a shuffled order are, is paired with the nearest one of its composition in feature space.
    further
        Pair such structures with the next nearest ones instead, and return no other pairs: in a liquid the nearest one
        in feature space is often one whose atoms are elsewhere.
    """
    if further:
        return _sample_pairs(columns, _pair_nearest(columns, range(2, MOST_NEIGHBOURS + 1)))
    keys = [columns[name] for name in ("step", "replica") if name in columns]
    order = np.lexsort((columns["structure_id"].view("<u8")[::2], *keys, columns["composition"], columns["origin"]))
    first, second = order[:-1], order[1:]
    same = (columns["origin"][first] == columns["origin"][second]) & (
        columns["composition"][first] == columns["composition"][second]
    )
    pairs = np.stack([first[same], second[same]], axis=1)
    if "features" in columns:
        pairs = np.concatenate([pairs, _pair_nearest(columns, range(1, 2))])
    return _sample_pairs(columns, pairs)


def _sample_pairs(columns: Columns, pairs: np.ndarray) -> np.ndarray:
    """Return pairs in an order that is random in their ids, at most `MOST_PAIRS` with at most `MOST_PAIR_ATOMS`."""
    pairs = pairs[order_by_hash(0, "quality", columns["structure_id"][pairs[:, 0]])][:MOST_PAIRS]
    return pairs[np.cumsum(2 * columns["n_atoms"][pairs[:, 0]].astype(np.int64)) <= MOST_PAIR_ATOMS]


def _pair_nearest(columns: Columns, ranks: range) -> np.ndarray:
    """Return pairs of rows of one composition, shape (pair, 2): those alone of their seed with the nearest others.

    Parameters
    ----------
    columns
        As `choose_pairs`.
    ranks
        Which neighbours; 1 is the nearest.
    """
    alone = np.bincount(columns["origin"])[columns["origin"]] == 1
    rows = np.flatnonzero(alone & np.isfinite(columns["features"]).all(axis=1))
    features, family = columns["features"][rows].astype(np.float64), columns["composition"][rows]
    others = neighbours_in_family(features, family, ranks.stop - 1)[1][:, ranks.start - 1 :]
    one, rank = np.nonzero(others >= 0)
    return np.unique(np.sort(np.stack([rows[one], rows[others[one, rank]]], axis=1), axis=1), axis=0)


def compare_energy_and_work(a: Columns, b: Columns) -> tuple[float, float] | None:
    """Return the energy difference of two frames, and the work of the mean forces and stress between them, eV.

    Parameters
    ----------
    a, b
        ``numbers``, ``positions``, ``forces``, ``cell``, ``pbc``, ``energy`` and, if it is known, ``stress`` of one
        structure each.

    Returns
    -------
    tuple or None
        ``None`` if the frames are not neighbours: they have different atoms, an atom or the cell moved too far, or the
        cell changed and there are no stresses.
    """
    if not np.array_equal(a["numbers"], b["numbers"]) or not np.array_equal(a["pbc"], b["pbc"]):
        return None
    pbc, shift, strained = a["pbc"], b["positions"] - a["positions"], 0.0
    if pbc.any():
        block = {name: np.stack([a[name], b[name]]) for name in ("cell", "pbc")}
        before, after = full_cell(block, 0), full_cell(block, 1)
        if np.abs(np.linalg.solve(before, after) - np.eye(3)).max() > MAX_STRAIN:
            return None
        mean = (before + after) / 2
        scaled = b["positions"] @ np.linalg.inv(after) - a["positions"] @ np.linalg.inv(before)
        scaled[:, pbc] -= np.round(scaled[:, pbc])
        shift = scaled @ mean
        if not np.allclose(before, after, rtol=0, atol=1e-9):
            if not pbc.all() or "stress" not in a:
                return None
            gradient = np.linalg.inv(mean) @ (after - before)
            strain = ((gradient + gradient.T) / 2)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] * [1, 1, 1, 2, 2, 2]
            strained = abs(float(np.linalg.det(mean))) * float((a["stress"] + b["stress"]) / 2 @ strain)
    shift = shift - shift.mean(axis=0)
    if np.linalg.norm(shift, axis=1).max() > MAX_DISPLACEMENT:
        return None
    work = strained - float(((a["forces"] + b["forces"]) / 2 * shift).sum())
    return float(b["energy"] - a["energy"]), work


def _measure_fragment_distance(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, i: np.ndarray, j: np.ndarray
) -> float:
    """Measure the root mean square distance of atoms of different fragments (nearest images), Å; 0 for one fragment.

    Sums over neighbours do not show how far apart the parts of a dimer are.
    """
    from ase.geometry import get_distances
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n_atoms = len(positions)
    if not 1 < n_atoms <= MOST_IN_FRAGMENTS:
        return 0.0
    bonds = coo_array((np.ones(len(i), dtype=np.int8), (i, j)), shape=(n_atoms, n_atoms))
    n_fragments, fragment = connected_components(bonds, directed=False)
    if n_fragments == 1:
        return 0.0
    distances = get_distances(positions, cell=cell, pbc=pbc)[1]
    return float(np.sqrt(np.mean(distances[fragment[:, None] != fragment] ** 2)))


def _nearest_distances(i: np.ndarray, distance: np.ndarray, n_atoms: int) -> np.ndarray:
    """Return the smallest distance of the pairs of each atom, shape (atom,); infinite without a pair."""
    nearest = np.full(n_atoms, np.inf)
    np.minimum.at(nearest, i, distance)
    return nearest
