"""Start workers on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin

from daskpipe.cluster import scheduler, tls
from daskpipe.cluster.addresses import LOOPBACK
from daskpipe.cluster.gpus import count_gpus, name_visible_gpu
from daskpipe.cluster.settings import Cluster
from daskpipe.core.errors import ClusterError
from daskpipe.core.events import Emit
from daskpipe.engine.dask_pool import GPU, Workers

CONNECT_SECONDS = 20
"""Seconds that a scheduler has to answer."""

MOST_WORKERS = 8
"""Most local workers if the config gives no number."""

WORKER_BYTES = 2 * 10**9
"""Least memory of a local worker, in bytes, if the config gives no number of workers."""

SHARE_OF_MEMORY = 0.9
"""Share of the machine's memory for the workers; the rest is for the driver."""

NANNY_PROCESS = "Dask Worker process (from Nanny)"
"""Name that Dask's nannies give to the processes of their workers."""


class OutputToFile(WorkerPlugin):
    """Worker plugin that writes the output of the process to a file.

    Parameters
    ----------
    path
        File to append to.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def setup(self, worker: object) -> None:
        """Redirect standard output and error of the process to the file, those of C libraries included."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        os.close(descriptor)


def start_local_workers(settings: Cluster, log: Path | None, dashboard: str | None, emit: Emit) -> Iterator[Workers]:
    """Start a scheduler and workers on this machine, yield them, and end them.

    Parameters
    ----------
    settings
        Section ``cluster`` of the config.
    log
        File to which the workers append what libraries print; None to print it on the screen.
    dashboard
        Address and port of the dashboard; None for none.
    emit
        Called with an `Insecure` event if there is no TLS.

    Raises
    ------
    ClusterError
        If the workers cannot be started.
    """
    from distributed import Client, Nanny

    n_workers, n_gpus = count_local_workers(settings)
    security = None if settings.insecure else tls.make_keys()  # in memory only
    options = {
        "host": LOOPBACK,
        "protocol": tls.choose_protocol(security),
        "security": security,
        "nthreads": 1,
        "memory_limit": settings.memory if settings.memory != "auto" else _limit_memory(n_workers),
        "dashboard": False,
        "silence_logs": logging.ERROR,
    }
    workers = {}
    for number in range(n_workers):
        environment = {}
        resources = {}
        if number < n_gpus:
            environment["CUDA_VISIBLE_DEVICES"] = name_visible_gpu(number)
            resources = {GPU: 1}
        else:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        workers[number] = {"cls": Nanny, "options": {**options, "resources": resources, "env": environment}}
    with ExitStack() as started:
        try:
            started.enter_context(_leave_out_main_module())
            cluster = started.enter_context(scheduler.run_scheduler(LOOPBACK, security, dashboard))
            if security is None:
                scheduler.warn_insecure(cluster.scheduler_address, emit)
            # Workers come second, so that a signal that arrives while they start still closes what there is.
            cluster.worker_spec.update(workers)
            cluster.sync(cluster._correct_state)
            client = started.enter_context(Client(cluster, set_as_default=False))
            if log is not None:
                client.register_plugin(OutputToFile(str(log)), name="daskpipe-output")
            client.wait_for_workers(n_workers, timeout=CONNECT_SECONDS * 6)
        except (OSError, RuntimeError, TimeoutError) as error:
            raise ClusterError(
                f"cannot start {n_workers} workers here: {error}. Give fewer: cluster.workers=1"
            ) from error
        yield Workers(client)


def count_local_workers(settings: Cluster) -> tuple[int, int]:
    """Return the number of workers to start on this machine, and the number of them that offer a GPU."""
    n_gpus = count_gpus() if settings.gpus is None else settings.gpus
    return max(settings.workers or choose_worker_count(), n_gpus), n_gpus


def choose_worker_count() -> int:
    """Return the number of workers that the cores and the memory of this machine allow."""
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    return max(1, min(MOST_WORKERS, CPU_COUNT, int(MEMORY_LIMIT * SHARE_OF_MEMORY) // WORKER_BYTES))


def _limit_memory(n_workers: int) -> int:
    """Return the memory limit of a worker in bytes."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT * SHARE_OF_MEMORY / n_workers)


@contextmanager
def _leave_out_main_module() -> Iterator[None]:
    """Keep the processes of local workers from importing ``__main__``, those that a nanny starts later included.

    Python's spawn runs the caller's script again in each process. A script that calls `daskpipe.run` without
    ``if __name__ == "__main__":`` would call it in its workers, too. Units need nothing of that module, and Dask sends
    the script's own functions by value.
    """
    get_complete_data = spawn.get_preparation_data

    def get_data_without_main(name: str) -> dict[str, Any]:
        data = get_complete_data(name)
        if name == NANNY_PROCESS:
            data.pop("init_main_from_name", None)
            data.pop("init_main_from_path", None)
        return data

    spawn.get_preparation_data = get_data_without_main
    try:
        yield
    finally:
        spawn.get_preparation_data = get_complete_data
