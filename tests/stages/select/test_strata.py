import math

import numpy as np
import pytest
from chunking import chunked
from clouds import clouds, on_a_lattice
from reference import strata as reference

import daskpipe.stages.select.strata
from daskpipe.stages.select.blocks import Blocks
from daskpipe.stages.select.direct import Direct, principal_axes
from daskpipe.stages.select.kmeans import KMeansStrata


def order_of(n_rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(n_rows)


@pytest.mark.parametrize("allocation", ["equal", "proportional", "sqrt"])
@pytest.mark.parametrize("within", ["nearest", "spread"])
@pytest.mark.parametrize(("n", "n_clusters"), [(24, None), (24, 3), (10, 20), (150, 5)])
def test_kmeans_picks_are_those_of_the_plain_algorithm(allocation, within, n, n_clusters):
    X, _ = clouds(200)
    blocks = Blocks(X, order_of(200))
    selector = KMeansStrata(n=n, seed=0, n_clusters=n_clusters, allocation=allocation, within=within)
    picks = selector.pick(blocks)
    assert len(selector.centers) == (n_clusters or n // 4)
    expected = reference.pick_rows(X.astype(float), selector.centers.astype(float), n, blocks.rank, allocation, within)
    assert picks.index.tolist() == expected
    assert picks.reason == f"kmeans_{within}"
    nearest = [int(np.argmin([math.dist(X[row], center) for center in selector.centers])) for row in picks.index]
    assert picks.cluster.dtype == np.int32
    assert picks.cluster.tolist() == nearest


@pytest.mark.parametrize("within", ["nearest", "spread"])
@pytest.mark.parametrize("seed", range(3))
def test_ties_go_to_the_earlier_row(within, seed):
    X = on_a_lattice(150, seed=seed)
    blocks = Blocks(X, order_of(150, seed))
    selector = KMeansStrata(n=40, seed=0, n_clusters=4, within=within)
    index = selector.pick(blocks).index
    expected = reference.pick_rows(X.astype(float), selector.centers.astype(float), 40, blocks.rank, "sqrt", within)
    assert index.tolist() == expected


def test_spread_reads_the_strata_in_several_passes(monkeypatch):
    X = np.random.default_rng(0).random((200, 3)).astype(np.float32)
    passes = []
    gather = Blocks.gather_rows
    monkeypatch.setattr(Blocks, "gather_rows", lambda self, rows: passes.append(len(rows)) or gather(self, rows))

    def picked():
        passes.clear()
        return KMeansStrata(n=60, seed=0, n_clusters=6).pick(Blocks(chunked(X, (80, 120)), order_of(200))).index

    # The first pass is that of the sample.
    expected = picked()
    n_passes, n_members = len(passes), sum(passes)
    monkeypatch.setattr(daskpipe.stages.select.strata, "SPREAD_BYTES", 3 * 4 * 100)
    np.testing.assert_array_equal(picked(), expected)
    assert sum(passes) == n_members
    assert len(passes) > n_passes
    assert max(passes[1:]) <= 100


def test_of_a_stratum_that_is_too_large_the_nearest_and_the_first_take_part(monkeypatch):
    X, _ = clouds(200)
    monkeypatch.setattr(daskpipe.stages.select.strata, "SPREAD_BYTES", 3 * 4 * 50)
    blocks = Blocks(X, order_of(200))
    selector = KMeansStrata(n=20, seed=0, n_clusters=1)
    index = selector.pick(blocks).index
    stratum = reference.sort_members(X.astype(float), selector.centers.astype(float), blocks.rank)[0]
    part = [stratum[0], *sorted(stratum[1:], key=lambda row: blocks.rank[row])[:49]]
    assert index.tolist() == sorted(reference.take_spread(part, 20, X.astype(float), blocks.rank))


@pytest.mark.parametrize(("n", "n_clusters"), [(24, None), (60, 6), (180, 20), (10, 20)])
@pytest.mark.parametrize("weighted", [True, False])
def test_direct_picks_are_those_of_the_plain_algorithm(n, n_clusters, weighted):
    X, _ = clouds(200, 6)
    blocks = Blocks(X, order_of(200))
    selector = Direct(n=n, seed=0, n_clusters=n_clusters, weighted=weighted)
    picks = selector.pick(blocks)
    assert selector.axes is not None
    projected = selector.axes(X).astype(float)
    expected = reference.pick_rows(projected, selector.centers.astype(float), n, blocks.rank, "equal", "evenly")
    assert picks.index.tolist() == expected
    assert picks.reason == "direct"
    assert len(selector.centers) == (n_clusters or max(1, n // 9))


@pytest.mark.parametrize("weighted", [True, False])
def test_axes_are_those_of_scikit_learn_by_kaisers_rule(weighted):
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    X = rng.standard_normal((500, 3)) @ rng.standard_normal((3, 8)) + 0.3 * rng.standard_normal((500, 8)) + 5
    X *= np.arange(1, 9)
    scaled = StandardScaler().fit_transform(X)
    pca = PCA().fit(scaled)
    n_axes = int((pca.explained_variance_ > 1).sum())
    assert 1 < n_axes < 8
    expected = pca.transform(scaled)[:, :n_axes] * (pca.explained_variance_ratio_[:n_axes] if weighted else 1)
    found = principal_axes(X, weighted=weighted)(X)
    assert found.dtype == np.float32
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, rtol=1e-4, atol=1e-5)


def test_a_feature_that_never_varies_does_not_count():
    X, _ = clouds(100, 4)
    constant = np.concatenate([X, np.full((100, 1), 7.0, dtype=np.float32)], axis=1)
    np.testing.assert_allclose(np.abs(principal_axes(constant).axes[-1]), 0, atol=1e-12)
    assert np.isfinite(principal_axes(constant)(constant)).all()


def test_selectors_can_be_driven_block_by_block():
    X, _ = clouds(300, 6)
    for selector in (KMeansStrata(n=20, seed=0), Direct(n=40, seed=0)):
        for start in range(0, 300, 100):
            selector.fit_block(X[start : start + 100])
        cluster, distance = selector.assign(X)
        assert cluster.shape == distance.shape == (300,)
        assert cluster.max() == len(selector.centers) - 1


def test_axes_are_needed_before_rows_are_assigned():
    with pytest.raises(ValueError, match="axes were not fitted yet; call fit_block first"):
        Direct(n=3, seed=0).assign(np.zeros((2, 2)))
