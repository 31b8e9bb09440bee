import io
import pickle

import pytest
import torch

from daskpipe.load import Batch, TorchDataset, collate
from daskpipe.load.batch import ALIGNMENT


@pytest.fixture(scope="module")
def batch(store) -> Batch:
    return collate(TorchDataset(store).__getitems__([4, 0, 11]), cutoff=3.2)


def test_all_tensors_are_views_of_one_buffer(batch):
    first = batch.buffer.data_ptr()
    assert sum(tensor.nbytes for tensor in batch.values()) <= batch.buffer.nbytes
    ends = first
    for tensor in batch.values():
        assert tensor.data_ptr() >= ends
        assert tensor.data_ptr() % ALIGNMENT == 0
        assert tensor.is_contiguous()
        ends = tensor.data_ptr() + tensor.nbytes
    assert ends <= first + batch.buffer.nbytes
    before = batch["energy"].clone()
    batch["energy"].add_(1)
    assert torch.equal(Batch(batch.buffer, batch.layout)["energy"], before + 1)
    batch["energy"].sub_(1)


def test_it_reads_like_a_dict(batch):
    assert list(batch) == list(batch.keys()) == list(dict(batch))
    assert len(batch) == len(batch.keys())
    assert "forces" in batch
    assert "virials" not in batch
    assert batch.n_structures == 3
    assert "Batch(3 structures: " in repr(batch)
    with pytest.raises(KeyError, match="unknown tensor 'force'. Did you mean 'forces'"):
        batch["force"]


def test_pickled_it_is_one_tensor(batch):
    batch.state = {"epoch": 3}
    again = pickle.loads(pickle.dumps(batch))
    assert again.state == {"epoch": 3}
    assert list(again) == list(batch)
    for name in batch:
        torch.testing.assert_close(again[name], batch[name], rtol=0, atol=0, equal_nan=True)
    tensors = []

    class Counting(pickle.Pickler):
        def reducer_override(self, item):
            if isinstance(item, torch.Tensor):
                tensors.append(item)
            return NotImplemented

    Counting(io.BytesIO()).dump(batch)
    assert len(tensors) == 1


def test_it_moves_as_a_whole(batch):
    assert batch.to("cpu") is batch
    away = batch.to("meta")
    assert {tensor.device.type for tensor in away.values()} == {"meta"}
    assert away["forces"].shape == batch["forces"].shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_is_pinned_and_moves_to_a_gpu(batch):
    pinned = batch.pin_memory()
    assert all(tensor.is_pinned() for tensor in pinned.values())
    away = pinned.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    for name in batch:
        torch.testing.assert_close(away[name].cpu(), batch[name], rtol=0, atol=0, equal_nan=True)


def test_it_splits_into_structures_with_their_edges(store, batch):
    data = TorchDataset(store)
    for item, row in zip(batch.structures(), [4, 0, 11], strict=True):
        alone = collate(data.__getitems__([row]), cutoff=3.2)
        assert set(item) == set(alone) - {"batch", "ptr"}
        for name in ("edge_index", "shifts", "unit_shifts", "positions"):
            assert torch.equal(item[name], alone[name])
        assert torch.equal(item["energy"], alone["energy"][0])
