"""The checks of the quality gate that are about splits: shares, types, groups, and what a test gives away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from daskpipe.core.seeds import order_by_hash
from daskpipe.core.variables import SPLITS
from daskpipe.store.assignment import Attainable, lacks_type, measure_off, per_group, types_of
from daskpipe.store.connectivity import IMPORTED, Frame, is_near
from daskpipe.store.leakage import nearest_in_family
from daskpipe.store.quality.check import Check, name_offenders, skip_check
from daskpipe.store.splits import number_trajectories

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
    reference: np.ndarray | None = None,
) -> Check:
    """Check that no group is torn, no split is empty or lacks a system type, and each has about its share.

    Parameters
    ----------
    ids, split, group
        Shape (structure,); split is an index into `SPLITS`, group the number of what must stay together.
    shares
        What each split should hold; empty if it is not known.
    limit
        Largest difference of a share, beyond the one that whole groups allow (`Attainable`).
    system_type
        Of each structure, as words, shape (structure,).
    reference
        Which structures are reference data, bool, shape (structure,): they stay in train, and count in no share.
    """
    n = len(ids)
    table = np.zeros((int(group.max()) + 1, len(SPLITS)), dtype=np.int64)
    np.add.at(table, (group, split), 1)
    # Of a torn group, those outside its largest part offend.
    torn = np.flatnonzero(((table > 0).sum(axis=1)[group] > 1) & (split != table.argmax(axis=1)[group]))
    dealt = np.ones(n, dtype=np.bool_) if reference is None or reference.all() else ~reference
    parts = dict(zip(SPLITS, (np.bincount(split[dealt], minlength=len(SPLITS)) / dealt.sum()).tolist(), strict=True))
    empty = [name for name, share in shares.items() if share > 0 and not parts[name]]
    kinds = np.zeros(n, dtype="U1") if system_type is None else system_type
    names = np.unique(kinds[dealt]).tolist()
    members = types_of({"system_type": kinds[dealt]})
    of_dealt = np.unique(group[dealt], return_inverse=True)[1].reshape(-1)
    sizes, types = np.bincount(of_dealt), per_group(of_dealt, members)
    attainable = Attainable.of(sizes, types, shares)
    off = measure_off(split[dealt], np.ones(int(dealt.sum())), attainable.shares)
    allowed = limit + attainable.off
    says = ", ".join(f"{name} {share:.1%}" for name, share in parts.items() if share or name in empty)
    if shares:
        says += f"; off by {off:.1%} at most (allowed {allowed:.1%})"
    if empty:
        says += f"; empty: {', '.join(empty)}"
    lacks = lacks_type(split[dealt], members) & (attainable.shares > 0)[:, None]
    for code, name in enumerate(SPLITS):
        if name not in empty and lacks[code].any():
            says += f"; {name} has no {', no '.join(names[kind] for kind in np.flatnonzero(lacks[code]).tolist())}"
    says += f"; {len(torn):,} structure{'s' if len(torn) != 1 else ''} torn from the rest of their groups"
    failed = len(torn) > 0 or bool(empty) or off > allowed or bool((lacks & attainable.due).any())
    return Check(
        name="splits",
        verdict="fail" if failed else "warn" if lacks.any() else "pass",
        value=off,
        threshold=allowed,
        unit="share",
        says=says,
        **name_offenders(ids, torn, np.ones(len(torn))),
    )


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
