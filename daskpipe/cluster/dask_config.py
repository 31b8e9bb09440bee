"""Set Dask's options for the workers and the scheduler of a run."""

from __future__ import annotations

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "TORCH_NUM_THREADS")
"""Environment variables with the number of threads of a library."""

# Dask would also set MALLOC_TRIM_THRESHOLD_, which lets malloc map and unmap each tensor above 128 kB: the kernel then
# took 30 % to 40 % of the time of molecular dynamics with MACE.
WORKER_ENVIRONMENT = dict.fromkeys(THREADS, "1")
"""Environment variables of a worker."""

WORKER_CONFIG = {
    # Set before the process starts, since malloc and OpenMP look only once.
    "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
    "distributed.worker.daemon": True,
    # Workers keep nothing that could be spilled, and a paused worker never resumes; one that takes too much is ended.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    # A worker's web server has no login, so it has no pages.
    "distributed.worker.http.routes": [],
    # Units take seconds: at Dask's 10 ms, sampling what each thread does took 6 % of the time of small runs.
    "distributed.worker.profile.interval": "100ms",
}
"""Dask's options for the nanny that starts workers, on this machine or in a job."""

DASK_CONFIG = {
    **WORKER_CONFIG,
    # The driver owns retries: a lost worker is reported at once instead of killing three more.
    "distributed.scheduler.allowed-failures": 0,
    # Dask would close the nanny of a worker that takes longer than 15 s to be back, and start no other one.
    "distributed.deploy.lost-worker-timeout": "1 day",
    "distributed.admin.tick.limit": "30s",
}
"""Dask's options for the process of the driver, which has the scheduler in it."""
