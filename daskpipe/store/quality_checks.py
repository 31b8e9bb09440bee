"""The checks of the quality gate: plain functions of flat arrays, a row a structure, that each give a `Check`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from daskpipe.seeds import order_by_hash
from daskpipe.store.quality_units import TIGHT, name_ratio, slope_range
from daskpipe.store.settings import CellLimits, DuplicateLimits, EnergyLimits, Shares, SizeLimits
from daskpipe.units import GPA

MOST_OFFENDERS = 1000
"""Most offending structures that a check names, the worst first; their number is exact in any case."""

SAMPLE = 1024
"""Structures, chosen by the hashes of their ids, that the diversity is computed of."""

FIT_SAMPLE = 20_000
"""Structures, chosen likewise, that the energies of the elements are fitted to."""

FEW = 10
"""With fewer structures, neither outliers nor diversity mean anything."""

MIN_PAIRS = 12
"""With fewer pairs of neighbouring frames, energies and forces are not compared."""

BOXED = 12
"""Atoms below which the volume of a cell is that of a box around a molecule or an atom."""

BANDWIDTH = 0.5
"""Width of the kernel of the diversity, in root mean square distances of the structures from their mean."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Outcome of one check.

    Parameters
    ----------
    name
        As the threshold in `daskpipe.store.settings.Quality`.
    verdict
        ``warn`` if it fails, and the profile or the settings say that this is no NO-GO; ``skipped`` if it is turned
        off, or the dataset does not hold what it needs.
    value, threshold, unit
        What was measured and what it is held against; a value that is not finite is None.
    says
        One sentence for people.
    offenders
        Ids in hex of the structures it is about, the worst first, `MOST_OFFENDERS` at most.
    n_offenders
        How many there are in all.
    hard
        Whether what fails is wrong in any data, such as a number that is not finite, so that no setting makes it a
        warning.
    """

    name: str
    verdict: Literal["pass", "warn", "fail", "skipped"]
    value: float | None = None
    threshold: float | None = None
    unit: str = "1"
    says: str
    offenders: tuple[str, ...] = ()
    n_offenders: int = 0
    hard: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the check as JSON types."""
        facts = {name: value for name, value in asdict(self).items() if name != "hard"}
        return {**facts, "offenders": list(self.offenders)}


def skipped(name: str, why: str) -> Check:
    """Return a check that was not made."""
    return Check(name=name, verdict="skipped", says=why)


def offending(ids: np.ndarray, rows: np.ndarray, badness: np.ndarray) -> dict[str, Any]:
    """Name offenders: the worst first, and among equals by id, so that the order of the dataset does not matter.

    Parameters
    ----------
    ids
        Shape (structure,), 16 bytes each.
    rows, badness
        Offending structures, and how bad each is; larger is worse.
    """
    names = [ids[row].tobytes() for row in rows]
    order = sorted(range(len(names)), key=lambda index: (-float(badness[index]), names[index]))
    return {"offenders": tuple(names[index].hex() for index in order[:MOST_OFFENDERS]), "n_offenders": len(names)}


def _check(name: str, failed: bool, says: str, value: float, threshold: float | None, unit: str, **rest: Any) -> Check:
    number = float(value) if math.isfinite(value) else None
    verdict: Literal["fail", "pass"] = "fail" if failed else "pass"
    return Check(name=name, verdict=verdict, value=number, threshold=threshold, unit=unit, says=says, **rest)


def _structures(n: int) -> str:
    return f"{n:,} structure{'s' if n != 1 else ''}"


# --- geometry ---------------------------------------------------------------------------------------


def overlap(ids: np.ndarray, closest: np.ndarray, limit: float) -> Check:
    """Check the closest pair of each structure, in sums of covalent radii; NaN where none was looked for."""
    looked = ~np.isnan(closest)
    rows = np.flatnonzero(looked & (closest < limit))
    least = float(closest[looked].min()) if looked.any() else math.inf
    says = f"{_structures(len(rows))} with two atoms closer than {limit:g} of their covalent radii; closest {least:.3f}"
    if not looked.all():
        says += f"; {_structures(int((~looked).sum()))} could not be looked at, see cell"
    return _check(
        "overlap", len(rows) > 0, says, least, limit, "covalent radii", **offending(ids, rows, -closest[rows])
    )


def isolated_atoms(ids: np.ndarray, n_atoms: np.ndarray, loneliest: np.ndarray, limit: float) -> Check:
    """Check for atoms far from all others of their structure, in sums of covalent radii; single atoms may be alone."""
    judged = ~np.isnan(loneliest) & (n_atoms > 1)
    rows = np.flatnonzero(judged & (loneliest > limit))
    farthest = float(loneliest[judged].max()) if judged.any() else 0.0
    says = f"{_structures(len(rows))} with an atom farther than {limit:g} sums of covalent radii from all others"
    if math.isfinite(farthest):
        says += f"; farthest {farthest:.3f}"
    return _check(
        "isolated_atoms", len(rows) > 0, says, farthest, limit, "covalent radii",
        **offending(ids, rows, loneliest[rows]),
    )  # fmt: skip


def cell(ids: np.ndarray, cells: Mapping[str, np.ndarray], limits: CellLimits) -> Check:
    """Check cells as `daskpipe.store.quality_measures.of_cells` measured them."""
    faults = {
        "not finite (cell or positions)": ~cells["finite"],
        "spanning nothing": cells["finite"] & (cells["fullness"] < 1e-6),
        "too skew": cells["finite"] & (cells["fullness"] >= 1e-6) & (cells["fullness"] < limits.min_fullness),
        "left-handed": cells["left_handed"] & (not limits.left_handed),
        "too dense": cells["finite"] & (cells["volume"] < limits.min_volume),
        "too empty": cells["volume"] * cells["n_atoms"] > limits.max_volume * np.maximum(cells["n_atoms"], BOXED),
    }
    # The worst faults stand first.
    weights = 2.0 ** np.arange(len(faults), 0, -1)
    badness = weights @ np.array(list(faults.values()))
    rows = np.flatnonzero(badness)
    told = ", ".join(f"{fault.sum():,} {name}" for name, fault in faults.items() if fault.any())
    volumes = cells["volume"][np.isfinite(cells["volume"])]
    span = f"; volumes {volumes.min():.3g} to {volumes.max():.3g} Å^3 an atom" if len(volumes) else ""
    says = f"{_structures(len(rows))} with an implausible cell{f' ({told})' if told else ''}{span}"
    return _check("cell", len(rows) > 0, says, len(rows), 0.0, "structures", **offending(ids, rows, badness[rows]))


# --- labels -----------------------------------------------------------------------------------------


def energy(
    ids: np.ndarray,
    energies: np.ndarray,
    counts: np.ndarray,
    composition: np.ndarray,
    system_type: np.ndarray,
    limits: EnergyLimits,
    few_atoms: int = 0,
) -> Check:
    """Check for energies that are not finite, or far from those of their like.

    A least absolute deviations fit takes the energies of the elements (and of each system type) out of the energy an
    atom. What is left is compared with the median of the same composition and system type, or of the system type alone
    where the composition has too few members.

    Parameters
    ----------
    ids, energies
        Shape (structure,); eV.
    counts
        Atoms of each element, shape (structure, element).
    composition, system_type
        Numbers, shape (structure,).
    limits
        Thresholds.
    few_atoms
        Structures of so many atoms or fewer are not compared: isolated atoms, dimer curves.
    """
    n_atoms = counts.sum(axis=1)
    finite = np.isfinite(energies) & (n_atoms > 0)
    badness = np.where(finite, 0.0, np.inf)
    farthest = 0.0
    known = np.flatnonzero(finite & (n_atoms > few_atoms))
    if len(known) >= FEW:
        rest = _residuals(ids[known], energies[known], counts[known], system_type[known])
        both = np.stack([composition[known], system_type[known]], axis=1)
        kind = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
        alone = np.bincount(kind)[kind] >= limits.members
        groups = np.where(alone, kind, -1 - system_type[known])
        order = np.argsort(groups, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
            if len(rows) < limits.members:
                continue
            distance = np.abs(rest[rows] - np.median(rest[rows]))
            least = limits.min_deviation if groups[rows[0]] >= 0 else limits.min_deviation_of_types
            deviation = max(1.4826 * float(np.median(distance)), least)
            farthest = max(farthest, float(distance.max()) / deviation)
            badness[known[rows]] = np.where(distance > limits.deviations * deviation, distance, 0.0)
    rows = np.flatnonzero(badness)
    n_infinite, share = int((~finite).sum()), len(rows) / len(ids)
    says = (
        f"{_structures(n_infinite)} with an energy that is not finite, {len(rows) - n_infinite:,} outliers beyond "
        f"{limits.deviations:g} deviations; the farthest is {farthest:.1f} deviations off"
    )
    return _check(
        "energy", n_infinite > 0 or share > limits.share, says, share, limits.share, "share", hard=n_infinite > 0,
        **offending(ids, rows, badness[rows]),
    )  # fmt: skip


def _residuals(ids: np.ndarray, energies: np.ndarray, counts: np.ndarray, system_type: np.ndarray) -> np.ndarray:
    """Energy an atom without the elements' and the types' part, eV."""
    n_atoms = counts.sum(axis=1)
    per_atom = energies / n_atoms
    present = counts.any(axis=0)
    fractions = counts[:, present] / n_atoms[:, None]
    types = np.unique(system_type)
    sample = np.sort(order_by_hash(0, "quality", ids)[:FIT_SAMPLE])
    design = np.concatenate([fractions[sample], system_type[sample, None] == types[1:]], axis=1)
    target = per_atom[sample]
    weight = np.ones(len(sample))
    for _ in range(30):  # iteratively reweighted least squares tends to least absolute deviations
        scale = np.sqrt(weight)
        solution = np.linalg.lstsq(design * scale[:, None], target * scale, rcond=None)[0]
        weight = 1 / np.maximum(np.abs(target - design @ solution), 1e-4)
    of_elements, of_types = solution[: present.sum()], np.append(0.0, solution[present.sum() :])
    return per_atom - fractions @ of_elements - of_types[np.searchsorted(types, system_type)]


def units(pair_ids: np.ndarray, difference: np.ndarray, work: np.ndarray, limit: float) -> Check:
    """Check that energies and forces fit each other: between neighbouring frames the energy changes by the work.

    Parameters
    ----------
    pair_ids
        Ids of the frames of each pair, shape (pair, 2).
    difference, work
        As `daskpipe.store.quality_measures.energy_and_work` gives them, eV; shape (pair,).
    limit
        Largest factor between their medians. Where the pairs tell the factor precisely, it is `quality_units.TIGHT`.
    """
    used = (difference != 0) & (work != 0)
    pair_ids, difference, work = pair_ids[used], difference[used], work[used]
    if len(work) < MIN_PAIRS:
        return skipped(
            "units",
            f"only {len(work)} pairs of neighbouring frames of one seed; {MIN_PAIRS} are needed to hold energies "
            "against forces",
        )
    each = difference / work
    factor = float(np.median(np.abs(difference)) / np.median(np.abs(work)))
    # Median weighted by the work: the slope of a least absolute deviations fit through the origin.
    order = np.argsort(each, kind="stable")
    weight = np.cumsum(np.abs(work[order]))
    slope = float(each[order][np.searchsorted(weight, weight[-1] / 2)])
    opposed = slope < -0.3  # that of clean sets: 0.5 to 1.1, of 12 pairs drawn from the worst of them: above -0.2
    wrong = not 1 / limit <= factor <= limit
    low, middle, high = slope_range(difference, work)
    if not (wrong or opposed) and (low > TIGHT or high < 1 / TIGHT):
        wrong, factor, limit = True, middle, TIGHT
    says = f"the energies of {len(work)} pairs of neighbouring frames differ by {factor:.3g} of the work of the forces"
    if opposed:
        says += f" and against it (slope {slope:.2f}): the forces have the wrong sign"
    if wrong:
        says += "; energies and forces are not in eV and eV/Å, or not of one teacher"
        if cause := name_ratio(middle):
            says += f": {middle:.3g} ({low:.3g} to {high:.3g}) is what {cause} give"
    off = np.abs(np.log(np.abs(each)))
    pairs = np.flatnonzero((off > math.log(limit)) | (opposed & (each < 0))) if wrong or opposed else np.arange(0)
    ids, first = np.unique(pair_ids[pairs].ravel(), return_index=True)
    return _check(
        "units", wrong or opposed, says, -factor if opposed else factor, limit, "factor",
        **offending(ids, np.arange(len(ids)), np.repeat(off[pairs], 2)[first]),
    )  # fmt: skip


def forces(ids: np.ndarray, finite: np.ndarray, largest: np.ndarray, p99: float, limit: float) -> Check:
    """Check the 99th percentile of the forces on atoms, eV/Å, and that all are finite."""
    above = np.flatnonzero(~finite | (largest > limit))
    n_infinite = int((~finite).sum())
    says = f"99 % of the forces are below {p99:.3g} eV/Å; {_structures(n_infinite)} with forces that are not finite"
    badness = np.where(finite, largest, np.inf)[above]
    failed = n_infinite > 0 or not p99 <= limit
    rows = above if failed else above[:0]
    named = offending(ids, rows, badness[: len(rows)])
    return _check("forces", failed, says, p99, limit, "eV/Å", hard=n_infinite > 0, **named)


def largest_force(ids: np.ndarray, largest: np.ndarray, limit: float) -> Check:
    """Check the largest force on an atom of each structure, eV/Å; NaN is left to `forces`."""
    rows = np.flatnonzero(largest > limit)
    most = float(np.nanmax(largest)) if np.isfinite(largest).any() else 0.0
    says = f"{_structures(len(rows))} with a force above {limit:g} eV/Å; the largest is {most:.3g} eV/Å"
    return _check("largest_force", len(rows) > 0, says, most, limit, "eV/Å", **offending(ids, rows, largest[rows]))


def net_force(ids: np.ndarray, net: np.ndarray, limit: float) -> Check:
    """Check that the forces of a structure sum to nothing, eV/Å an atom; a potential that sees no place has no push."""
    rows = np.flatnonzero(net > limit)
    most = float(np.nanmax(net)) if np.isfinite(net).any() else 0.0
    says = f"{_structures(len(rows))} with a net force above {limit:g} eV/Å an atom; the largest is {most:.2g}"
    return _check("net_force", len(rows) > 0, says, most, limit, "eV/Å an atom", **offending(ids, rows, net[rows]))


def zero_forces(ids: np.ndarray, n_atoms: np.ndarray, zero: np.ndarray, limit: float) -> Check:
    """Check for structures of which all forces are exactly 0 where no symmetry asks for it."""
    rows = np.flatnonzero(zero)
    share = len(rows) / len(ids)
    says = f"{_structures(len(rows))} with no force at all and no symmetry that asks for it"
    return _check("zero_forces", share > limit, says, share, limit, "share", **offending(ids, rows, n_atoms[rows]))


def stress(ids: np.ndarray, largest: np.ndarray, periodic: np.ndarray, limit: float) -> Check:
    """Check the largest component of the stress of structures periodic along all axes.

    Parameters
    ----------
    ids, periodic
        Shape (structure,).
    largest
        Largest absolute component, eV/Å^3; NaN where there is no stress, infinite if a component is not finite.
    limit
        GPa.
    """
    if not periodic.any():
        return skipped("stress", "no structure is periodic along all axes")
    known = periodic & ~np.isnan(largest)
    if not known.any():
        return skipped("stress", f"none of the {_structures(int(periodic.sum()))} periodic along all axes has a stress")
    finite = np.isfinite(largest)
    rows = np.flatnonzero(known & ~(largest <= limit * GPA))
    most = float(largest[known & finite].max()) / GPA if (known & finite).any() else 0.0
    n_infinite, n_missing = int((known & ~finite).sum()), int((periodic & ~known).sum())
    says = (
        f"{n_infinite:,} of {_structures(int(known.sum()))} periodic along all axes have a stress that is not finite, "
        f"{len(rows) - n_infinite:,} one above {limit:g} GPa; the largest is {most:.3g} GPa"
    )
    if n_missing:
        says += f"; {n_missing:,} more have none"
    named = offending(ids, rows, largest[rows])
    return _check("stress", len(rows) > 0, says, most, limit, "GPa", hard=n_infinite > 0, **named)


def label_success(n_structures: int, failures: Mapping[str, int], limit: float) -> Check:
    """Check the share of the structures given to the teacher that are in the dataset."""
    n_failed = sum(failures.values())
    share = n_structures / (n_structures + n_failed)
    why = ", ".join(f"{count:,} {reason}" for reason, count in sorted(failures.items()))
    says = f"{n_structures:,} of {n_structures + n_failed:,} structures labelled{f'; failed: {why}' if why else ''}"
    return _check("label_success", share < limit, says, share, limit, "share")


def label_checks(ids: np.ndarray, ok: np.ndarray, limit: float) -> Check:
    """Check the share of structures whose labels passed their checks."""
    rows = np.flatnonzero(~ok)
    share = 1 - len(rows) / len(ids)
    says = f"the labels of {_structures(len(rows))} have a status other than ok"
    named = offending(ids, rows, np.ones(len(rows)))
    return _check("label_checks", share < limit, says, share, limit, "share", **named)


# --- what the set holds -----------------------------------------------------------------------------


def duplicates(
    ids: np.ndarray, composition: np.ndarray, state: np.ndarray, fingerprint: np.ndarray, limits: DuplicateLimits
) -> Check:
    """Check for structures that are stored twice, or repeat another in all but motion, order of atoms and origin.

    Parameters
    ----------
    ids
        Shape (structure,).
    composition, state
        Numbers, shape (structure,); only structures equal in both (state: charge, spin) can be the same.
    fingerprint
        Shape (structure, number); NaN where there is none.
    limits
        Thresholds.
    """
    order = order_by_hash(0, "quality", ids)
    twice = np.zeros(len(ids), dtype=bool)
    twice[order[1:]] = ids[order[1:]] == ids[order[:-1]]
    once = order[~twice[order] & np.isfinite(fingerprint[order]).all(axis=1)]
    kind = np.unique(np.stack([composition, state], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    near = np.zeros(len(ids), dtype=bool)
    near[once[_repeats(kind[once], fingerprint[once], limits.tolerance)]] = True
    rows = np.flatnonzero(twice | near)
    share = len(rows) / len(ids)
    says = f"{share:.2%} repeat another structure: {int(twice.sum()):,} by id, {int(near.sum()):,} by their distances"
    return _check(
        "duplicates", share > limits.share, says, share, limits.share, "share",
        **offending(ids, rows, twice[rows].astype(float)),
    )  # fmt: skip


def _repeats(kind: np.ndarray, fingerprint: np.ndarray, tolerance: float) -> np.ndarray:
    """Return the rows that lie within the tolerance, in every number, of an earlier row of their kind; sorted."""
    order = np.lexsort((fingerprint[:, 0], kind))
    kinds, points = kind[order], fingerprint[order]
    later: list[np.ndarray] = []
    rows = np.arange(len(order) - 1)
    shift = 1
    while len(rows):
        # Neighbours in the sorted first number, ever farther, as long as any can be near.
        rows = rows[rows + shift < len(order)]
        close = points[rows + shift, 0] - points[rows, 0] <= tolerance
        rows = rows[close & (kinds[rows + shift] == kinds[rows])]
        same = rows[(np.abs(points[rows + shift] - points[rows]) <= tolerance).all(axis=1)]
        later.append(np.maximum(order[same], order[same + shift]))
        shift += 1
    return np.unique(np.concatenate([*later, np.zeros(0, dtype=np.int64)]))


def elements(counts: Mapping[str, int], n_structures: int, requested: Sequence[str], limit: float) -> Check:
    """Check that each requested element is there, and that the rarest is in enough structures.

    Parameters
    ----------
    counts
        In how many structures each element occurs.
    n_structures
        Of the dataset.
    requested
        Symbols that must occur; those that do are judged without it.
    limit
        Least share of structures.
    """
    missing = [symbol for symbol in requested if not counts.get(symbol)]
    rarest = min([*counts, *missing], key=lambda symbol: (counts.get(symbol, 0), symbol))
    share = counts.get(rarest, 0) / n_structures
    says = f"the rarest element, {rarest}, is in {share:.1%} of the structures"
    if missing:
        says = f"requested and missing: {', '.join(missing)}; " + says
    return _check("elements", bool(missing) or share < limit, says, share, limit, "share", hard=bool(missing))


def composition_entropy(composition: np.ndarray, limit: float) -> Check:
    """Check how evenly the compositions that occur are filled: Shannon entropy over its largest value."""
    counts = np.bincount(composition)
    shares = counts[counts > 0] / len(composition)
    if len(shares) == 1:
        return skipped("composition_entropy", "all structures have one composition")
    value = float(-(shares * np.log(shares)).sum() / np.log(len(shares)))
    says = f"{len(shares):,} compositions; the most frequent has {shares.max():.1%} of the structures"
    return _check("composition_entropy", value < limit, says, value, limit, "1")


def sizes(ids: np.ndarray, n_atoms: np.ndarray, limits: SizeLimits) -> Check:
    """Check the numbers of atoms: least, largest, and the share of the most frequent."""
    beyond = np.maximum(limits.min_atoms - n_atoms, n_atoms - limits.max_atoms)
    rows = np.flatnonzero(beyond > 0)
    values, counts = np.unique(n_atoms, return_counts=True)
    share = float(counts.max() / len(n_atoms))
    says = (
        f"{values[0]:,} to {values[-1]:,} atoms, {_structures(len(rows))} outside {limits.min_atoms:,} to "
        f"{limits.max_atoms:,}; {share:.1%} have {values[counts.argmax()]:,}"
    )
    failed = len(rows) > 0 or (limits.share is not None and share > limits.share)
    return _check("sizes", failed, says, share, limits.share, "share", **offending(ids, rows, beyond[rows]))


def type_balance(counts: Mapping[str, int], requested: Sequence[str], limit: float) -> Check:
    """Check the share of the rarest system type, over the share it had if all were equally frequent."""
    full = {**dict.fromkeys(requested, 0), **counts}
    if len(full) == 1:
        return skipped("type_balance", "all structures have one system type")
    rarest = min(full, key=lambda name: (full[name], name))
    value = full[rarest] * len(full) / sum(full.values())
    says = ", ".join(f"{count:,} {name}" for name, count in sorted(full.items()))
    return _check("type_balance", value < limit, f"{says}; {rarest} is the rarest", value, limit, "of uniform")


def periodic_share(periodic: np.ndarray, limits: Shares) -> Check:
    """Check the share of structures that are periodic along all axes."""
    share = float(periodic.mean())
    failed = not limits.least <= share <= limits.most
    says = f"{share:.1%} are periodic along all axes; to be {limits.least:.1%} to {limits.most:.1%}"
    return _check("periodic_share", failed, says, share, limits.least if share < limits.least else limits.most, "share")


def diversity(ids: np.ndarray, features: np.ndarray, limit: float) -> Check:
    """Check the Vendi score (DOI 10.48550/arXiv.2210.02410): the effective number of different structures.

    It is the exponential of the entropy of the eigenvalues of the kernel matrix, here of a Gaussian kernel half as
    wide as the root mean square distance of the structures from their mean: 1 if all are alike, 2 for two clumps,
    about 5 for a normal distribution along a line.

    Parameters
    ----------
    ids
        Shape (sampled,).
    features
        Shape (sampled, feature), finite.
    limit
        Least score.
    """
    if len(ids) < FEW:
        return skipped("diversity", f"only {_structures(len(ids))} with features; {FEW} are needed")
    points = features.astype(np.float64)[np.argsort(ids.view("S16"), kind="stable")]  # sums in an order of their own
    points -= points.mean(axis=0)
    squares = (points**2).sum(axis=1)
    spread = squares.mean()
    distances = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0)
    kernel = np.exp(-distances / (2 * BANDWIDTH**2 * spread)) if spread > 0 else np.ones_like(distances)
    weights = np.linalg.eigvalsh(kernel / len(points))
    weights = weights[weights > 1e-15]
    value = float(np.exp(-(weights * np.log(weights)).sum()))
    says = f"{value:.1f} effectively different structures among {len(points):,}"
    return _check("diversity", value < limit, says, value, limit, "structures")
