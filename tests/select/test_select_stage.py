import numpy as np
import pytest

from daskpipe.select.settings import Select
from daskpipe.select.stage import feature_table, select
from daskpipe.structures import as_void
from daskpipe.work import Payload, Tree, Unit, commit, key_of

DIMS = 3
N_FRAMES = 60
RUN_SEED = 12


def table() -> tuple[np.ndarray, np.ndarray]:
    """Ids and features of all frames; the features stand in six groups."""
    rng = np.random.default_rng(0)
    ids = as_void(rng.bytes(16) for _ in range(N_FRAMES))
    features = 10 * rng.integers(0, 6, (N_FRAMES, 1)) + rng.standard_normal((N_FRAMES, DIMS))
    return ids, features.astype(np.float32)


def run(root, ids, features, sizes, settings) -> Payload:
    """Commit exploration and description units of so many frames, and select from them."""
    assert sum(sizes) == len(ids)
    frames, described, start = [], [], 0
    for index, size in enumerate(sizes):
        rows = slice(start, start + size)
        for stage, arrays in (("explore", {"structure_id": ids[rows]}), ("describe", {"features": features[rows]})):
            key = key_of(stage, 1, {}, [index], 0)
            commit(root, Unit(stage=stage, index=index, key=key, n_inputs=1), Payload(arrays=arrays, n_out=size))
            if stage == "explore":
                frames.append(key)
            else:
                described.append((key, size))
        start += size
    lazy = feature_table(root, described, DIMS)
    assert lazy.chunks == (tuple(size for size in sizes if size), (DIMS,))
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), features)
    return select(root, frames, described, DIMS, settings, RUN_SEED)


@pytest.mark.parametrize("method", ["kmeans", "random"])
def test_payload_names_unit_and_row_of_each_pick(tmp_path, method):
    ids, features = table()
    sizes = (20, 0, 25, 15)
    payload = run(tmp_path, ids, features, sizes, Select(n=12, method=method))
    arrays = payload.arrays
    assert payload.n_out == 12
    places = list(zip(arrays["unit"].tolist(), arrays["row"].tolist(), strict=True))
    assert places == sorted(set(places))
    starts = np.cumsum([0, *sizes])
    rows = np.array([starts[unit] + row for unit, row in places])
    assert all(row < sizes[unit] for unit, row in places)
    assert len({unit for unit, _ in places}) == 3, "picks from one unit alone show little"
    np.testing.assert_array_equal(arrays["features"], features[rows])
    assert arrays["features"].dtype == np.float32
    assert arrays["cluster"].dtype == np.int32
    reason, strata = {"kmeans": ("kmeans_nearest", {0, 1, 2}), "random": ("random", {-1})}[method]
    assert set(arrays["selection_reason"].tolist()) == {reason}
    assert set(arrays["cluster"].tolist()) == strata


@pytest.mark.parametrize("method", ["kmeans", "random"])
@pytest.mark.parametrize("sizes", [(60,), (5,) * 12, (30, 7, 23)])
def test_picks_depend_on_ids_and_not_on_units_or_order(tmp_path, method, sizes):
    ids, features = table()
    shuffle = np.random.default_rng(5).permutation(N_FRAMES)
    settings = Select(n=12, method=method)

    def picked(name, ids, features, sizes):
        arrays = run(tmp_path / name, ids, features, sizes, settings).arrays
        rows = np.cumsum([0, *sizes])[arrays["unit"]] + arrays["row"]
        strata = arrays["cluster"].tolist()
        return {ids[row].tobytes(): stratum for row, stratum in zip(rows, strata, strict=True)}

    expected = picked("one", ids, features, (20, 25, 15))
    assert len(expected) == 12
    assert picked("other units", ids, features, sizes) == expected
    assert picked("other order", ids[shuffle], features[shuffle], sizes) == expected


def test_payload_can_be_committed(tmp_path):
    ids, features = table()
    payload = run(tmp_path, ids, features, (60,), Select(n=5))
    key = key_of("select", 1, {}, [], 0)
    commit(tmp_path, Unit(stage="select", index=0, key=key, n_inputs=N_FRAMES), payload)
    loaded = Tree(tmp_path).load("select", key)
    for name, array in payload.arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
