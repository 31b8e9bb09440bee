"""The checks of the quality gate that are about splits: shares, types, groups, and what a test gives away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from daskpipe.core.seeds import order_by_hash
from daskpipe.core.variables import SPLITS
from daskpipe.store.assignment import assign_splits
from daskpipe.store.connectivity import IMPORTED, Frame, is_near
from daskpipe.store.leakage import nearest_in_family
from daskpipe.store.quality.check import Check, name_offenders, skip_check
from daskpipe.store.splits import number_trajectories

MIN_OF_TYPE = 3
"""Structures of a system type that a split should hold by its share, from which on their lack is a fault."""

MIN_KIN = 10
"""Frames of trajectories, below which the distance between such frames is not known."""

MOST_COMPARED = 1_000
"""Structures of a split that are compared with training structures, chosen by hash."""

MOST_NEIGHBOURS = 8
"""Training structures that each is compared with, the nearest ones."""


def check_splits(
    ids: np.ndarray,
    split: np.ndarray,
    group: np.ndarray,
    shares: Mapping[str, float],
    limit: float,
    system_type: np.ndarray | None = None,
    isolated: np.ndarray | None = None,
) -> Check:
    """Check that no group is torn, no split is empty or lacks a system type, and each has about its share.

    Parameters
    ----------
    ids, split, group
        Shape (structure,); split is an index into `SPLITS`, group the number of what must stay together.
    shares
        What each split should hold; empty if it is not known.
    limit
        Largest difference of a share, beyond the least one that whole groups allow.
    system_type
        Of each structure, as words, shape (structure,).
    isolated
        Which structures are isolated atoms, bool, shape (structure,): they stay in train, so no other split can be
        asked for them.
    """
    n = len(ids)
    table = np.zeros((int(group.max()) + 1, len(SPLITS)), dtype=np.int64)
    np.add.at(table, (group, split), 1)
    # Of a torn group, those outside its largest part offend.
    torn = np.flatnonzero(((table > 0).sum(axis=1)[group] > 1) & (split != table.argmax(axis=1)[group]))
    found = dict(zip(SPLITS, (np.bincount(split, minlength=len(SPLITS)) / n).tolist(), strict=True))
    empty = [name for name, share in shares.items() if share > 0 and not found[name]]
    off = _miss(found, shares)
    allowed = limit + _attainable(table.sum(axis=1), shares)
    says = ", ".join(f"{name} {share:.1%}" for name, share in found.items() if share or name in empty)
    if shares:
        says += f"; off by {off:.1%} at most (allowed {allowed:.1%})"
    if empty:
        says += f"; empty: {', '.join(empty)}"
    lacking = {}
    if system_type is not None:
        dealt = np.ones(n, dtype=np.bool_) if isolated is None else ~isolated
        lacking = _lacking(split[dealt], group[dealt], system_type[dealt], shares)
    for name, types in lacking.items():
        if name not in empty:
            says += f"; {name} has no {', no '.join(types)}"
    says += f"; {len(torn):,} structure{'s' if len(torn) != 1 else ''} torn from the rest of their groups"
    at_fault = any(could for types in lacking.values() for could in types.values())
    failed = len(torn) > 0 or bool(empty) or off > allowed or at_fault
    return Check(
        name="splits",
        verdict="fail" if failed else "warn" if lacking else "pass",
        value=off,
        threshold=allowed,
        unit="share",
        says=says,
        **name_offenders(ids, torn, np.ones(len(torn))),
    )


def _miss(found: Mapping[str, float], shares: Mapping[str, float]) -> float:
    return max((abs(found[name] - shares.get(name, 0.0)) for name in SPLITS), default=0.0) if shares else 0.0


def _attainable(sizes: np.ndarray, shares: Mapping[str, float]) -> float:
    """Return the difference of a share that is left when whole groups are dealt out for their sizes alone."""
    if not shares:
        return 0.0
    sizes = sizes[sizes > 0]
    codes = assign_splits(sizes, np.arange(2 * len(sizes), dtype="<u8").view("V16"), seed=0, fractions=shares)
    dealt = np.bincount(codes, weights=sizes, minlength=len(SPLITS)) / sizes.sum()
    return _miss(dict(zip(SPLITS, dealt.tolist(), strict=True)), shares)


def _lacking(
    split: np.ndarray, group: np.ndarray, system_type: np.ndarray, shares: Mapping[str, float]
) -> dict[str, dict[str, bool]]:
    """Return the system types that a split with a share lacks, and whether groups would allow it to have them."""
    shared = {name: share for name, share in shares.items() if share > 0}
    lacking: dict[str, dict[str, bool]] = {}
    for kind in np.unique(system_type).tolist():
        of_kind = system_type == kind
        sizes = np.unique(group[of_kind], return_counts=True)[1]
        for name, share in shared.items():
            if not (of_kind & (split == SPLITS.index(name))).any():
                wanted = share * of_kind.sum()
                # Beside the largest group, which may be in training, there is enough for the split.
                could = len(sizes) >= len(shared) and sizes.sum() - sizes.max() >= wanted >= MIN_OF_TYPE
                lacking.setdefault(name, {})[kind] = bool(could)
    return lacking


def find_leaks(
    columns: Mapping[str, np.ndarray], read_frames: Callable[[np.ndarray], Mapping[int, Frame]]
) -> tuple[np.ndarray, np.ndarray]:
    """Look for held-out structures that have a training structure of their own trajectory close by.

    Close is what lies, in feature space, closer than the median frame does to the nearest other one of its trajectory.
    Of imported frames the trajectory is not known: those count whose atoms are where the training structure has them
    (`daskpipe.store.connectivity.is_near`), and the median is that of the frames of one composition.

    Parameters
    ----------
    columns
        ``structure_id``, ``parent_id``, ``split`` (index into `SPLITS`), ``composition`` (number), ``features`` and,
        where they are known, ``generator`` (words) and what tells trajectories; one row a structure.
    read_frames
        Returns the geometries of some rows.

    Returns
    -------
    looked : numpy.ndarray
        Rows of ``val`` and ``test`` that were compared, at most `MOST_COMPARED` of each.
    leaks : numpy.ndarray
        Which of them have such a training structure, bool.
    """
    from scipy.spatial import cKDTree

    described = np.flatnonzero(np.isfinite(columns["features"]).all(axis=1))
    column = {name: values[described] for name, values in columns.items()}
    imported = column.get("generator", np.zeros(len(described), dtype="U1")) == IMPORTED
    n_compositions = int(column["composition"].max(initial=-1)) + 1
    kin = np.where(imported, column["composition"], n_compositions + number_trajectories(column))
    features, split = column["features"].astype(np.float64), column["split"]
    nearest, _ = nearest_in_family(features, kin)
    known = nearest[np.isfinite(nearest)]
    training = np.flatnonzero(split == SPLITS.index("train"))
    none = np.zeros(0, dtype=np.int64)
    if len(known) < MIN_KIN or not len(training):
        return none, none.astype(bool)
    order = order_by_hash(0, "leakage", column["structure_id"])
    looked = np.concatenate([order[split[order] == code][:MOST_COMPARED] for code in range(1, len(SPLITS))])
    if not len(looked):
        return none, none.astype(bool)
    k = min(MOST_NEIGHBOURS, len(training))
    reach = float(np.median(known))
    distance, place = (
        part.reshape(len(looked), k) for part in cKDTree(features[training]).query(features[looked], k=k)
    )
    one, number = np.nonzero(distance <= reach)
    held_out, other = looked[one], training[place[one, number]]
    same = kin[held_out] == kin[other]
    one, held_out, other = one[same], held_out[same], other[same]
    unknown = imported[held_out]
    frames = read_frames(described[np.unique(np.concatenate([held_out[unknown], other[unknown]]))])
    near = [
        not foreign or is_near(frames[a], frames[b])
        for foreign, a, b in zip(unknown.tolist(), described[held_out].tolist(), described[other].tolist(), strict=True)
    ]
    leaks = np.zeros(len(looked), dtype=np.bool_)
    leaks[one[np.array(near, dtype=np.bool_)]] = True
    return described[looked], leaks


def check_leakage(ids: np.ndarray, split: np.ndarray, looked: np.ndarray, leaks: np.ndarray, limit: float) -> Check:
    """Check how many held-out structures have a training structure of their own trajectory close by.

    Parameters
    ----------
    ids, split
        Shape (structure,); split is an index into `SPLITS`.
    looked, leaks
        As `find_leaks` returns them.
    limit
        Largest share of a split.
    """
    if not len(looked):
        return skip_check(
            "leakage", "no trajectory has frames enough, or there is nothing to train on, validate and test"
        )
    parts = {name: leaks[split[looked] == code] for code, name in enumerate(SPLITS)}
    shares = {name: float(part.mean()) for name, part in parts.items() if len(part)}
    worst = max(shares.values())
    told = ", ".join(f"{share:.1%} of {name}" for name, share in shares.items())
    says = f"{told} have a training structure of their own trajectory as close as its frames are to each other"
    named: dict[str, Any] = name_offenders(ids, looked[leaks], np.ones(int(leaks.sum()))) if worst > limit else {}
    verdict: Literal["pass", "fail"] = "fail" if worst > limit else "pass"
    return Check(name="leakage", verdict=verdict, value=worst, threshold=limit, unit="share", says=says, **named)
