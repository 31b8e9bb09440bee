"""Store: labelled structures in one immutable Zarr group that any xarray opens.

Needs: committed units of labelled rows, or a dataset of `daskpipe.core.variables` in memory.
Makes: ``dataset.zarr`` in schema ``daskpipe/1``: globally shuffled, split by whole groups, uncompressed,
    with a checksum of every file; published by rename, so that it is whole or absent.
Entry: in a run ``stage.sort_rows``, ``plan_dataset``, ``write_chunks``, ``publish_chunks``; in memory
    `arrange_and_write`. On a dataset `open_dataset`, `verify`, `export`, ``quality.gate.judge``, ``cold.write_cold``.
Memory: a task holds one run of rows (64 MB) or one chunk an array (2**20 atoms or 65,536 structures; 40 MB),
    ``plan_dataset`` 200 bytes per structure and its features; `arrange_and_write` holds the dataset twice.
Placement: a task each, anywhere.
"""

from daskpipe.store.export import export
from daskpipe.store.reader import open_dataset, verify
from daskpipe.store.stage import arrange_and_write, arrange_dataset
from daskpipe.store.writer import write_dataset

__all__ = ["arrange_and_write", "arrange_dataset", "export", "open_dataset", "verify", "write_dataset"]
