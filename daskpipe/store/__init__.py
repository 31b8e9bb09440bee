"""Store: labelled structures in one immutable Zarr group that any xarray opens.

Needs: a dataset of `daskpipe.variables`, in memory (or lazy: it is written one chunk after the other).
Makes: ``dataset.zarr`` in schema ``daskpipe/1``: globally shuffled, split by whole groups, uncompressed,
    with a checksum of every file; published by rename, so that it is whole or absent.
Entry: `daskpipe.store.pack` (arrange, then write); `open_dataset`, `verify`, `export` on what it made.
Memory: `arrange` holds the dataset twice; writing, reading, verifying and exporting hold one chunk an array
    (2**20 atoms or 65,536 structures; about 40 MB).
Placement: one task, anywhere.
"""

from daskpipe.store.export import export
from daskpipe.store.reader import open_dataset, verify
from daskpipe.store.stage import arrange, pack
from daskpipe.store.writer import write_dataset

__all__ = ["arrange", "export", "open_dataset", "pack", "verify", "write_dataset"]
