"""The checks of the quality gate: plain functions of flat arrays, a row a structure, that each give a `Check`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from daskpipe.core.constants import GPA
from daskpipe.core.seeds import order_by_hash
from daskpipe.store.quality.check import Check, format_count, make_check, name_offenders, skip_check
from daskpipe.store.quality.settings import CellLimits, EnergyLimits
from daskpipe.store.quality.unit_checks import TIGHT, name_ratio, slope_range

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


# --- geometry ---------------------------------------------------------------------------------------


def check_overlap(ids: np.ndarray, closest: np.ndarray, limit: float) -> Check:
    """Check the closest pair of each structure, in sums of covalent radii; NaN where none was looked for."""
    looked = ~np.isnan(closest)
    rows = np.flatnonzero(looked & (closest < limit))
    least = float(closest[looked].min()) if looked.any() else math.inf
    says = (
        f"{format_count(len(rows))} with two atoms closer than {limit:g} of their covalent radii; closest {least:.3f}"
    )
    if not looked.all():
        says += f"; {format_count(int((~looked).sum()))} could not be looked at, see cell"
    return make_check(
        "overlap", len(rows) > 0, says, least, limit, "covalent radii", **name_offenders(ids, rows, -closest[rows])
    )


def check_isolated_atoms(ids: np.ndarray, n_atoms: np.ndarray, loneliest: np.ndarray, limit: float) -> Check:
    """Check for atoms far from all others of their structure, in sums of covalent radii; single atoms may be alone."""
    judged = ~np.isnan(loneliest) & (n_atoms > 1)
    rows = np.flatnonzero(judged & (loneliest > limit))
    farthest = float(loneliest[judged].max()) if judged.any() else 0.0
    says = f"{format_count(len(rows))} with an atom farther than {limit:g} sums of covalent radii from all others"
    if math.isfinite(farthest):
        says += f"; farthest {farthest:.3f}"
    return make_check(
        "isolated_atoms", len(rows) > 0, says, farthest, limit, "covalent radii",
        **name_offenders(ids, rows, loneliest[rows]),
    )  # fmt: skip


def check_cell(ids: np.ndarray, cells: Mapping[str, np.ndarray], limits: CellLimits) -> Check:
    """Check cells as `daskpipe.store.quality.measures.measure_cells` measured them."""
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
    says = f"{format_count(len(rows))} with an implausible cell{f' ({told})' if told else ''}{span}"
    return make_check(
        "cell", len(rows) > 0, says, len(rows), 0.0, "structures", **name_offenders(ids, rows, badness[rows])
    )


# --- labels -----------------------------------------------------------------------------------------


def check_energy(
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
        rest = _fit_residuals(ids[known], energies[known], counts[known], system_type[known])
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
        f"{format_count(n_infinite)} with an energy that is not finite, {len(rows) - n_infinite:,} outliers beyond "
        f"{limits.deviations:g} deviations; the farthest is {farthest:.1f} deviations off"
    )
    return make_check(
        "energy", n_infinite > 0 or share > limits.share, says, share, limits.share, "share", hard=n_infinite > 0,
        **name_offenders(ids, rows, badness[rows]),
    )  # fmt: skip


def _fit_residuals(ids: np.ndarray, energies: np.ndarray, counts: np.ndarray, system_type: np.ndarray) -> np.ndarray:
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


def check_units(pair_ids: np.ndarray, difference: np.ndarray, work: np.ndarray, limit: float) -> Check:
    """Check that energies and forces fit each other: between neighbouring frames the energy changes by the work.

    Parameters
    ----------
    pair_ids
        Ids of the frames of each pair, shape (pair, 2).
    difference, work
        As `daskpipe.store.quality.measures.compare_energy_and_work` gives them, eV; shape (pair,).
    limit
        Largest factor between their medians. Where the pairs tell the factor precisely, it is `quality_units.TIGHT`.
    """
    used = (difference != 0) & (work != 0)
    pair_ids, difference, work = pair_ids[used], difference[used], work[used]
    if len(work) < MIN_PAIRS:
        return skip_check(
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
    return make_check(
        "units", wrong or opposed, says, -factor if opposed else factor, limit, "factor",
        **name_offenders(ids, np.arange(len(ids)), np.repeat(off[pairs], 2)[first]),
    )  # fmt: skip


def check_forces(ids: np.ndarray, finite: np.ndarray, largest: np.ndarray, p99: float, limit: float) -> Check:
    """Check the 99th percentile of the forces on atoms, eV/Å, and that all are finite."""
    above = np.flatnonzero(~finite | (largest > limit))
    n_infinite = int((~finite).sum())
    says = f"99 % of the forces are below {p99:.3g} eV/Å; {format_count(n_infinite)} with forces that are not finite"
    badness = np.where(finite, largest, np.inf)[above]
    failed = n_infinite > 0 or not p99 <= limit
    rows = above if failed else above[:0]
    named = name_offenders(ids, rows, badness[: len(rows)])
    return make_check("forces", failed, says, p99, limit, "eV/Å", hard=n_infinite > 0, **named)


def check_largest_force(ids: np.ndarray, largest: np.ndarray, limit: float) -> Check:
    """Check the largest force on an atom of each structure, eV/Å; NaN is left to `check_forces`."""
    rows = np.flatnonzero(largest > limit)
    most = float(np.nanmax(largest)) if np.isfinite(largest).any() else 0.0
    says = f"{format_count(len(rows))} with a force above {limit:g} eV/Å; the largest is {most:.3g} eV/Å"
    return make_check(
        "largest_force", len(rows) > 0, says, most, limit, "eV/Å", **name_offenders(ids, rows, largest[rows])
    )


def check_net_force(ids: np.ndarray, net: np.ndarray, limit: float) -> Check:
    """Check that the forces of a structure sum to nothing, eV/Å an atom; a potential that sees no place has no push."""
    rows = np.flatnonzero(net > limit)
    most = float(np.nanmax(net)) if np.isfinite(net).any() else 0.0
    says = f"{format_count(len(rows))} with a net force above {limit:g} eV/Å an atom; the largest is {most:.2g}"
    return make_check(
        "net_force", len(rows) > 0, says, most, limit, "eV/Å an atom", **name_offenders(ids, rows, net[rows])
    )


def check_zero_forces(ids: np.ndarray, n_atoms: np.ndarray, zero: np.ndarray, limit: float) -> Check:
    """Check for structures of which all forces are exactly 0 where no symmetry asks for it."""
    rows = np.flatnonzero(zero)
    share = len(rows) / len(ids)
    says = f"{format_count(len(rows))} with no force at all and no symmetry that asks for it"
    return make_check(
        "zero_forces", share > limit, says, share, limit, "share", **name_offenders(ids, rows, n_atoms[rows])
    )


def check_stress(ids: np.ndarray, largest: np.ndarray, periodic: np.ndarray, limit: float) -> Check:
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
        return skip_check("stress", "no structure is periodic along all axes")
    known = periodic & ~np.isnan(largest)
    if not known.any():
        return skip_check(
            "stress", f"none of the {format_count(int(periodic.sum()))} periodic along all axes has a stress"
        )
    finite = np.isfinite(largest)
    rows = np.flatnonzero(known & ~(largest <= limit * GPA))
    most = float(largest[known & finite].max()) / GPA if (known & finite).any() else 0.0
    n_infinite, n_missing = int((known & ~finite).sum()), int((periodic & ~known).sum())
    says = (
        f"{n_infinite:,} of {format_count(int(known.sum()))} periodic along all axes have a stress that is "
        f"not finite, {len(rows) - n_infinite:,} one above {limit:g} GPa; the largest is {most:.3g} GPa"
    )
    if n_missing:
        says += f"; {n_missing:,} more have none"
    named = name_offenders(ids, rows, largest[rows])
    return make_check("stress", len(rows) > 0, says, most, limit, "GPa", hard=n_infinite > 0, **named)


# --- what the set holds -----------------------------------------------------------------------------
