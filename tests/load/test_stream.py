import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from load_samples import N_STRUCTURES, forks
from torch.utils.data import DataLoader

from daskpipe.core.errors import ConfigError
from daskpipe.load import TorchDataset, TorchStream
from daskpipe.load.epoch import atom_batches, epoch_order, even_batches

SMALL = {"block": 3, "buffer": 2, "seed": 1}


def batches_of(stream, workers=0, context=None):
    """Return the rows and the state of each batch."""
    loader = DataLoader(stream, batch_size=None, num_workers=workers, multiprocessing_context=context)
    return [(batch["index"].tolist(), batch.state) for batch in loader]


@forks
@pytest.mark.parametrize("limit", [{"batch_size": 3}, {"max_atoms": 20}], ids=str)
def test_batches_do_not_depend_on_the_number_of_workers(store, limit):
    stream = TorchStream(store, **limit, **SMALL)
    alone = batches_of(stream)
    assert sorted(row for rows, _ in alone for row in rows) == list(range(N_STRUCTURES))
    assert len(stream) == len(alone)
    assert batches_of(stream, 2, "fork") == alone
    assert batches_of(stream, 4, "fork") == alone
    if "batch_size" in limit:
        assert {len(rows) for rows, _ in alone} == {2, 3}
        assert batches_of(stream, 2, "spawn") == alone


def test_batches_hold_what_the_dataset_holds(store, any_layout):
    data = TorchDataset(store)
    seen = 0
    for batch in TorchStream(any_layout, "train", max_atoms=16, **SMALL):
        expected = data.__getitems__(batch["index"])
        assert set(batch) == set(expected)
        for name in batch:
            torch.testing.assert_close(batch[name], expected[name], rtol=0, atol=0, equal_nan=True)
        seen += batch.n_structures
    assert seen == len(TorchDataset(store, "train")) > 0


def test_epochs_differ_and_come_again(store):
    stream = TorchStream(store, batch_size=4, **SMALL)
    first = batches_of(stream)
    stream.set_epoch(1)
    second = batches_of(stream)
    assert [rows for rows, _ in first] != [rows for rows, _ in second]
    stream.set_epoch(0)
    assert batches_of(stream) == first
    in_order = TorchStream(store, batch_size=4, shuffle=False)
    assert [row for rows, _ in batches_of(in_order) for row in rows] == list(range(N_STRUCTURES))


@forks
def test_persistent_workers_see_the_epoch(store):
    stream = TorchStream(store, batch_size=4, **SMALL)
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    epochs = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        epochs.append([(batch["index"].tolist(), batch.state) for batch in loader])
    assert epochs[0] == batches_of_epoch(stream, 0)
    assert epochs[1] == batches_of_epoch(stream, 1)


def batches_of_epoch(stream, epoch):
    stream.set_epoch(epoch)
    return batches_of(stream)


@forks
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 3), (3, 0)])
def test_a_resumed_stream_goes_on_with_the_next_batch(store, before, after):
    undisturbed = batches_of_epoch(TorchStream(store, max_atoms=20, **SMALL), 2)
    stream = TorchStream(store, max_atoms=20, **SMALL)
    stream.set_epoch(2)
    loader = DataLoader(stream, batch_size=None, num_workers=before, multiprocessing_context="fork" if before else None)
    seen = []
    for batch in loader:
        seen.append((batch["index"].tolist(), batch.state))
        if len(seen) == 3:  # others are prefetched already
            break
    del loader
    again = TorchStream(store, max_atoms=20, **SMALL)
    again.load_state_dict(seen[-1][1])
    assert again.epoch == 2
    again.set_epoch(2)  # as a loop over epochs does
    rest = batches_of(again, after, "fork" if after else None)
    assert 0 < len(rest) < len(undisturbed)
    assert seen + rest == undisturbed
    again.set_epoch(3)
    assert len(batches_of(again)) == len(again)


@forks
def test_two_ranks_with_workers_that_all_stop_and_go_on_give_each_structure_once(store):
    ranks = {"world": 2, "batch_size": 2, **SMALL}
    seen, states = [], []
    for rank in range(2):
        first = batches_of(TorchStream(store, rank=rank, **ranks), 2, "fork")[:3]
        seen += [row for rows, _ in first for row in rows]
        states.append(first[-1][1])
    assert 0 < len(seen) < N_STRUCTURES
    for rank in range(2):
        stream = TorchStream(store, rank=rank, **ranks)
        stream.load_state_dict(states[1 - rank])  # both have come as far
        seen += [row for rows, _ in batches_of(stream, 4, "fork") for row in rows]
    assert sorted(seen) == list(range(N_STRUCTURES))


def test_a_state_after_the_last_batch_leaves_nothing(store):
    stream = TorchStream(store, batch_size=6, **SMALL)
    stream.load_state_dict(batches_of(stream)[-1][1])
    assert len(stream) == 0
    assert batches_of(stream) == []


@forks
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_one_pass_goes_on_and_later_ones_are_whole(store, workers, persistent):
    stream = TorchStream(store, batch_size=3, **SMALL)
    whole = batches_of(stream)
    assert len(stream) == len(whole)
    stream.load_state_dict(whole[0][1])
    loader = DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
        multiprocessing_context="fork" if workers else None,
    )
    assert len(stream) == len(loader) == len(whole) - 1
    passes = []
    for _ in range(3):
        n_batches = len(loader)  # torch warns of passes that are longer than this length
        passes.append([(batch["index"].tolist(), batch.state) for batch in loader])
        assert len(passes[-1]) == n_batches
    assert passes == [whole[1:], whole, whole]  # without set_epoch
    assert len(stream) == len(whole)
    stream.load_state_dict(whole[1][1])
    assert [rows for rows, _ in batches_of(stream)] == [rows for rows, _ in whole[2:]]


@forks
def test_a_pass_on_other_workers_is_whole(store):
    stream = TorchStream(store, batch_size=2, **SMALL)
    whole = batches_of(stream)
    stream.load_state_dict(whole[0][1])
    assert batches_of(stream, 1, "fork") == whole[1:]
    assert batches_of(stream, 3, "fork") == whole


def test_a_state_of_another_stream_is_refused(store, chunked):
    state = batches_of(TorchStream(store, batch_size=6, **SMALL))[0][1]
    others = {
        "dataset": TorchStream(chunked, batch_size=6, **SMALL),
        "split": TorchStream(store, "train", batch_size=6, **SMALL),
        "seed": TorchStream(store, batch_size=6, **SMALL | {"seed": 2}),
        "world": TorchStream(store, batch_size=6, **SMALL, rank=0, world=2),
        "batch_size": TorchStream(store, batch_size=5, **SMALL),
    }
    for name, stream in others.items():
        with pytest.raises(ConfigError, match=f"the state is of a stream with {name}=.*make the stream as it was"):
            stream.load_state_dict(state)


@pytest.mark.parametrize("limit", [{"batch_size": 3}, {"max_atoms": 20}], ids=str)
def test_ranks_share_the_epoch(store, limit):
    ranks = [batches_of(TorchStream(store, **limit, **SMALL, rank=rank, world=2)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    rows = [row for rank in ranks for rows, _ in rank for row in rows]
    assert sorted(rows) == list(range(N_STRUCTURES))
    assert ranks[0][1][1] == ranks[1][1][1]  # any rank's state serves all


def test_cutoff_and_dtype(store):
    batch = next(iter(TorchStream(store, batch_size=6, cutoff=3.2, dtype=torch.float32)))
    assert batch["edge_index"].shape[1] == len(batch["shifts"]) > 0
    assert batch["energy"].dtype == torch.float32


def test_wrong_arguments(store):
    with pytest.raises(ConfigError, match="batch_size=None, max_atoms=None: give exactly one of them"):
        TorchStream(store)
    with pytest.raises(ConfigError, match="batch_size=1, max_atoms=9: give exactly one of them"):
        TorchStream(store, batch_size=1, max_atoms=9)
    with pytest.raises(ConfigError, match="buffer=0: give at least 1"):
        TorchStream(store, batch_size=1, buffer=0)
    with pytest.raises(ConfigError, match="max_atoms=3 is less than the largest structure; give at least 8"):
        TorchStream(store, max_atoms=3)
    with pytest.raises(ConfigError, match="20 structures are too few for 21 ranks"):
        TorchStream(store, batch_size=1, rank=0, world=21)
    with pytest.raises(ConfigError, match="20 structures are too few for 21 ranks"):
        TorchStream(store, max_atoms=100, rank=0, world=21)
    with pytest.raises(ConfigError, match="rank=2 of world=2: give a rank from 0 to 1"):
        TorchStream(store, batch_size=1, rank=2, world=2)
    with pytest.raises(ConfigError, match="rank=None, world=2: give both"):
        TorchStream(store, batch_size=1, world=2)


@given(n=st.integers(1, 200), block=st.integers(1, 50), buffer=st.integers(1, 9), epoch=st.integers(0, 3))
def test_an_order_is_a_permutation_of_blocks(n, block, buffer, epoch):
    order = epoch_order(n, seed=0, epoch=epoch, block=block, buffer=buffer)
    assert sorted(order.tolist()) == list(range(n))
    if n % block == 0:  # all windows but the last hold `buffer` whole blocks
        for first in range(0, n, block * buffer):
            window = order[first : first + block * buffer]
            assert np.bincount(window // block).max() == np.bincount(window // block)[window[0] // block] == block


@given(n=st.integers(1, 300), batch_size=st.integers(1, 40), world=st.integers(1, 5))
def test_even_batches(n, batch_size, world):
    if n < world:
        with pytest.raises(ConfigError, match="too few"):
            even_batches(n, batch_size, world)
        return
    sizes = np.diff(even_batches(n, batch_size, world))
    assert sizes.sum() == n
    assert len(sizes) % world == 0
    assert sizes.min() >= 1
    assert sizes.max() <= sizes.min() + 1
    assert sizes.max() <= batch_size or len(sizes) + world > n


@given(n_atoms=st.lists(st.integers(1, 30), min_size=1, max_size=60), slack=st.integers(0, 90), world=st.integers(1, 5))
def test_atom_batches(n_atoms, slack, world):
    n_atoms = np.array(n_atoms)
    limit = int(n_atoms.max()) + slack
    if len(n_atoms) < world:
        with pytest.raises(ConfigError, match="too few"):
            atom_batches(n_atoms, limit, world)
        return
    if (greedy := len(atom_batches(n_atoms, limit, 1)) - 1) + -greedy % world > len(n_atoms):
        with pytest.raises(ConfigError, match=f"one structure a batch, and .* cannot be shared by {world} ranks"):
            atom_batches(n_atoms, limit, world)
        return
    bounds = atom_batches(n_atoms, limit, world)
    assert (bounds[0], bounds[-1]) == (0, len(n_atoms))
    assert (np.diff(bounds) > 0).all()
    assert np.add.reduceat(n_atoms, bounds[:-1]).max() <= limit
    assert (len(bounds) - 1) % world == 0
    assert len(bounds) - 1 < greedy + world
    assert set(atom_batches(n_atoms, limit, 1).tolist()) <= set(bounds.tolist())


TRAIN = """
import json, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from daskpipe.load import TorchStream

store, meeting, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
stream = TorchStream(store, max_atoms=20, block=3, buffer=2, dtype=torch.float32)
model = DistributedDataParallel(torch.nn.Linear(3, 1))
rows = []
for epoch in range(2):
    stream.set_epoch(epoch)
    for batch in DataLoader(stream, batch_size=None):
        model(batch["positions"]).mean().backward()
        rows.append(batch["index"].tolist())
dist.destroy_process_group()
print(json.dumps(rows))
"""


@pytest.mark.slow
def test_two_processes_train_with_ddp(store, tmp_path):
    import json

    script = Path(tmp_path / "train.py")
    script.write_text(TRAIN)
    command = [sys.executable, str(script), str(store), str(tmp_path / "meeting")]
    ranks = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    outputs = [process.communicate()[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    rows = [json.loads(output) for output in outputs]
    assert len(rows[0]) == len(rows[1])
    half = len(rows[0]) // 2
    for epoch in (slice(None, half), slice(half, None)):
        seen = [row for batch in rows[0][epoch] + rows[1][epoch] for row in batch]
        assert sorted(seen) == list(range(N_STRUCTURES))
