"""What the quality gate measures of each structure, from the flat arrays of one block of a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from daskpipe.geometry import complete_open_axes
from daskpipe.seeds import order_by_hash
from daskpipe.store.leakage import neighbours_of_kin
from daskpipe.structures import electronic_states

type Columns = Mapping[str, np.ndarray]

LAST_ELEMENT = 118

BONDED = 1.3
"""Distance of atoms, in sums of covalent radii, that is looked at first: almost all have a neighbour there."""

REACH = 3.5
"""Least distance up to which pairs count in a fingerprint, Å: so that light atoms' angles do, too."""

N_RADIAL = 4
"""Radial functions of a fingerprint."""

N_FINGERPRINT = 2 * N_RADIAL + 4
"""Two moments of each, the extent, the distance of fragments, the closest pair and the loneliest atom."""

MOST_IN_FRAGMENTS = 256
"""Atoms up to which the distances between fragments are measured: one by one."""

MIN_WIDTH = 0.3
"""Cells thinner than this, Å, hold too many images of an atom to look for neighbours."""

MOST_PAIRS = 512
MOST_PAIR_ATOMS = 2**20
"""Most pairs of frames whose energies are held against forces, and most atoms in them: a block of memory."""

MOST_NEIGHBOURS = 16
"""Nearest frames in feature space that a frame without lineage is compared with, where the nearest one is too far."""

MAX_DISPLACEMENT = 0.8
"""Largest displacement of an atom between two such frames, Å: farther, the mean force says little of the energy."""


MAX_STRAIN = 0.1
"""Largest strain between them, likewise."""


def of_cells(block: Columns) -> dict[str, np.ndarray]:
    """Measure cells.

    Parameters
    ----------
    block
        ``n_atoms``, ``atom_start``, ``positions``, ``cell``, ``pbc`` of some structures.

    Returns
    -------
    dict
        By name, shape (structure,): ``finite`` (positions and cell), ``n_periodic``, ``fullness`` (volume, area or 1 of
        the periodic vectors over the product of their lengths; 0 where they span nothing), ``left_handed``, ``volume``
        (Å^3 an atom; NaN unless periodic along all axes) and ``searchable`` (whether neighbours can be looked for).
    """
    cell, pbc, n_atoms = block["cell"], block["pbc"], block["n_atoms"]
    finite = np.isfinite(cell).all(axis=(1, 2)) & ~per_structure(
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
    # No packing that a cell of 0.3 Å^3 an atom allows is matter; beyond, the number of images is bounded.
    searchable = finite & (n_atoms > 0) & (fullness * shortest > MIN_WIDTH) & ~(per_atom < MIN_WIDTH)
    return {
        "finite": finite,
        "n_periodic": n_periodic,
        "fullness": fullness,
        "left_handed": (n_periodic > 0) & (volume < 0),
        "volume": per_atom,
        "searchable": searchable,
    }


def of_distances(block: Columns, searchable: np.ndarray, reach: float) -> dict[str, np.ndarray]:
    """Measure distances, periodic images included, in sums of the two covalent radii.

    Parameters
    ----------
    block
        ``n_atoms``, ``atom_start``, ``numbers``, ``positions``, ``cell``, ``pbc``.
    searchable
        Structures to look at, shape (structure,), bool.
    reach
        How far to look, in sums of covalent radii.

    Returns
    -------
    dict
        ``closest``, shape (structure,): the closest pair; ``loneliest``: distance from its nearest one of the atom for
        which it is largest; infinite where there is no other within `reach`, NaN where not looked.
        ``fingerprint``, shape (structure, 12): equal for structures that differ by a motion or reflection of the whole,
        the order of atoms or the choice of the cell's origin. Random displacements of all atoms change it by 0.5
        (metals) to 8 (water) a displacement of 1 Å, however many atoms there are.
    """
    from ase.data import covalent_radii

    n_structures = len(searchable)
    closest, loneliest = np.full(n_structures, np.nan), np.full(n_structures, np.nan)
    fingerprint = np.full((n_structures, N_FINGERPRINT), np.nan)
    for row in np.flatnonzero(searchable).tolist():
        numbers, positions, cell, pbc = geometry(block, row)
        n_atoms, covalent = len(numbers), covalent_radii[numbers]
        radii = np.maximum(BONDED * covalent, REACH / 2)
        i, j, d = neighbours(positions, cell, pbc, radii, "ijd")
        nearest = _nearest(i, d / (covalent[i] + covalent[j]), n_atoms)
        if (nearest > BONDED).any():
            a, b, far = neighbours(positions, cell, pbc, reach * covalent, "ijd")
            nearest = _nearest(a, far / (covalent[a] + covalent[b]), n_atoms)
        closest[row], loneliest[row] = nearest.min(), nearest.max()
        x = (d / (radii[i] + radii[j])) ** 2
        term = numbers[j] * (1 - x) ** 2
        crowd = np.empty((N_RADIAL, n_atoms))
        for k in range(N_RADIAL):
            crowd[k] = np.bincount(i, weights=term, minlength=n_atoms)
            term = term * x
        sums = np.concatenate([(crowd * numbers).mean(axis=1), np.sqrt((crowd**2).mean(axis=1))])
        if pbc.all():
            extent = abs(np.linalg.det(cell)) / n_atoms
        else:
            extent = np.sqrt((positions @ np.linalg.inv(cell))[:, ~pbc].var(axis=0).sum())
        apart = _distance_of_fragments(positions, cell, pbc, i, j)
        # Independent displacements change a mean by 1 / sqrt(n).
        fingerprint[row, :-2] = np.sqrt(n_atoms) * np.log(np.append(sums, [1 + extent, 1 + apart]) + 1e-12)
        # What is too far to count in the sums, such as the parts of a dimer, differs in these.
        fingerprint[row, -2:] = np.minimum([closest[row], loneliest[row]], reach + 1)
    return {"closest": closest, "loneliest": loneliest, "fingerprint": fingerprint}


def of_forces(block: Columns) -> dict[str, np.ndarray]:
    """Measure forces.

    Returns
    -------
    dict
        ``forces_finite``, ``largest_force`` (eV/Å; NaN if not finite), ``net_force`` (length of the sum, eV/Å an atom)
        and ``zero_forces`` (all exactly 0 though there is more than one atom), shape (structure,); and
        ``force_norms`` of the atoms of structures with finite forces.
    """
    forces = block["forces"].astype(np.float64)
    n_atoms = block["n_atoms"]
    norms = np.linalg.norm(forces, axis=1)
    finite = ~per_structure(np.logical_or, ~np.isfinite(norms), block)
    largest = per_structure(np.maximum, norms, block)
    total = np.stack([per_structure(np.add, forces[:, axis], block) for axis in range(3)], axis=1)
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
    """Return the largest absolute component of each stress, shape (structure, 6), eV/Å^3.

    NaN where all components are NaN, which says that there is none; infinite where some are not finite.
    """
    largest = np.abs(stress).max(axis=1)
    missing = np.isnan(stress).all(axis=1)
    return np.asarray(np.where(missing, np.nan, np.where(np.isfinite(stress).all(axis=1), largest, np.inf)))


def percentile_99(top: np.ndarray, n: int) -> float:
    """Return the 99th percentile of `n` numbers, as `numpy.percentile` does, from the largest hundredth of them."""
    if n == 0:
        return 0.0
    place = 0.99 * (n - 1)
    low = int(place)
    ordered = np.sort(top)
    first = n - len(ordered)
    below, above = ordered[low - first], ordered[min(low + 1, n - 1) - first]
    return float(below + (above - below) * (place - low))


def asymmetric(block: Columns, row: int) -> bool:
    """Whether a structure has atoms whose surroundings leave room for a force: no symmetry makes it 0.

    A weighted sum of unit vectors to the neighbours vanishes where symmetry makes all forces vanish.
    """
    from ase.data import covalent_radii

    numbers, positions, cell, pbc = geometry(block, row)
    radii = np.maximum(BONDED * covalent_radii[numbers], REACH / 2)
    i, j, d, vector = neighbours(positions, cell, pbc, radii, "ijdD")
    weight = numbers[j] * (1 - (d / (radii[i] + radii[j])) ** 2) ** 2
    pulls = np.stack([np.bincount(i, weights=weight * part / np.maximum(d, 1e-9)) for part in vector.T])
    return bool((np.linalg.norm(pulls, axis=0) > 1e-3 * np.bincount(i, weights=weight)).any())


def magnetic_states(block: Columns) -> np.ndarray:
    """Return a hash of the magnetic moments of each structure, shape (structure,), int64; 0 without moments."""
    states = electronic_states({name: block[name] for name in ("n_atoms", "initial_magmoms")})
    none = electronic_states({"n_atoms": np.ones(1, dtype=np.int64)})[0]
    digests = [b"" if state == none else hashlib.blake2b(state, digest_size=7).digest() for state in states]
    return np.array([int.from_bytes(digest) for digest in digests], dtype=np.int64)


def element_counts(block: Columns) -> np.ndarray:
    """Count the atoms of each element, shape (structure, 119), int32."""
    rows = np.repeat(np.arange(len(block["n_atoms"])), block["n_atoms"])
    width = LAST_ELEMENT + 1
    numbers = np.minimum(block["numbers"].astype(np.int64), LAST_ELEMENT)
    counts = np.bincount(rows * width + numbers, minlength=len(block["n_atoms"]) * width)
    return counts.reshape(-1, width).astype(np.int32)


def geometry(block: Columns, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return numbers (int64), positions (float64), cell and pbc of one structure of a block."""
    atoms = slice(start := int(block["atom_start"][row]), start + int(block["n_atoms"][row]))
    positions = block["positions"][atoms].astype(np.float64)
    return block["numbers"][atoms].astype(np.int64), positions, full_cell(block, row), block["pbc"][row]


def full_cell(block: Columns, row: int) -> np.ndarray:
    """Cell of a structure whose vectors along open axes are unit normals of the periodic ones."""
    return complete_open_axes(block["cell"][row], block["pbc"][row])


def neighbours(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, radii: np.ndarray, quantities: str
) -> tuple[np.ndarray, ...]:
    """Return the pairs of atoms, images included, whose spheres overlap; as matscipy's ``neighbour_list``."""
    from matscipy.neighbours import neighbour_list

    scaled = np.linalg.solve(cell.T, positions.T).T
    # A box around the atoms along open axes: the search sorts them into bins within the cell.
    origin = np.where(pbc, 0, scaled.min(axis=0))
    extent = np.where(pbc, 1, np.maximum(np.ptp(scaled, axis=0), 1))
    found: tuple[np.ndarray, ...] = neighbour_list(
        quantities,
        cutoff=radii,
        positions=positions,
        cell=cell * extent[:, None],
        pbc=pbc,
        cell_origin=origin @ cell,
    )
    return found


def per_structure(reduce: np.ufunc, values: np.ndarray, block: Columns) -> np.ndarray:
    """Reduce an array of the atoms, shape (atom,), over those of each structure; 0 where there are none."""
    out = np.zeros(len(block["n_atoms"]), dtype=values.dtype)
    filled = np.flatnonzero(block["n_atoms"] > 0)
    if len(filled):
        out[filled] = reduce.reduceat(values, block["atom_start"][filled])
    return out


def near_pairs(columns: Columns, *, further: bool = False) -> np.ndarray:
    """Choose pairs of frames of one seed and composition that follow each other, shape (pair, 2).

    Parameters
    ----------
    columns
        ``structure_id``, ``origin``, ``composition`` (number), ``n_atoms`` and, if they are known, ``replica``,
        ``step`` and ``features``; of structures with finite labels. A structure that is alone of its seed, as imported
        frames in a shuffled order are, makes a pair with the nearest one of its composition in feature space.
    further
        Give such structures the next nearest ones instead, and no other pairs: in a liquid the nearest one in feature
        space is often one whose atoms are elsewhere.
    """
    if further:
        return _chosen(columns, _nearest_in_features(columns, range(2, MOST_NEIGHBOURS + 1)))
    keys = [columns[name] for name in ("step", "replica") if name in columns]
    order = np.lexsort((columns["structure_id"].view("<u8")[::2], *keys, columns["composition"], columns["origin"]))
    first, second = order[:-1], order[1:]
    same = (columns["origin"][first] == columns["origin"][second]) & (
        columns["composition"][first] == columns["composition"][second]
    )
    pairs = np.stack([first[same], second[same]], axis=1)
    if "features" in columns:
        pairs = np.concatenate([pairs, _nearest_in_features(columns, range(1, 2))])
    return _chosen(columns, pairs)


def _chosen(columns: Columns, pairs: np.ndarray) -> np.ndarray:
    pairs = pairs[order_by_hash(0, "quality", columns["structure_id"][pairs[:, 0]])][:MOST_PAIRS]
    return pairs[np.cumsum(2 * columns["n_atoms"][pairs[:, 0]].astype(np.int64)) <= MOST_PAIR_ATOMS]


def _nearest_in_features(columns: Columns, ranks: range) -> np.ndarray:
    """Return pairs of rows of one composition, shape (pair, 2): those alone of their seed with the nearest others.

    Parameters
    ----------
    columns
        As `near_pairs`.
    ranks
        Which neighbours; 1 is the nearest.
    """
    alone = np.bincount(columns["origin"])[columns["origin"]] == 1
    rows = np.flatnonzero(alone & np.isfinite(columns["features"]).all(axis=1))
    features, kin = columns["features"][rows].astype(np.float64), columns["composition"][rows]
    others = neighbours_of_kin(features, kin, ranks.stop - 1)[1][:, ranks.start - 1 :]
    one, rank = np.nonzero(others >= 0)
    return np.unique(np.sort(np.stack([rows[one], rows[others[one, rank]]], axis=1), axis=1), axis=0)


def energy_and_work(a: Columns, b: Columns) -> tuple[float, float] | None:
    """Return the difference of two frames' energies, and the work of the mean forces and stress between them, eV.

    Parameters
    ----------
    a, b
        ``numbers``, ``positions``, ``forces``, ``cell``, ``pbc``, ``energy`` and, if it is known, ``stress`` of one
        structure each.

    Returns
    -------
    tuple or None
        ``None`` if they are no neighbours: other atoms, an atom or the cell moved too far, or a changed cell without
        stresses.
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


def _distance_of_fragments(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, i: np.ndarray, j: np.ndarray
) -> float:
    """Return the root mean square distance of atoms of different fragments, nearest images; 0 where all is one, Å.

    Sums over neighbours do not tell how far apart the parts of a dimer are.
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


def _nearest(i: np.ndarray, distance: np.ndarray, n_atoms: int) -> np.ndarray:
    nearest = np.full(n_atoms, np.inf)
    np.minimum.at(nearest, i, distance)
    return nearest
