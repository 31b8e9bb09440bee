import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list

from daskpipe.load import TorchDataset, collate
from daskpipe.load.batch import Batch
from daskpipe.load.neighbours import edges_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mace.data.neighborhood import get_neighborhood

CUTOFF = 4.0
CELL = np.array([[5.0, 0, 0], [1.5, 6, 0], [-2, 0.5, 7]])


def pairs_within(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of a batch of one structure."""
    arrays = {"positions": positions, "cell": cell[None], "pbc": pbc[None], "ptr": np.array([0, len(positions)])}
    batch = Batch.of({name: torch.from_numpy(array) for name, array in arrays.items()})
    edges = edges_of(batch, CUTOFF, torch.float64)
    return edges["edge_index"].numpy(), edges["unit_shifts"].numpy().astype(int)


@pytest.mark.parametrize(
    "pbc", [(1, 1, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]
)
@pytest.mark.parametrize("open_vectors", ["given", "zero"])
def test_pairs_are_those_of_ase(pbc, open_vectors):
    rng = np.random.default_rng(0)
    pbc = np.array(pbc, dtype=bool)
    positions = rng.random((12, 3)) @ CELL + rng.normal(size=3) * 20
    positions[0] += 2 * CELL[1]  # far outside the cell
    cell = CELL if open_vectors == "given" else np.where(pbc[:, None], CELL, 0.0)
    (i, j), shifts = pairs_within(positions, cell, pbc)
    assert not shifts[:, ~pbc].any()
    expected = neighbor_list("ijS", Atoms("H12", positions=positions, cell=cell, pbc=pbc), CUTOFF)
    assert len(i) > 0
    assert sort_edges(i, j, shifts) == sort_edges(*expected)


def sort_edges(i, j, shifts):
    return sorted(map(tuple, np.column_stack([i, j, shifts]).tolist()))


def test_an_atom_alone_has_no_neighbours_but_its_images():
    position = np.zeros((1, 3))
    edges, shifts = pairs_within(position, np.zeros((3, 3)), np.zeros(3, dtype=bool))
    assert (edges.shape, shifts.shape) == ((2, 0), (0, 3))
    edges, shifts = pairs_within(position, np.eye(3) * 3.5, np.ones(3, dtype=bool))
    assert edges.shape == (2, 6)


def test_edges_of_a_batch_are_those_of_mace(store):
    data = TorchDataset(store)
    batch = collate(data.__getitems__(range(len(data))), cutoff=CUTOFF, dtype=torch.float64)
    first = 0
    expected = []
    for item in batch.structures():
        edge_index, shifts, unit_shifts, _ = get_neighborhood(
            item["positions"].numpy(), CUTOFF, tuple(item["pbc"].tolist()), item["cell"].numpy().copy()
        )
        assert sort_edges(*item["edge_index"].numpy(), item["unit_shifts"].numpy()) == sort_edges(
            *edge_index, unit_shifts
        )
        expected += sort_edges(*(edge_index + first), shifts.round(9))
        first += len(item["numbers"])
    edges = sort_edges(*batch["edge_index"].numpy(), batch["shifts"].numpy().round(9))
    assert np.allclose(edges, expected, rtol=0, atol=1e-8)
    i, j = batch["edge_index"]
    lengths = (batch["positions"][j] - batch["positions"][i] + batch["shifts"]).norm(dim=1)
    assert lengths.min() > 0
    assert lengths.max() < CUTOFF
    assert torch.equal(batch["batch"][i], batch["batch"][j])


def test_edges_have_the_dtype_of_the_positions(store):
    batch = collate(TorchDataset(store).__getitems__([1, 2]), cutoff=CUTOFF)
    assert batch["edge_index"].dtype == torch.int64
    assert batch["shifts"].dtype == batch["unit_shifts"].dtype == torch.float32
