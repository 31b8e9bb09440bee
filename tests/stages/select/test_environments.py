import numpy as np
import pytest
from chunking import chunked
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import environments as reference

from daskpipe.stages.select.blocks import Blocks
from daskpipe.stages.select.environments import Environments, cover_clusters
from daskpipe.stages.select.pick import pick


@settings(max_examples=100, deadline=None)
@given(
    held=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=15),
    n=st.integers(1, 20),
    order=st.randoms(use_true_random=False),
)
def test_the_cover_is_that_of_the_plain_algorithm(held, n, order):
    canonical = list(range(len(held)))
    order.shuffle(canonical)
    structures, why = cover_clusters(
        np.concatenate([np.array(clusters) for clusters in held]),
        np.array([len(clusters) for clusters in held]),
        np.array(canonical),
        6,
        n,
    )
    expected = reference.cover_clusters([set(clusters) for clusters in held], np.argsort(canonical).tolist(), n)
    assert list(zip(structures.tolist(), why.tolist(), strict=True)) == expected


N_ORDINARY, N_ATOMS = 200, 8


def frames(seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Atoms of ordinary frames; three of the frames hold one atom of a rare kind each. Frames have 8 or 5 atoms."""
    rng = np.random.default_rng(seed)
    n_atoms = np.where(np.arange(N_ORDINARY) % 3 == 0, 5, N_ATOMS)
    kinds = np.array([[0, 0], [10, 0]])
    atoms = kinds[rng.integers(0, 2, n_atoms.sum())] + 0.1 * rng.standard_normal((n_atoms.sum(), 2))
    rare = [17, 80, 150]
    starts = np.cumsum(n_atoms) - n_atoms
    for kind, frame in enumerate(rare):
        atoms[starts[frame] + 2] = [0, 20 + 10 * kind]
    return atoms.astype(np.float32), n_atoms, rare


def test_frames_with_rare_environments_come_first():
    atoms, n_atoms, rare = frames()
    for seed in range(3):
        assert set(rare) <= set(pick(atoms, 4, "environments", seed, n_atoms=n_atoms, n_clusters=5).tolist())
    # 4 of 200 frames hold none of three in 94 % of random draws.
    assert not set(rare) & set(pick(np.zeros((200, 1)), 4, "random", 0).tolist())


def test_reason_and_cluster_say_what_a_frame_was_picked_for():
    atoms, n_atoms, rare = frames()
    selector = Environments(n=3, seed=0, n_clusters=5)
    picks = selector.pick(Blocks(atoms, np.arange(len(n_atoms)), n_atoms))
    assert picks.index.tolist() == rare
    assert picks.reason == "environments"
    heights = selector.centers[picks.cluster][:, 1]
    np.testing.assert_allclose(heights, [20, 30, 40], atol=0.5)


@pytest.mark.parametrize("rows", [(400, 600), (1, 999), (250,) * 4])
def test_chunks_may_cut_structures(rows):
    atoms, n_atoms, _ = frames()
    atoms, n_atoms = atoms[:1000], n_atoms[np.cumsum(n_atoms) <= 1000]
    n_atoms = np.append(n_atoms, 1000 - n_atoms.sum()) if n_atoms.sum() < 1000 else n_atoms
    expected = pick(atoms, 30, "environments", n_atoms=n_atoms)
    np.testing.assert_array_equal(pick(chunked(atoms, rows), 30, "environments", n_atoms=n_atoms), expected)
    assert len(expected) == 30


def test_it_can_be_driven_block_by_block():
    atoms, _, _ = frames()
    selector = Environments(n=3, seed=0, n_clusters=5)
    for start in range(0, len(atoms), 300):
        selector.fit_block(atoms[start : start + 300])
    cluster, distance = selector.assign(atoms)
    assert len(set(cluster.tolist())) > 1
    np.testing.assert_allclose(distance, np.linalg.norm(atoms - selector.centers[cluster], axis=1), rtol=1e-5)


def test_rows_without_structures_are_refused():
    with pytest.raises(ValueError, match="received no n_atoms; pass n_atoms=..., the number of rows of each structure"):
        pick(np.eye(4), 2, "environments")


@pytest.mark.parametrize(
    "n_atoms", [[2, 1], [2, 2, 0], [2.0, 2.0], [[2, 2]], [5, -1]], ids=["sum", "zero", "float", "2-D", "negative"]
)
def test_atoms_that_do_not_fit_are_refused(n_atoms):
    with pytest.raises(ValueError, match="n_atoms must be positive integers, .* that sum to the 4 rows of X; received"):
        pick(np.eye(4), 2, "environments", n_atoms=np.array(n_atoms))


def test_methods_that_pick_rows_take_no_atoms():
    with pytest.raises(ValueError, match="'kmeans' picks rows and takes no n_atoms; leave it out, or use 'environ"):
        pick(np.eye(4), 2, n_atoms=np.array([2, 2]))
