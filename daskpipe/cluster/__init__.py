"""Connect to Dask workers: of this machine, of a site with a job queue, or of a scheduler that others started.

Never imports stages or potentials.
"""
