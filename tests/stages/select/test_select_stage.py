import json

import numpy as np
import pytest

from daskpipe.core.errors import ConfigError
from daskpipe.core.structures import as_void
from daskpipe.engine.commit import commit
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload, Unit, unit_key
from daskpipe.stages.select.settings import Select
from daskpipe.stages.select.stage import VERSION, feature_table, select

DIMS = 3
N_FRAMES = 60
RUN_SEED = 12
METHODS = ("direct", "environments", "fps", "kmeans", "random", "stride")
REASON = {"kmeans": "kmeans_spread"}


def table() -> dict[str, np.ndarray]:
    """Ids, features, atoms and their elements of all frames; the features stand in six groups."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 6, N_FRAMES)
    n_atoms = rng.integers(2, 6, N_FRAMES)
    features = 10 * group[:, None] + rng.standard_normal((N_FRAMES, DIMS))
    atoms = np.repeat(features, n_atoms, axis=0) + rng.standard_normal((n_atoms.sum(), DIMS))
    return {
        "structure_id": as_void(rng.bytes(16) for _ in range(N_FRAMES)),
        "features": features.astype(np.float32),
        "n_atoms": n_atoms.astype(np.int32),
        "numbers": np.where(np.repeat(group, n_atoms) == 5, 79, 29).astype(np.uint8),
        "environments": atoms.astype(np.float32),
    }


BY_ATOM = ("numbers", "environments")
EXPLORED = ("structure_id", "n_atoms", "numbers", "candidate", "explore_energy", "reference")


def rows_of(found: dict[str, np.ndarray], order: np.ndarray) -> dict[str, np.ndarray]:
    """The frames in another order."""
    ends = np.cumsum(found["n_atoms"])
    atoms = np.concatenate([np.arange(ends[row] - found["n_atoms"][row], ends[row]) for row in order])
    return {name: array[atoms if name in BY_ATOM else order] for name, array in found.items()}


def run(root, found, sizes, settings, **inputs) -> Payload:
    """Commit exploration and description units of so many frames, and select from them."""
    assert sum(sizes) == len(found["features"])
    root.mkdir(exist_ok=True)
    frames, described, start = [], [], 0
    for index, size in enumerate(sizes):
        arrays = rows_of(found, np.arange(start, start + size)) if size else {name: a[:0] for name, a in found.items()}
        for stage in ("explore", "describe"):
            part = {name: array for name, array in arrays.items() if (name in EXPLORED) == (stage == "explore")}
            key = unit_key(stage, 1, {}, [index], 0)
            commit(root, Unit(stage=stage, index=index, key=key, n_inputs=1), Payload(arrays=part, n_out=size))
            if stage == "explore":
                frames.append(key)
            else:
                described.append((key, size))
        start += size
    lazy = feature_table(root, "describe", described, DIMS)
    assert lazy.chunks == (tuple(size for size in sizes if size), (DIMS,))
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), found["features"])
    stages = {"frames_stage": "explore", "features_stage": "describe"}
    return select(root, frames, described, DIMS, settings, RUN_SEED, **stages, **inputs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_marked", [1, 5, 12, 20])
def test_candidates_are_picked_first(tmp_path, method, n_marked):
    marked = np.zeros(N_FRAMES, dtype=bool)
    marked[np.random.default_rng(1).permutation(N_FRAMES)[:n_marked]] = True
    found = {**table(), "candidate": marked}
    sizes = (20, 25, 15)
    payload = run(tmp_path, found, sizes, Select(n=12, method=method))
    rows = rows_picked(payload.arrays, sizes)
    assert payload.n_out == len(set(rows.tolist())) == 12
    assert rows.tolist() == sorted(rows.tolist())
    expected = np.flatnonzero(marked)
    assert (len(set(rows) & set(expected))) == min(n_marked, 12)
    reasons = payload.arrays["selection_reason"]
    np.testing.assert_array_equal(reasons == "candidate", marked[rows])
    assert set(payload.arrays["cluster"][marked[rows]].tolist()) == {-1}
    np.testing.assert_array_equal(payload.arrays["features"], found["features"][rows])
    report = json.loads(payload.arrays["report"].item())
    assert report["candidates"] == {"marked": n_marked, "picked": min(n_marked, 12)}


@pytest.mark.parametrize("method", METHODS)
def test_frames_above_the_energy_window_are_left_out_first(tmp_path, method):
    found = table()
    pure = np.array([set(part.tolist()) for part in np.split(found["numbers"], np.cumsum(found["n_atoms"])[:-1])])
    gold = np.array([79 in elements for elements in pure])
    height = np.random.default_rng(2).random(N_FRAMES)  # eV an atom above the lowest
    height[[np.flatnonzero(gold)[0], np.flatnonzero(~gold)[0]]] = 0
    found["explore_energy"] = (height - np.where(gold, 3.0, 4.0)) * found["n_atoms"]
    sizes = (20, 25, 15)
    payload = run(tmp_path, found, sizes, Select(n=N_FRAMES, method=method, energy_window=0.4))
    rows = rows_picked(payload.arrays, sizes)
    assert rows.tolist() == np.flatnonzero(height <= 0.4).tolist()
    report = json.loads(payload.arrays["report"].item())
    assert report["above_energy_window"] == (height > 0.4).sum()
    assert report["n_pool"] == N_FRAMES
    assert report["coverage"]["clusters_hit"] == 1.0  # of what the window leaves in


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [2, 12])
def test_reference_data_are_picked_in_any_case(tmp_path, method, n):
    marked = np.zeros(N_FRAMES, dtype=bool)
    marked[[3, 4, 21, 59]] = True
    found = {**table(), "reference": marked}
    found["features"][4] = found["features"][3]  # equal ones both stay, too
    sizes = (20, 25, 15)
    payload = run(tmp_path, found, sizes, Select(n=n, method=method))
    rows = rows_picked(payload.arrays, sizes)
    assert set(np.flatnonzero(marked)) <= set(rows.tolist())
    assert payload.n_out == len(set(rows.tolist())) == max(n, 4)
    np.testing.assert_array_equal(payload.arrays["selection_reason"] == "reference", marked[rows])
    report = json.loads(payload.arrays["report"].item())
    assert (report["n_reference"], report["n_pool"], report["n_picked"]) == (4, N_FRAMES - 4, max(n - 4, 0))


def test_reference_data_alone_are_all_picked(tmp_path):
    found = {**table(), "reference": np.ones(N_FRAMES, dtype=bool)}
    payload = run(tmp_path, found, (60,), Select(n=5))
    assert payload.n_out == N_FRAMES
    assert json.loads(payload.arrays["report"].item())["n_picked"] == 0


def test_a_window_needs_energies(tmp_path):
    with pytest.raises(ConfigError, match="select.energy_window needs the energies of exploration.*explore=relax"):
        run(tmp_path, table(), (60,), Select(n=4, energy_window=0.1))


def rows_picked(arrays, sizes) -> np.ndarray:
    return np.cumsum([0, *sizes])[arrays["unit"]] + arrays["row"]


@pytest.mark.parametrize("method", METHODS)
def test_payload_names_unit_and_row_of_each_pick(tmp_path, method):
    found = table()
    sizes = (20, 0, 25, 15)
    payload = run(tmp_path, found, sizes, Select(n=12, method=method))
    arrays = payload.arrays
    assert payload.n_out == 12
    places = list(zip(arrays["unit"].tolist(), arrays["row"].tolist(), strict=True))
    assert places == sorted(set(places))
    assert all(row < sizes[unit] for unit, row in places)
    assert len({unit for unit, _ in places}) == 3, "picks from one unit alone show little"
    np.testing.assert_array_equal(arrays["features"], found["features"][rows_picked(arrays, sizes)])
    assert arrays["features"].dtype == np.float32
    assert arrays["cluster"].dtype == np.int32
    assert set(arrays["selection_reason"].tolist()) == {REASON.get(method, method)}
    assert (set(arrays["cluster"].tolist()) == {-1}) == (method in ("fps", "random", "stride"))


@pytest.mark.slow
@pytest.mark.parametrize("method", [method for method in METHODS if method != "stride"])
@pytest.mark.parametrize("sizes", [(60,), (5,) * 12, (30, 7, 23)])
def test_picks_depend_on_ids_and_not_on_units_or_order(tmp_path, method, sizes):
    found = table()
    shuffle = np.random.default_rng(5).permutation(N_FRAMES)
    # A threshold that takes out some of them, and which depends on the canonical order.
    settings = Select(n=12, method=method, duplicate_distance=0.05)

    def picked(name, found, sizes):
        arrays = run(tmp_path / name, found, sizes, settings).arrays
        removed = json.loads(str(arrays["report"]))["duplicates"]["against_pool"]
        assert 0 < removed < 40
        strata = arrays["cluster"].tolist()
        rows = rows_picked(arrays, sizes)
        return removed, {found["structure_id"][row].tobytes(): at for row, at in zip(rows, strata, strict=True)}

    expected = picked("one", found, (20, 25, 15))
    assert len(expected[1]) == 12
    assert picked("other units", found, sizes) == expected
    assert picked("other order", rows_of(found, shuffle), sizes) == expected


def test_the_report_tells_what_was_done(tmp_path):
    found = table()
    found["features"][31] = found["features"][30]
    payload = run(tmp_path, found, (20, 25, 15), Select(n=12, params={"n_clusters": 4}))
    report = json.loads(str(payload.arrays["report"]))
    assert (report["method"], report["n_pool"], report["n_picked"]) == ("kmeans", 60, 12)
    assert report["params"] == {"n_clusters": 4, "allocation": "sqrt", "within": "spread", "passes": 1}
    duplicates = report["duplicates"]
    assert (duplicates["against_pool"], duplicates["against_dataset"]) == (1, 0)
    assert duplicates["threshold"] == Select(n=1).duplicate_distance
    centred = found["features"] - found["features"].mean(axis=0, dtype=float)
    assert duplicates["scale"] == pytest.approx(np.sqrt((centred**2).sum(axis=1).mean()), rel=1e-5)
    assert report["coverage"]["n_pool"] == 60
    assert report["coverage"]["elements_hit"] in (0.5, 1)
    assert 0 < report["coverage"]["bins_hit"] <= 1


@pytest.mark.parametrize("method", METHODS)
def test_near_duplicates_are_not_picked(tmp_path, method):
    found = table()
    found["features"][30:] = found["features"][:30]
    sizes = (20, 25, 15)
    arrays = run(tmp_path, found, sizes, Select(n=60, method=method)).arrays
    rows = rows_picked(arrays, sizes)
    assert len(rows) == 30
    assert sorted(rows % 30) == list(range(30))
    kept = run(tmp_path / "off", found, sizes, Select(n=60, method=method, duplicate_distance=0)).arrays
    assert len(kept["row"]) == 60
    assert json.loads(str(kept["report"]))["duplicates"]["against_pool"] == 0


N_COVERED, N_NEW, N_KNOWN = 400, 40, 80


def two_regions(n_known: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Frames of a region where a dataset has `n_known` structures, and then of a region where it has none."""
    rng = np.random.default_rng(1)
    n = N_COVERED + N_NEW
    features = rng.standard_normal((n, DIMS))
    features[N_COVERED:] += [12, 0, 0]
    found = {
        "structure_id": as_void(rng.bytes(16) for _ in range(n)),
        "features": features.astype(np.float32),
        "n_atoms": np.ones(n, dtype=np.int32),
        "numbers": np.full(n, 29, dtype=np.uint8),
        "environments": features.astype(np.float32),
    }
    return found, rng.standard_normal((n_known, DIMS)).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_picks_lie_where_the_dataset_has_no_structures(tmp_path, method):
    found, known = two_regions(N_KNOWN)
    sizes = (N_COVERED, N_NEW)
    settings = Select(n=30, method=method)
    free = rows_picked(run(tmp_path / "free", found, sizes, settings).arrays, sizes)
    arrays = run(tmp_path / "steered", found, sizes, settings, against=known).arrays
    steered = rows_picked(arrays, sizes)
    assert len(steered) == len(set(steered.tolist())) == 30
    # The dataset leaves a few frames at the edge of its own region uncovered, and these are new as well.
    assert np.count_nonzero(steered >= N_COVERED) >= 12
    assert np.count_nonzero(steered >= N_COVERED) > np.count_nonzero(free >= N_COVERED)
    covered = json.loads(str(arrays["report"]))["duplicates"]["covered"]
    assert covered["n_picked_elsewhere"] == 30
    assert 0.85 * N_COVERED < covered["n_covered"] < N_COVERED
    far = np.linalg.norm(found["features"][steered][:, None] - known[None], axis=2).min(axis=1)
    assert far.min() > covered["radius"]


def test_where_all_is_covered_picks_come_from_there(tmp_path):
    found, known = two_regions(4_000)
    arrays = run(tmp_path, found, (N_COVERED, N_NEW), Select(n=100), against=known).arrays
    rows = rows_picked(arrays, (N_COVERED, N_NEW))
    covered = json.loads(str(arrays["report"]))["duplicates"]["covered"]
    assert N_NEW <= covered["n_picked_elsewhere"] == N_COVERED + N_NEW - covered["n_covered"] < 100 == len(rows)
    assert set(range(N_COVERED, N_COVERED + N_NEW)) <= set(rows.tolist())  # all of what is new
    assert arrays["cluster"].min() >= 0


def test_a_pool_that_is_covered_throughout_is_picked_from(tmp_path):
    """The report had no number of picks elsewhere then, and the summary failed."""
    found, _ = two_regions(0)
    beside = found["features"] + np.float32(0.02)
    arrays = run(tmp_path, found, (N_COVERED, N_NEW), Select(n=30), against=beside).arrays
    covered = json.loads(str(arrays["report"]))["duplicates"]["covered"]
    assert len(arrays["row"]) == 30
    assert (covered["n_covered"], covered["n_picked_elsewhere"]) == (N_COVERED + N_NEW, 0)


@pytest.mark.parametrize("n_known", [1, 2])
def test_few_structures_cover_little(tmp_path, n_known):
    found, _ = two_regions(0)
    known = np.array([[0, 0, 0], [12, 0, 0]], dtype=np.float32)[:n_known]
    arrays = run(tmp_path, found, (N_COVERED, N_NEW), Select(n=30), against=known).arrays
    covered = json.loads(str(arrays["report"]))["duplicates"]["covered"]
    # Not as far as from one of the two to the other.
    assert covered["radius"] < 3
    assert covered["n_picked_elsewhere"] == 30


def test_frames_near_the_dataset_are_not_picked(tmp_path):
    found = table()
    sizes = (20, 25, 15)
    arrays = run(tmp_path, found, sizes, Select(n=60), against=found["features"][[5, 40]]).arrays
    assert sorted(set(range(60)) - set(rows_picked(arrays, sizes).tolist())) == [5, 40]
    assert json.loads(str(arrays["report"]))["duplicates"]["against_dataset"] == 2


def test_a_pool_that_says_nothing_new_is_refused(tmp_path):
    found = table()
    with pytest.raises(ConfigError, match="all 60 frames lie within .*0.001 of the existing dataset.* type a smaller"):
        run(tmp_path, found, (60,), Select(n=5), against=found["features"])


def test_atoms_are_needed_for_environments(tmp_path):
    found = table()
    del found["environments"]
    message = "holds no 'environments'; method 'environments' needs the features of atoms"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, found, (60,), Select(n=5, method="environments"))


def test_payload_can_be_committed(tmp_path):
    payload = run(tmp_path, table(), (60,), Select(n=5))
    key = unit_key("select", VERSION, {}, [], 0)
    commit(tmp_path, Unit(stage="select", index=0, key=key, n_inputs=N_FRAMES), payload)
    loaded = RunDirectory(tmp_path).load_arrays("select", key)
    for name, array in payload.arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
