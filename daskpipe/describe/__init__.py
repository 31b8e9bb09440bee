"""Describe: frames to features, a chunked Dask array.

Needs: frames in the unit tree; the elements that occur.
Makes: a float32 array (structure, feature) whose chunks are the exploration units, and the reduction
    (mean and principal axes of a hash-chosen sample) that every block shares.
Plugins: entry-point group ``daskpipe.descriptors``.
Entry: `daskpipe.describe.stage.describe` (Dask array), `daskpipe.SOAP` (in memory).
Memory per partition: frames of one unit x n_features of the full descriptor x 4 bytes.
"""

from daskpipe.registry import Registry

DESCRIPTORS = Registry(
    "descriptor",
    {"soap": "daskpipe.describe.soap:SOAP"},
    group="daskpipe.descriptors",
    given=("species", "average"),
)
