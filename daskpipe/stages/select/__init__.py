"""Select: pick the frames that get a label.

Needs: features as a chunked Dask array (or NumPy), structure ids for the canonical order.
Makes: sorted indices of the picks, the stratum of each, its reason, and a report of the coverage.
Plugins: entry-point group ``daskpipe.selectors``.
Entry: `daskpipe.pick` (indices from an array), `daskpipe.stages.select.stage.select` (a run's unit).
Memory: one chunk, a sample of 2**18 rows, and some 30 bytes a frame; ``fps`` alone holds all features.
"""

from daskpipe.core.registry import Registry

SELECTORS = Registry(
    "selector",
    {
        "direct": "daskpipe.stages.select.direct:Direct",
        "environments": "daskpipe.stages.select.environments:Environments",
        "fps": "daskpipe.stages.select.fps:FarthestPoints",
        "kmeans": "daskpipe.stages.select.kmeans:KMeansStrata",
        "random": "daskpipe.stages.select.random:Random",
        "stride": "daskpipe.stages.select.stride:Stride",
    },
    group="daskpipe.selectors",
    given=("n", "seed"),
)
