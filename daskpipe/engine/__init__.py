"""Run units of work: keys, the run directory, commit by rename, attempts, checkpoints, the dispatcher and the driver.

A unit is one partition of one stage. Dask moves units and holds no truth; the run directory does. ``dask_pool`` is the
only module that knows Dask's resources.
"""
