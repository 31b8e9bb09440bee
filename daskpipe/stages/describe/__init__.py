"""Describe: frames to features, chunked Dask arrays.

Needs: frames in the run directory; the elements that occur.
Makes: a float32 array (structure, feature) whose chunks are the exploration units; with ``level: atom`` another one
    (atom, feature) beside it; and the reduction (mean and principal axes of a hash-chosen sample) that all share.
Plugins: entry-point group ``daskpipe.descriptors``; their kit is `daskpipe.testing.check_descriptor`.
Entry: `daskpipe.stages.describe.stage.describe` and `describe_atoms` (Dask arrays), `daskpipe.SOAP` (in memory).
Memory per partition: frames of one unit, and 4 MB of full descriptors for any number of frames.
"""

from daskpipe.stages.describe.catalogue import (
    DESCRIPTORS,
    build_descriptor,
    check_descriptor_settings,
    identify_model,
    uses_device,
)
from daskpipe.stages.describe.rows import compute_fingerprints

__all__ = [
    "DESCRIPTORS",
    "build_descriptor",
    "check_descriptor_settings",
    "compute_fingerprints",
    "identify_model",
    "uses_device",
]
