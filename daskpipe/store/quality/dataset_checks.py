"""Check a dataset as a whole: duplicates, elements, compositions, sizes, types, diversity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from daskpipe.core.seeds import order_by_hash
from daskpipe.core.vendi import compute_vendi_score
from daskpipe.store.quality.check import Check, format_count, make_check, name_offenders, skip_check
from daskpipe.store.quality.limits import DuplicateLimits, Shares, SizeLimits
from daskpipe.store.quality.structure_checks import FEW


def check_label_success(n_structures: int, failures: Mapping[str, int], limit: float) -> Check:
    """Check the share of the structures given to the teacher that it labelled."""
    n_failed = sum(failures.values())
    share = n_structures / (n_structures + n_failed)
    why = ", ".join(f"{count:,} {reason}" for reason, count in sorted(failures.items()))
    says = f"{n_structures:,} of {n_structures + n_failed:,} structures labelled{f'; failed: {why}' if why else ''}"
    return make_check("label_success", share < limit, says, share, limit, "share")


def check_label_status(ids: np.ndarray, labels_ok: np.ndarray, limit: float) -> Check:
    """Check the share of structures whose labels passed their checks."""
    rows = np.flatnonzero(~labels_ok)
    share = 1 - len(rows) / len(ids)
    says = f"the labels of {format_count(len(rows))} have a status other than ok"
    named = name_offenders(ids, rows, np.ones(len(rows)))
    return make_check("label_checks", share < limit, says, share, limit, "share", **named)


def check_finite_differences(ids: np.ndarray, differences: np.ndarray, limit: float) -> Check:
    """Check that forces and stresses agree with energies of displaced structures, where that was tried."""
    checked = differences != "not_checked"
    wrong = np.flatnonzero(checked & (differences != "ok"))
    n_checked = int(checked.sum())
    if not n_checked:
        return skip_check("finite_differences", "no structure was checked")
    share = len(wrong) / n_checked
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(differences[wrong].tolist()).items()))
    says = f"{len(wrong)} of {format_count(n_checked)} that were checked disagree{f': {kinds}' if kinds else ''}"
    named = name_offenders(ids, wrong, np.ones(len(wrong)))
    return make_check("finite_differences", share > limit, says, share, limit, "share", **named)


def check_duplicates(
    ids: np.ndarray, composition: np.ndarray, state: np.ndarray, fingerprint: np.ndarray, limit: DuplicateLimits
) -> Check:
    """Check for structures that are stored twice, or repeat another up to motion, order of atoms and choice of origin.

    Parameters
    ----------
    ids
        Shape (structure,).
    composition, state
        Numbers, shape (structure,); only structures that are equal in both (state: charge, spin) can be the same.
    fingerprint
        Shape (structure, number); NaN where there is none.
    limit
        Largest share, and tolerance of the fingerprint.
    """
    order = order_by_hash(0, "quality", ids)
    twice = np.zeros(len(ids), dtype=bool)
    twice[order[1:]] = ids[order[1:]] == ids[order[:-1]]
    once = order[~twice[order] & np.isfinite(fingerprint[order]).all(axis=1)]
    kind = np.unique(np.stack([composition, state], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    near = np.zeros(len(ids), dtype=bool)
    near[once[_find_repeats(kind[once], fingerprint[once], limit.tolerance)]] = True
    rows = np.flatnonzero(twice | near)
    share = len(rows) / len(ids)
    says = f"{share:.2%} repeat another structure: {int(twice.sum()):,} by id, {int(near.sum()):,} by their distances"
    return make_check(
        "duplicates", share > limit.share, says, share, limit.share, "share",
        **name_offenders(ids, rows, twice[rows].astype(float)),
    )  # fmt: skip


def _find_repeats(kind: np.ndarray, fingerprint: np.ndarray, tolerance: float) -> np.ndarray:
    """Return the rows that are within the tolerance, in every number, of an earlier row of their kind; sorted."""
    order = np.lexsort((fingerprint[:, 0], kind))
    kinds, points = kind[order], fingerprint[order]
    later: list[np.ndarray] = []
    rows = np.arange(len(order) - 1)
    shift = 1
    while len(rows):
        # Compare with neighbours in the sorted first number, farther each time, as long as any can be near.
        rows = rows[rows + shift < len(order)]
        close = points[rows + shift, 0] - points[rows, 0] <= tolerance
        rows = rows[close & (kinds[rows + shift] == kinds[rows])]
        same = rows[(np.abs(points[rows + shift] - points[rows]) <= tolerance).all(axis=1)]
        later.append(np.maximum(order[same], order[same + shift]))
        shift += 1
    return np.unique(np.concatenate([*later, np.zeros(0, dtype=np.int64)]))


def check_elements(
    structures_of_element: Mapping[str, int], n_structures: int, requested_elements: Sequence[str], limit: float
) -> Check:
    """Check that each requested element occurs, and that the rarest one is in enough structures.

    Parameters
    ----------
    structures_of_element
        Number of structures that contain each element, by symbol.
    n_structures
        Number of structures in the dataset.
    requested_elements
        Symbols that must occur; elements that occur are judged without being requested.
    limit
        Smallest share of structures.
    """
    counts = structures_of_element
    missing = [symbol for symbol in requested_elements if not counts.get(symbol)]
    rarest = min([*counts, *missing], key=lambda symbol: (counts.get(symbol, 0), symbol))
    share = counts.get(rarest, 0) / n_structures
    says = f"the rarest element, {rarest}, is in {share:.1%} of the structures"
    if missing:
        says = f"requested and missing: {', '.join(missing)}; " + says
    return make_check("elements", bool(missing) or share < limit, says, share, limit, "share", hard=bool(missing))


def check_composition_entropy(composition: np.ndarray, limit: float) -> Check:
    """Check how evenly structures spread over their compositions: Shannon entropy over its largest value."""
    counts = np.bincount(composition)
    shares = counts[counts > 0] / len(composition)
    if len(shares) == 1:
        return skip_check("composition_entropy", "all structures have one composition")
    value = float(-(shares * np.log(shares)).sum() / np.log(len(shares)))
    says = f"{len(shares):,} compositions; the most frequent has {shares.max():.1%} of the structures"
    return make_check("composition_entropy", value < limit, says, value, limit, "1")


def check_sizes(ids: np.ndarray, n_atoms: np.ndarray, limit: SizeLimits) -> Check:
    """Check the numbers of atoms: smallest, largest, and the share of the most frequent."""
    beyond = np.maximum(limit.min_atoms - n_atoms, n_atoms - limit.max_atoms)
    rows = np.flatnonzero(beyond > 0)
    values, counts = np.unique(n_atoms, return_counts=True)
    share = float(counts.max() / len(n_atoms))
    says = (
        f"{values[0]:,} to {values[-1]:,} atoms, {format_count(len(rows))} outside {limit.min_atoms:,} to "
        f"{limit.max_atoms:,}; {share:.1%} have {values[counts.argmax()]:,}"
    )
    failed = len(rows) > 0 or (limit.share is not None and share > limit.share)
    return make_check("sizes", failed, says, share, limit.share, "share", **name_offenders(ids, rows, beyond[rows]))


def check_type_balance(structures_of_type: Mapping[str, int], requested_types: Sequence[str], limit: float) -> Check:
    """Check the share of the rarest system type, over its share if all types were equally frequent."""
    full = {**dict.fromkeys(requested_types, 0), **structures_of_type}
    if len(full) == 1:
        return skip_check("type_balance", "all structures have one system type")
    rarest = min(full, key=lambda name: (full[name], name))
    value = full[rarest] * len(full) / sum(full.values())
    says = ", ".join(f"{count:,} {name}" for name, count in sorted(full.items()))
    return make_check("type_balance", value < limit, f"{says}; {rarest} is the rarest", value, limit, "of uniform")


def check_periodic_share(periodic: np.ndarray, limit: Shares) -> Check:
    """Check the share of structures that are periodic along all axes."""
    share = float(periodic.mean())
    failed = not limit.least <= share <= limit.most
    says = f"{share:.1%} are periodic along all axes; to be {limit.least:.1%} to {limit.most:.1%}"
    return make_check(
        "periodic_share", failed, says, share, limit.least if share < limit.least else limit.most, "share"
    )


def check_diversity(feature_ids: np.ndarray, features: np.ndarray, limit: float) -> Check:
    """Check the effective number of different structures (`daskpipe.core.vendi.compute_vendi_score`).

    Parameters
    ----------
    feature_ids
        Shape (sampled,).
    features
        Shape (sampled, feature), finite.
    limit
        Smallest score.
    """
    if len(feature_ids) < FEW:
        return skip_check("diversity", f"only {format_count(len(feature_ids))} with features; {FEW} are needed")
    # Sorted by id, so that sums do not depend on the order of the rows.
    value = compute_vendi_score(features[np.argsort(feature_ids.view("S16"), kind="stable")])
    says = f"{value:.1f} effectively different structures among {len(features):,}"
    return make_check("diversity", value < limit, says, value, limit, "structures")
