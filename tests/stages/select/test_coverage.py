import json

import numpy as np
import pytest
from chunking import chunked, row_chunks
from clouds import clouds
from hypothesis import given, settings
from reference import coverage as reference

import daskpipe.stages.select.coverage
from daskpipe.stages.select.coverage import N_BINS, measure_coverage
from daskpipe.stages.select.pick import pick


@pytest.mark.parametrize("n_bins", [N_BINS, 7])
def test_figures_are_those_of_counting_one_by_one(monkeypatch, n_bins):
    monkeypatch.setattr(daskpipe.stages.select.coverage, "N_BINS", n_bins)
    X, cloud = clouds(250, 4)
    X[:, 3] = 5  # a constant
    picked = pick(X, 20, "random", seed=1)
    found = measure_coverage(X, picked, clusters=cloud)
    expected = [reference.measure_feature(X[:, feature].astype(float), picked.tolist(), n_bins) for feature in range(4)]
    np.testing.assert_allclose(found.entropy_of_feature, [entropy for entropy, _ in expected], rtol=1e-12)
    np.testing.assert_allclose(found.bins_hit_of_feature, [hit for _, hit in expected], rtol=1e-12)
    assert found.entropy == pytest.approx(np.mean([entropy for entropy, _ in expected]))
    assert found.bins_hit == pytest.approx(np.mean([hit for _, hit in expected]))
    assert found.clusters_hit == len(set(cloud[picked])) / len(set(cloud))
    nearest = reference.nearest_distances(X, picked.tolist())
    assert found.n_probes == 250
    figures = (found.nearest_mean, found.nearest_p95, found.nearest_max)
    np.testing.assert_allclose(figures, (np.mean(nearest), np.percentile(nearest, 95), max(nearest)), rtol=1e-5)
    assert (found.n_pool, found.n_picked) == (250, 20)
    assert (found.elements_hit, found.element_sets_hit) == (None, None)


@settings(max_examples=15, deadline=None)
@given(rows=row_chunks(200))
def test_chunks_do_not_matter(rows):
    X, _ = clouds(200)
    picked = pick(X, 15)
    assert measure_coverage(chunked(X, rows), picked) == measure_coverage(X, picked)


def test_clusters_are_made_where_none_are_given():
    X, cloud = clouds(400)
    everywhere = measure_coverage(X, np.arange(400))
    corner = measure_coverage(X, np.flatnonzero(cloud == 0)[:5])
    assert (everywhere.clusters_hit, everywhere.n_clusters) == (1, 256)
    assert (corner.clusters_hit, corner.n_clusters) == (1 / 5, 5)


def test_as_many_clusters_as_picks_can_all_be_hit():
    X, _ = clouds(600)
    spread = measure_coverage(X, pick(X, 24, "fps"))
    bunched = measure_coverage(X, np.sort(np.argsort(np.linalg.norm(X - X[0], axis=1))[:24]))
    assert spread.n_clusters == bunched.n_clusters == 24
    assert spread.clusters_hit > 0.6 > 0.2 > bunched.clusters_hit


def test_picking_everything_covers_everything():
    X, _ = clouds(100)
    found = measure_coverage(X, np.arange(100), elements=np.eye(100, 3, dtype=bool))
    perfect = (found.entropy, found.bins_hit, found.clusters_hit, found.elements_hit, found.element_sets_hit)
    assert perfect == (1, 1, 1, 1, 1)
    assert found.nearest_max == 0


def test_elements_and_sets_of_elements_are_counted():
    held = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]], dtype=bool)
    found = measure_coverage(np.eye(5), np.array([1, 4]), elements=held)
    assert found.elements_hit == 2 / 3  # the last element occurs nowhere
    assert found.element_sets_hit == 1 / 4


def test_probes_are_bounded_and_not_the_random_picks(monkeypatch):
    monkeypatch.setattr(daskpipe.stages.select.coverage, "N_PROBES", 40)
    X, _ = clouds(300)
    found = measure_coverage(X, pick(X, 100, "random", seed=0), seed=0)
    assert found.n_probes == 40
    assert found.nearest_mean > 0


def test_figures_are_json():
    X, _ = clouds(60)
    found = measure_coverage(X, np.arange(10))
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()
    assert len(found.as_dict()["bins_hit_of_feature"]) == 3


@pytest.mark.parametrize(
    "picked", [[], [3, 2], [2, 2], [0, 60], [-1, 3]], ids=["none", "unsorted", "twice", "end", "neg"]
)
def test_picks_that_are_not_rows_are_refused(picked):
    X, _ = clouds(60)
    with pytest.raises(ValueError, match="picked must be sorted, distinct rows of the 60 in X, at least one; received"):
        measure_coverage(X, np.array(picked, dtype=np.int64))


@pytest.mark.parametrize("name", ["clusters", "elements"])
def test_arrays_of_other_length_are_refused(name):
    X, _ = clouds(60)
    with pytest.raises(ValueError, match=f"{name} must have a row for each of the 60 in X, received 59"):
        measure_coverage(X, np.arange(5), **{name: np.zeros((59, 2))})
