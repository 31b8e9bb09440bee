"""Select: the frames that are worth a label.

Needs: features as a chunked Dask array (or NumPy), structure ids for the canonical order.
Makes: sorted indices of the picks, the stratum of each, and why it was picked.
Plugins: entry-point group ``daskpipe.selectors``.
Entry: `daskpipe.pick` (indices from an array), `daskpipe.select.stage.select` (a run's unit).
Memory per partition: one block of features, the picks' distances and 16 bytes a frame.
"""

from daskpipe.registry import Registry

SELECTORS = Registry(
    "selector",
    {
        "kmeans": "daskpipe.select.kmeans:KMeansStrata",
        "random": "daskpipe.select.random:Random",
    },
    group="daskpipe.selectors",
    given=("n", "seed"),
)
