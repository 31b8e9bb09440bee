from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskpipe.core.errors import ConfigError
from daskpipe.core.seeds import order_by_hash
from daskpipe.core.structures import as_void, take
from daskpipe.core.variables import SPLITS
from daskpipe.store import arrange_dataset
from daskpipe.store.assignment import SLACK, assign_splits, per_group, size_classes_of, types_of
from daskpipe.store.leakage import compare_leakage, frame_distance, measure_leakage
from daskpipe.store.quality.check import Check
from daskpipe.store.quality.split_checks import check_splits
from daskpipe.store.splits import Split, find_groups, number_trajectories, seed_ids_of

N_SHARED = 3  # splits that can have a share
ids = st.binary(min_size=16, max_size=16)
sizes_by_group = st.dictionaries(ids, st.integers(1, 30), min_size=1, max_size=40)


@st.composite
def fractions(draw):
    weights = draw(st.lists(st.integers(0, 10), min_size=3, max_size=3).filter(any))
    return {name: weight / sum(weights) for name, weight in zip(SPLITS, weights, strict=True) if weight}


@given(sizes=sizes_by_group, fractions=fractions(), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_shares_are_met_as_well_as_groups_allow(sizes, fractions, seed):
    counts = np.array(list(sizes.values()))
    codes = assign_splits(counts, as_void(sizes), seed=seed, fractions=fractions)
    got = np.bincount(codes, weights=counts, minlength=N_SHARED)
    wanted = np.array([fractions.get(name, 0.0) for name in SPLITS]) * counts.sum()
    assert np.all(np.abs(got - wanted) <= (N_SHARED - 1) * counts.max() + 1e-9)
    assert not got[wanted == 0].any()
    if len(sizes) >= len(fractions):
        assert got[wanted > 0].all()


@given(sizes=sizes_by_group, fractions=fractions(), seed=st.integers(0, 2**32), order=st.randoms())
@settings(deadline=None, max_examples=60)
def test_a_group_gets_the_same_split_whatever_the_order_of_groups(sizes, fractions, seed, order):
    def splits_of(items):
        codes = assign_splits(
            np.array([n for _, n in items]), as_void(key for key, _ in items), seed=seed, fractions=fractions
        )
        return {key: code for (key, _), code in zip(items, codes.tolist(), strict=True)}

    items = list(sizes.items())
    shuffled = items.copy()
    order.shuffle(shuffled)
    assert splits_of(items) == splits_of(shuffled)


def test_single_structures_meet_the_shares_exactly():
    sizes = np.ones(100, dtype=int)
    codes = assign_splits(
        sizes, np.arange(200).view("V16"), seed=0, fractions={"train": 0.8, "val": 0.15, "test": 0.05}
    )
    assert np.bincount(codes).tolist() == [80, 15, 5]


@settings(deadline=None)
@given(st.lists(st.tuples(ids, ids | st.just(bytes(16))), min_size=1, max_size=30, unique_by=lambda row: row[0]))
def test_groups_are_seeds_numbered_by_their_smallest_id(rows):
    columns = {"structure_id": as_void(row[0] for row in rows), "parent_id": as_void(row[1] for row in rows)}
    group = find_groups(columns, Split(), seed=0)
    seeds = [own if parent == bytes(16) else parent for own, parent in rows]
    smallest = {seed: min(own for (own, _), of in zip(rows, seeds, strict=True) if of == seed) for seed in seeds}
    expected = {seed: number for number, seed in enumerate(sorted(smallest, key=smallest.__getitem__))}
    assert group.tolist() == [expected[seed] for seed in seeds]
    assert group.dtype == np.int32


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 24), frames=st.integers(1, 5), seed=st.integers(0, 9), order=st.randoms())
def test_arrange_is_a_permutation_that_tears_no_group_and_ignores_the_input_order(make_dataset, n, frames, seed, order):
    ds = make_dataset(n, frames_per_seed=frames)
    shares = {"train": 0.5, "val": 0.25, "test": 0.25}
    rows = list(range(n))
    order.shuffle(rows)
    arranged = arrange_dataset(ds, seed=seed, fractions=shares)
    assert arranged.identical(arrange_dataset(take(ds, rows), seed=seed, fractions=shares))

    back = np.argsort(order_by_hash(seed, "shuffle", ds["structure_id"].values))
    assert take(arranged, back).drop_vars(["group", "split"]).drop_attrs().identical(ds)

    pairs = set(zip(arranged["group"].values.tolist(), arranged["split"].values.tolist(), strict=True))
    assert len(pairs) == len({group for group, _ in pairs}) == -(-n // frames)
    if -(-n // frames) >= N_SHARED:
        assert {split for _, split in pairs} == set(SPLITS)


def test_the_seed_decides_the_order(make_dataset):
    ds = make_dataset(24)
    first, second = (arrange_dataset(ds, seed=seed, fractions={"train": 1.0}) for seed in (0, 1))
    steps = [first["step"].values.tolist(), second["step"].values.tolist(), ds["step"].values.tolist()]
    assert steps[0] != steps[1]
    assert steps[0] != steps[2]
    assert np.array_equal(np.sort(first["group"]), np.sort(second["group"]))  # numbers of groups do not depend on it


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"train": 0.8, "valid": 0.2}, r"unknown split 'valid'. Did you mean 'val'\? Known: train, val, test."),
        ({"train": 1.2, "val": -0.2}, "split train=1.2 is no share; give a number from 0 to 1"),
        ({"train": 0.8, "val": 0.1}, r"must sum to 1; received train=0.8, val=0.1 \(sum 0.9\), try train=0.8"),
        ({"train": float("nan")}, "split train=nan is no share"),
        ({}, r"must sum to 1; received nothing \(sum 0\)"),
    ],
)
def test_fractions_that_are_none(make_dataset, fractions, message):
    with pytest.raises(ConfigError, match=message):
        arrange_dataset(make_dataset(3), seed=0, fractions=fractions)


# --- groups ------------------------------------------------------------------------------------------


def make_walks(
    n_seeds: int, n_replicas: int, n_frames: int, *, length: float = 0.05, seed: int = 0
) -> dict[str, np.ndarray]:
    """Make random walks in feature space: trajectories start at their seed, and seeds are far apart."""
    rng = np.random.default_rng(seed)
    n = n_seeds * n_replicas * n_frames
    parent = np.repeat(np.arange(n_seeds), n_replicas * n_frames)
    starts = 10.0 * np.arange(n_seeds)[:, None] + rng.normal(size=(n_seeds, 4))
    steps = rng.normal(scale=length, size=(n_seeds, n_replicas, n_frames, 4)).cumsum(axis=2)
    return {
        "structure_id": as_void(rng.bytes(16) for _ in range(n)),
        "parent_id": as_void(int(number + 1).to_bytes(16) for number in parent),
        "composition": np.array(["Cu2", "CuAg"])[parent % 2],
        "temperature": np.full(n, 300, dtype=np.float32),
        "replica": np.tile(np.repeat(np.arange(n_replicas), n_frames), n_seeds),
        "step": np.tile(np.arange(n_frames), n_seeds * n_replicas),
        "features": (starts[:, None, None] + steps).reshape(n, 4).astype(np.float32),
    }


def group_rows(numbers: np.ndarray) -> set[frozenset[int]]:
    """Group the rows that share a number."""
    return {frozenset(np.flatnonzero(numbers == number).tolist()) for number in set(numbers.tolist())}


def join_slowly(columns: dict[str, np.ndarray], basic: np.ndarray, near: float) -> set[frozenset[int]]:
    """Join rows of one basic group, and rows that are near, with a slow loop."""
    features = columns["features"].astype(float)
    reach = near * np.sqrt(features.var(axis=0).sum())
    sets = [set(rows) for rows in group_rows(basic)]
    for i in range(len(features)):
        for j in range(i):
            if np.linalg.norm(features[i] - features[j]) <= reach:
                one, other = (next(item for item in sets if row in item) for row in (i, j))
                if one is not other:
                    sets.remove(other)
                    one |= other
    return {frozenset(item) for item in sets}


@pytest.mark.parametrize("near", [0.0, 0.002, 0.02, 0.5])
@pytest.mark.parametrize("by", ["seed", "trajectory"])
def test_near_duplicates_join_groups_however_long_the_chain(by, near):
    columns = make_walks(3, 4, 5, length=0.3)
    basic = seed_ids_of(columns).view("S16") if by == "seed" else number_trajectories(columns)
    groups = group_rows(find_groups(columns, Split(split_by=by, near_duplicates=near), seed=0))
    assert groups == (join_slowly(columns, basic, near) if near else group_rows(basic))


def test_the_chains_are_real():
    columns = make_walks(3, 4, 5, length=0.3)
    n_groups = [
        len(group_rows(find_groups(columns, Split(split_by="trajectory", near_duplicates=near), seed=0)))
        for near in (0.0, 0.02, 0.5)
    ]
    assert 12 == n_groups[0] > n_groups[1] > n_groups[2]


def test_equal_features_are_near_whatever_their_number():
    columns = make_walks(4, 1, 50)
    columns["features"][::50] = 7.0  # the first frame of each seed
    assert len(group_rows(find_groups(columns, Split(near_duplicates=1e-9), seed=0))) == 1


def test_composition_and_structure():
    columns = make_walks(4, 2, 3)
    assert group_rows(find_groups(columns, Split(split_by="composition", near_duplicates=0), seed=0)) == group_rows(
        columns["composition"]
    )
    assert len(group_rows(find_groups(columns, Split(split_by="structure"), seed=0))) == len(columns["step"])


@pytest.mark.parametrize("clusters", [1, 2, 5])
def test_regions_keep_seeds_whole_and_hold_neighbours(clusters):
    columns = make_walks(6, 2, 5)
    group = find_groups(columns, Split(split_by="cluster", clusters=clusters, near_duplicates=0), seed=0)
    assert len(group_rows(group)) == clusters
    of_seed = [set(group[columns["parent_id"] == parent].tolist()) for parent in np.unique(columns["parent_id"])]
    assert all(len(numbers) == 1 for numbers in of_seed)
    order = [numbers.pop() for numbers in of_seed]  # seeds lie on a line: a region is an interval of it
    assert sum(one != other for one, other in pairwise(order)) == clusters - 1


def test_clusters_need_features():
    columns = {name: values for name, values in make_walks(2, 1, 2).items() if name != "features"}
    with pytest.raises(ConfigError, match=r"split_by=cluster needs features.*type store.split_by=seed"):
        find_groups(columns, Split(split_by="cluster"), seed=0)


@pytest.mark.parametrize("by", ["seed", "trajectory", "composition", "cluster", "structure"])
def test_groups_do_not_depend_on_the_order_of_rows(by):
    columns = make_walks(5, 3, 4)
    rows = np.random.default_rng(1).permutation(len(columns["step"]))
    rule = Split(split_by=by, clusters=3)
    there = find_groups({name: values[rows] for name, values in columns.items()}, rule, seed=4)
    assert np.array_equal(there, find_groups(columns, rule, seed=4)[rows])


def test_structures_without_features_are_joined_by_lineage_alone():
    columns = make_walks(3, 1, 4)
    columns["features"][5] = np.nan
    assert len(group_rows(find_groups(columns, Split(), seed=0))) == 3


# --- leakage -----------------------------------------------------------------------------------------


def test_three_systems_of_twenty_trajectories():
    columns = make_walks(3, 20, 10)
    rule = Split(split_by="trajectory", near_duplicates=0)
    group = find_groups(columns, rule, seed=0)
    codes = assign_splits(np.bincount(group), np.arange(2 * 60).view("V16"), seed=0, fractions=rule.split)[group]
    assert np.bincount(codes).tolist() == [480, 60, 60]
    report = compare_leakage(columns, codes, seed=0, fractions=rule.split)
    # In a random split the nearest other frame is mostly in training, and half of all frames are nearer than most.
    assert report["leakage_random"]["test"] > 0.3
    # Trajectories of one seed all begin where it lies, so that those of the test are not far from those of training.
    assert 0.1 < report["leakage"]["test"] < report["leakage_random"]["test"] - 0.1


def slow_frame_distance(features: np.ndarray, kin: np.ndarray) -> float:
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    distances[(kin[:, None] != kin[None]) | np.eye(len(kin), dtype=bool)] = np.inf
    nearest = distances.min(axis=1)
    return float(np.median(nearest[np.isfinite(nearest)]))


def test_leakage_is_the_share_of_near_neighbours():
    columns = make_walks(4, 3, 6, length=0.2)
    codes = np.random.default_rng(2).integers(0, 3, len(columns["step"])).astype(np.uint8)
    flat = columns["features"].astype(float)
    reach = slow_frame_distance(flat, columns["parent_id"].view("<u8")[1::2])
    assert frame_distance(columns) == pytest.approx(reach, rel=1e-12)
    shares = measure_leakage(columns, codes, seed=0, threshold=reach)
    for name, code in (("val", 1), ("test", 2)):
        nearest = np.linalg.norm(flat[codes == code][:, None] - flat[codes == 0][None], axis=2).min(axis=1)
        assert shares[name] == np.mean(nearest < reach)
    assert 0 < shares["test"] < 1


def test_the_distance_of_frames_does_not_depend_on_their_order():
    columns = make_walks(4, 1, 12, length=0.2)
    columns["parent_id"] = np.zeros_like(columns["parent_id"])  # shuffled files tell no lineage
    columns["component"] = np.repeat(np.arange(4), 12)
    rows = np.random.default_rng(1).permutation(48)
    shuffled = {name: values[rows] for name, values in columns.items()} | {"step": np.arange(48)}
    reach = slow_frame_distance(columns["features"].astype(float), columns["component"])
    assert frame_distance(shuffled) == pytest.approx(reach, rel=1e-12)


def test_leakage_of_a_sample(monkeypatch):
    monkeypatch.setattr("daskpipe.store.leakage.SAMPLE", 5)
    columns = make_walks(2, 2, 30)
    codes = np.tile([0, 2], 60).astype(np.uint8)
    shares = measure_leakage(columns, codes, seed=0, threshold=frame_distance(columns))
    assert shares["test"] in {number / 5 for number in range(6)}


def test_leakage_that_cannot_be_told():
    columns = make_walks(6, 1, 1)  # no seed has two frames
    codes = np.array([0, 0, 0, 0, 2, 2], dtype=np.uint8)
    assert frame_distance(columns) is None
    assert compare_leakage(columns, codes, seed=0, fractions={"train": 1.0}) == {
        "frame_distance": None, "leakage": {}, "leakage_random": {},
    }  # fmt: skip
    del columns["features"]
    assert measure_leakage(columns, codes, seed=0, threshold=1.0) == {}


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(1, 5), min_size=200, max_size=300), seed=st.integers(0, 99))
def test_many_small_groups_meet_the_fractions_within_two_percent(sizes, seed):
    counts = np.array(sizes)
    codes = assign_splits(counts, np.arange(2 * len(counts)).view("V16"), seed=seed, fractions=Split().split)
    shares = np.bincount(codes, weights=counts, minlength=3) / counts.sum()
    assert np.abs(shares - [0.8, 0.1, 0.1]).max() < 0.02


def test_moves_mend_what_the_random_order_spoils():
    sizes = np.array([40, *[1] * 60])  # whatever comes first, the large group belongs to training
    for seed in range(20):
        codes = assign_splits(sizes, np.arange(122).view("V16"), seed=seed, fractions=Split().split)
        assert np.bincount(codes, weights=sizes).tolist() == [80, 10, 10]


# --- strata ------------------------------------------------------------------------------------------


def make_typed_groups(n_groups: dict[str, int], per_group: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Make columns of groups of structures, each of one system type; sizes depend on the type."""
    rng = np.random.default_rng(seed)
    kinds = np.repeat(np.array([name for name, n in n_groups.items() for _ in range(n)]), per_group)
    n_atoms = 10 * (1 + np.unique(kinds, return_inverse=True)[1])
    return {
        "structure_id": as_void(rng.bytes(16) for _ in kinds),
        "system_type": kinds,
        "n_atoms": n_atoms.astype(np.int32),
        "group": np.repeat(np.arange(sum(n_groups.values())), per_group),
    }


@pytest.mark.parametrize("seed", range(5))
def test_each_split_gets_its_share_of_each_type(seed):
    columns = make_typed_groups({"alloy": 20, "surface": 14, "cluster": 10}, per_group=3)
    counts = []
    for members in (types_of(columns), size_classes_of(columns)):
        assert members.shape == (44 * 3, 3)  # three types, and three sizes
        assert (members.sum(axis=1) == 1).all()
        counts.append(per_group(columns["group"], members))
    types, strata = counts
    codes = assign_splits(
        np.full(44, 3), np.arange(88).view("V16"), seed=seed, fractions=Split().split, types=types, strata=strata
    )[columns["group"]]
    for kind, count in (("alloy", 60), ("surface", 42), ("cluster", 30)):
        got = np.bincount(codes[columns["system_type"] == kind], minlength=3)
        wanted = np.array([0.8, 0.1, 0.1]) * count
        assert np.abs(got - wanted).max() <= 3, f"{kind}: {got} of {wanted}"  # a group's worth
        assert got.all()
    assert np.abs(np.bincount(codes) / 132 - [0.8, 0.1, 0.1]).max() < 0.03


# --- few groups --------------------------------------------------------------------------------------


def dealt(sizes: list[int], kinds: list[int], *, seed: int = 0) -> tuple[np.ndarray, Check]:
    """Splits of groups, each of one type, and what the gate says of them."""
    counts, kind = np.array(sizes), np.array(kinds)
    types = counts[:, None] * (kind[:, None] == np.unique(kind))
    codes = assign_splits(
        counts, np.arange(2 * len(counts)).view("V16"), seed=seed, fractions=Split().split, types=types
    )
    return codes, judged(codes, counts, np.repeat(kind, counts).astype(str))


def judged(codes: np.ndarray, counts: np.ndarray, kind_of_each: np.ndarray) -> Check:
    group = np.repeat(np.arange(len(counts)), counts)
    ids = np.arange(2 * len(group)).view("V16")
    return check_splits(ids, codes[group], group, Split().split, SLACK, kind_of_each)


@pytest.mark.parametrize("sizes", [[1, 1, 2, 2], [2, 2, 1, 1], [3, 3, 3, 3], [1, 1, 30, 30]])
def test_training_data_have_both_types_of_two_groups_each(sizes):
    """Val and test took both groups of one type."""
    for seed in range(20):
        codes, check = dealt(sizes, [0, 0, 1, 1], seed=seed)
        assert sorted(codes.tolist()) == [0, 0, 1, 2]
        assert {number // 2 for number in np.flatnonzero(codes == SPLITS.index("train"))} == {0, 1}
        assert check.verdict == "warn"  # no split but train can have both
        assert "train has no" not in check.says


@settings(deadline=None, max_examples=300)
@given(
    groups=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 4)), min_size=3, max_size=12), seed=st.integers(0, 9)
)
def test_training_data_have_every_type_as_long_as_no_other_split_needs_its_only_group(groups, seed):
    sizes, kinds = (list(part) for part in zip(*groups, strict=True))
    codes, check = dealt(sizes, kinds, seed=seed)
    assert set(codes.tolist()) == {0, 1, 2}
    in_training = {kinds[number] for number in np.flatnonzero(codes == SPLITS.index("train"))}
    if len(groups) >= len(set(kinds)) + 2:
        assert in_training == set(kinds)
    assert check.verdict != "fail"
    # Of types that training must go without, none has more structures than the largest that it has.
    totals = {kind: sum(size for size, own in groups if own == kind) for kind in set(kinds)}
    if missing := set(kinds) - in_training:
        assert max(totals[kind] for kind in missing) <= max(totals[kind] for kind in in_training)


@settings(deadline=None, max_examples=200)
@given(
    groups=st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3).filter(any), min_size=3, max_size=40),
    seed=st.integers(0, 9),
)
def test_the_gate_passes_the_splits_that_groups_of_several_types_allow(groups, seed):
    types = np.array(groups)
    counts = types.sum(axis=1)
    codes = assign_splits(
        counts, np.arange(2 * len(counts)).view("V16"), seed=seed, fractions=Split().split, types=types
    )
    kind_of_each = np.concatenate([np.repeat(["a", "b", "c"], row) for row in types])
    check = judged(codes, counts, kind_of_each)
    assert check.verdict != "fail", check.says


def test_the_gate_fails_training_data_without_a_type_that_they_could_have():
    codes, counts = np.array([0, 0, 1, 2]), np.array([4, 4, 4, 4])
    kind_of_each = np.repeat(["bulk", "bulk", "cluster", "cluster"], 4)
    check = judged(codes, counts, kind_of_each)
    assert check.verdict == "fail"
    assert "train has no cluster" in check.says
