"""Run units of work: keys, the run directory, commit by rename, attempts, checkpoints, the dispatcher and the driver.

A unit is one partition of one stage. Dask only moves units; what counts is what stands in the run directory.
``dask_pool`` is the only module that knows Dask's resources.
"""
