"""Check structures and their labels: functions of flat arrays, one row per structure, that each return a `Check`."""

from __future__ import annotations

import math

import numpy as np

from daskpipe.core.constants import GPA
from daskpipe.core.robust import estimate_deviation, fit_least_absolute
from daskpipe.core.seeds import order_by_hash
from daskpipe.store.quality.check import Check, format_count, make_check, name_offenders, skip_check
from daskpipe.store.quality.limits import CellLimits, EnergyLimits
from daskpipe.store.quality.unit_checks import TIGHT, name_ratio, slope_range

SAMPLE = 1024
"""Most structures from which the diversity is computed, chosen by the hashes of their ids."""

FIT_SAMPLE = 20_000
"""Most structures to which the energies of the elements are fitted, chosen likewise."""

FEW = 10
"""Fewest structures for which outliers and diversity mean anything."""

MIN_PAIRS = 12
"""Fewest pairs of neighbouring frames for which energies are compared with forces."""

BOXED = 12
"""Number of atoms up to which a cell may be a box around a molecule or an atom."""


# --- geometry ---------------------------------------------------------------------------------------


def check_overlap(ids: np.ndarray, closest: np.ndarray, limit: float) -> Check:
    """Check the closest pair of atoms of each structure, in sums of covalent radii; NaN where it was not measured."""
    measured = ~np.isnan(closest)
    rows = np.flatnonzero(measured & (closest < limit))
    least = float(closest[measured].min()) if measured.any() else math.inf
    says = (
        f"{format_count(len(rows))} with two atoms closer than {limit:g} of their covalent radii; closest {least:.3f}"
    )
    if not measured.all():
        says += f"; {format_count(int((~measured).sum()))} could not be looked at, see cell"
    return make_check(
        "overlap", len(rows) > 0, says, least, limit, "covalent radii", **name_offenders(ids, rows, -closest[rows])
    )


def check_isolated_atoms(ids: np.ndarray, n_atoms: np.ndarray, loneliest: np.ndarray, limit: float) -> Check:
    """Check for atoms far from all others of their structure, in sums of covalent radii; single atoms pass."""
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


def check_cell(
    ids: np.ndarray,
    n_atoms: np.ndarray,
    finite: np.ndarray,
    fullness: np.ndarray,
    left_handed: np.ndarray,
    volume: np.ndarray,
    limit: CellLimits,
) -> Check:
    """Check cells as `daskpipe.store.quality.measures.measure_cells` measures them; arrays of shape (structure,)."""
    faults = {
        "not finite (cell or positions)": ~finite,
        "spanning nothing": finite & (fullness < 1e-6),
        "too skew": finite & (fullness >= 1e-6) & (fullness < limit.min_fullness),
        "left-handed": left_handed & (not limit.left_handed),
        "too dense": finite & (volume < limit.min_volume),
        "too empty": volume * n_atoms > limit.max_volume * np.maximum(n_atoms, BOXED),
    }
    # Faults are listed from the worst to the least.
    weights = 2.0 ** np.arange(len(faults), 0, -1)
    badness = weights @ np.array(list(faults.values()))
    rows = np.flatnonzero(badness)
    listed = ", ".join(f"{fault.sum():,} {name}" for name, fault in faults.items() if fault.any())
    volumes = volume[np.isfinite(volume)]
    span = f"; volumes {volumes.min():.3g} to {volumes.max():.3g} Å^3 an atom" if len(volumes) else ""
    says = f"{format_count(len(rows))} with an implausible cell{f' ({listed})' if listed else ''}{span}"
    return make_check(
        "cell", len(rows) > 0, says, len(rows), 0.0, "structures", **name_offenders(ids, rows, badness[rows])
    )


# --- labels -----------------------------------------------------------------------------------------


def check_energy(
    ids: np.ndarray,
    energy: np.ndarray,
    counts: np.ndarray,
    composition: np.ndarray,
    type_number: np.ndarray,
    limit: EnergyLimits,
    exempt: np.ndarray | None = None,
) -> Check:
    """Check for energies that are not finite, or far from those of similar structures.

    A least absolute deviations fit removes the contributions of the elements (and of each system type) from the energy
    per atom. The rest is compared with its median over the same composition and system type, or over the system type
    alone where the composition has too few members.

    Parameters
    ----------
    ids, energy
        Shape (structure,); eV.
    counts
        Atoms of each element, shape (structure, element).
    composition, type_number
        Numbers of the composition and of the system type, shape (structure,).
    limit
        Limits of an outlier, and of the share of outliers.
    exempt
        Structures that are not compared, such as isolated atoms and dimer curves, shape (structure,), bool.
    """
    n_atoms = counts.sum(axis=1)
    finite = np.isfinite(energy) & (n_atoms > 0)
    badness = np.where(finite, 0.0, np.inf)
    farthest = 0.0
    known = np.flatnonzero(finite & ~(np.zeros(len(ids), dtype=np.bool_) if exempt is None else exempt))
    if len(known) >= FEW:
        rest = _fit_residuals(ids[known], energy[known], counts[known], type_number[known])
        both = np.stack([composition[known], type_number[known]], axis=1)
        kind = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
        compared_alone = np.bincount(kind)[kind] >= limit.members
        groups = np.where(compared_alone, kind, -1 - type_number[known])
        order = np.argsort(groups, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
            if len(rows) < limit.members:
                continue
            distance = np.abs(rest[rows] - np.median(rest[rows]))
            least = limit.min_deviation if groups[rows[0]] >= 0 else limit.min_deviation_of_types
            deviation = estimate_deviation(rest[rows], least)
            farthest = max(farthest, float(distance.max()) / deviation)
            badness[known[rows]] = np.where(distance > limit.deviations * deviation, distance, 0.0)
    rows = np.flatnonzero(badness)
    n_infinite, share = int((~finite).sum()), len(rows) / len(ids)
    says = (
        f"{format_count(n_infinite)} with an energy that is not finite, {len(rows) - n_infinite:,} outliers beyond "
        f"{limit.deviations:g} deviations; the farthest is {farthest:.1f} deviations off"
    )
    return make_check(
        "energy", n_infinite > 0 or share > limit.share, says, share, limit.share, "share", hard=n_infinite > 0,
        **name_offenders(ids, rows, badness[rows]),
    )  # fmt: skip


def _fit_residuals(ids: np.ndarray, energies: np.ndarray, counts: np.ndarray, system_type: np.ndarray) -> np.ndarray:
    """Return the energy per atom without the contributions of elements and system types, eV, shape (structure,)."""
    n_atoms = counts.sum(axis=1)
    per_atom = energies / n_atoms
    present = counts.any(axis=0)
    fractions = counts[:, present] / n_atoms[:, None]
    types = np.unique(system_type)
    sample = np.sort(order_by_hash(0, "quality", ids)[:FIT_SAMPLE])
    design = np.concatenate([fractions[sample], system_type[sample, None] == types[1:]], axis=1)
    solution = fit_least_absolute(design, per_atom[sample])
    of_elements, of_types = solution[: present.sum()], np.append(0.0, solution[present.sum() :])
    return per_atom - fractions @ of_elements - of_types[np.searchsorted(types, system_type)]


def check_units(pair_ids: np.ndarray, pair_energy: np.ndarray, pair_work: np.ndarray, limit: float) -> Check:
    """Check that energies and forces fit each other: between neighbouring frames the energy changes by the work.

    Parameters
    ----------
    pair_ids
        Ids of the frames of each pair, shape (pair, 2).
    pair_energy, pair_work
        From `daskpipe.store.quality.measures.compare_energy_and_work`, eV; shape (pair,).
    limit
        Largest factor between their medians. Where the pairs determine the factor precisely, the limit is
        `daskpipe.store.quality.unit_checks.TIGHT`.
    """
    used = (pair_energy != 0) & (pair_work != 0)
    pair_ids, difference, work = pair_ids[used], pair_energy[used], pair_work[used]
    if len(work) < MIN_PAIRS:
        return skip_check(
            "units",
            f"only {len(work)} pairs of neighbouring frames of one seed; {MIN_PAIRS} are needed to hold energies "
            "against forces",
        )
    each = difference / work
    factor = float(np.median(np.abs(difference)) / np.median(np.abs(work)))
    # The median weighted by the work is the slope of a least absolute deviations fit through the origin.
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


def check_forces(
    ids: np.ndarray, forces_finite: np.ndarray, largest_force: np.ndarray, force_p99: float, limit: float
) -> Check:
    """Check the 99th percentile of the forces on atoms, eV/Å, and that all are finite."""
    finite, p99 = forces_finite, float(force_p99)
    above = np.flatnonzero(~finite | (largest_force > limit))
    n_infinite = int((~finite).sum())
    says = f"99 % of the forces are below {p99:.3g} eV/Å; {format_count(n_infinite)} with forces that are not finite"
    badness = np.where(finite, largest_force, np.inf)[above]
    failed = n_infinite > 0 or not p99 <= limit
    rows = above if failed else above[:0]
    named = name_offenders(ids, rows, badness[: len(rows)])
    return make_check("forces", failed, says, p99, limit, "eV/Å", hard=n_infinite > 0, **named)


def check_largest_force(ids: np.ndarray, largest_force: np.ndarray, limit: float) -> Check:
    """Check the largest force on an atom of each structure, eV/Å; `check_forces` reports NaN."""
    rows = np.flatnonzero(largest_force > limit)
    most = float(np.nanmax(largest_force)) if np.isfinite(largest_force).any() else 0.0
    says = f"{format_count(len(rows))} with a force above {limit:g} eV/Å; the largest is {most:.3g} eV/Å"
    named = name_offenders(ids, rows, largest_force[rows])
    return make_check("largest_force", len(rows) > 0, says, most, limit, "eV/Å", **named)


def check_net_force(ids: np.ndarray, net_force: np.ndarray, limit: float) -> Check:
    """Check that the forces of each structure sum to 0, eV/Å per atom: an energy does not depend on the position."""
    rows = np.flatnonzero(net_force > limit)
    most = float(np.nanmax(net_force)) if np.isfinite(net_force).any() else 0.0
    says = f"{format_count(len(rows))} with a net force above {limit:g} eV/Å an atom; the largest is {most:.2g}"
    named = name_offenders(ids, rows, net_force[rows])
    return make_check("net_force", len(rows) > 0, says, most, limit, "eV/Å an atom", **named)


def check_zero_forces(ids: np.ndarray, n_atoms: np.ndarray, zero_forces: np.ndarray, limit: float) -> Check:
    """Check for structures whose forces are all exactly 0 although no symmetry requires it."""
    rows = np.flatnonzero(zero_forces)
    share = len(rows) / len(ids)
    says = f"{format_count(len(rows))} with no force at all and no symmetry that asks for it"
    return make_check(
        "zero_forces", share > limit, says, share, limit, "share", **name_offenders(ids, rows, n_atoms[rows])
    )


def check_stress(ids: np.ndarray, largest_stress: np.ndarray, periodic: np.ndarray, limit: float) -> Check:
    """Check the largest component of the stress of structures that are periodic along all axes.

    Parameters
    ----------
    ids, periodic
        Shape (structure,).
    largest_stress
        Largest absolute component, eV/Å^3; NaN where there is no stress, infinite if a component is not finite.
    limit
        GPa.
    """
    if not periodic.any():
        return skip_check("stress", "no structure is periodic along all axes")
    known = periodic & ~np.isnan(largest_stress)
    if not known.any():
        return skip_check(
            "stress", f"none of the {format_count(int(periodic.sum()))} periodic along all axes has a stress"
        )
    finite = np.isfinite(largest_stress)
    rows = np.flatnonzero(known & ~(largest_stress <= limit * GPA))
    most = float(largest_stress[known & finite].max()) / GPA if (known & finite).any() else 0.0
    n_infinite, n_missing = int((known & ~finite).sum()), int((periodic & ~known).sum())
    says = (
        f"{n_infinite:,} of {format_count(int(known.sum()))} periodic along all axes have a stress that is "
        f"not finite, {len(rows) - n_infinite:,} one above {limit:g} GPa; the largest is {most:.3g} GPa"
    )
    if n_missing:
        says += f"; {n_missing:,} more have none"
    named = name_offenders(ids, rows, largest_stress[rows])
    return make_check("stress", len(rows) > 0, says, most, limit, "GPa", hard=n_infinite > 0, **named)
