"""Make Dask arrays for tests: with the chunks that were asked for, of data that vary between them."""

import dask.array as da
import numpy as np
from hypothesis import strategies as st


def chunked(X: np.ndarray, rows: tuple[int, ...]) -> da.Array:
    """Return `X` as a Dask array with chunks of the given rows, and one chunk along the features."""
    assert sum(rows) == len(X)
    assert (X.max(axis=0) > X.min(axis=0)).all(), "data that do not vary show nothing"
    array = da.from_array(X, chunks=(rows, X.shape[1:]))
    assert array.chunks[0] == rows, "the chunking did not take effect"
    assert array.numblocks == (len(rows), *(1,) * (X.ndim - 1))
    return array


def row_chunks(n_rows: int, most: int = 12) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw sizes of two to `most` chunks, each of at least one row, that add up to `n_rows`."""
    cuts = st.sets(st.integers(1, n_rows - 1), min_size=1, max_size=most - 1)
    return cuts.map(lambda ends: tuple(np.diff([0, *sorted(ends), n_rows]).tolist()))
