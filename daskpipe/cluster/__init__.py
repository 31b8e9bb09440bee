"""Connect to Dask workers: of this machine, of a site with a job queue, or of a scheduler that others started.

Needs: section ``cluster`` of the config; a site also its file in ``jobqueue/`` or ``~/.config/daskpipe/jobqueue/``.
Makes: connected `daskpipe.engine.dask_pool.Workers`; for a site keys, job logs and ``jobs.jsonl`` in the run directory.
Plugin group: ``daskpipe.queues``, one `daskpipe.cluster.queues.QueueSystem` a name.
Entry functions: `daskpipe.cluster.connect.connect` and `check_cluster`.
Memory: workers share the memory of their job, or 90 % of the memory of this machine.

Never imports stages or potentials.
"""
