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
from daskpipe.cluster.gpus import count_gpus, visible_gpu
from daskpipe.cluster.settings import Cluster
from daskpipe.core.errors import ClusterError
from daskpipe.core.events import Emit
from daskpipe.engine.dask_pool import GPU, Workers

CONNECT_SECONDS = 20


MOST_WORKERS = 8
"""Local workers that are started if no number is given."""


WORKER_BYTES = 2 * 10**9
"""Memory that a local worker has at least, as far as their number is chosen here."""


SHARE_OF_MEMORY = 0.9
"""The rest is the driver's."""


NANNY_PROCESS = "Dask Worker process (from Nanny)"
"""Name that Dask's nannies give to the processes of their workers."""


class OutputToFile(WorkerPlugin):
    """Worker plugin: what the process prints goes to a file.

    Parameters
    ----------
    path
        File to append to.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def setup(self, worker: object) -> None:
        """Point standard output and error of the process at the file; C libraries included."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        os.close(descriptor)


def start_local_workers(settings: Cluster, log: Path | None, dashboard: str | None, emit: Emit) -> Iterator[Workers]:
    """Start workers on this machine and yield them; end them afterwards."""
    from distributed import Client, Nanny

    n_workers, n_gpus = count_local_workers(settings)
    security = None if settings.insecure else tls.make_keys()  # in memory only
    options = {
        "host": LOOPBACK,
        "protocol": tls.choose_protocol(security),
        "security": security,
        "nthreads": 1,
        "memory_limit": settings.memory if settings.memory != "auto" else _share_of_memory(n_workers),
        "dashboard": False,
        "silence_logs": logging.ERROR,
    }
    workers = {}
    for number in range(n_workers):
        environment = {}
        resources = {}
        if number < n_gpus:
            environment["CUDA_VISIBLE_DEVICES"] = visible_gpu(number)
            resources = {GPU: 1}
        else:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        workers[number] = {"cls": Nanny, "options": {**options, "resources": resources, "env": environment}}
    with ExitStack() as started:
        try:
            started.enter_context(_main_module_left_out())
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
    """Return how many workers are started on this machine, and how many of them offer a GPU."""
    n_gpus = count_gpus() if settings.gpus is None else settings.gpus
    return max(settings.workers or default_worker_count(), n_gpus), n_gpus


def default_worker_count() -> int:
    """Return how many workers this machine is good for, by its cores and its memory."""
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    return max(1, min(MOST_WORKERS, CPU_COUNT, int(MEMORY_LIMIT * SHARE_OF_MEMORY) // WORKER_BYTES))


def _share_of_memory(n_workers: int) -> int:
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT * SHARE_OF_MEMORY / n_workers)


@contextmanager
def _main_module_left_out() -> Iterator[None]:
    """Keep the processes of local workers, those that a nanny starts later included, from importing ``__main__``.

    Python's spawn runs the caller's script a second time in each process, so that a script that calls `daskpipe.run`
    without ``if __name__ == "__main__":`` would call it in its workers, too. Units need nothing of that module, and
    what Dask sends of it is sent by value.
    """
    complete = spawn.get_preparation_data

    def without_main(name: str) -> dict[str, Any]:
        data = complete(name)
        if name == NANNY_PROCESS:
            data.pop("init_main_from_name", None)
            data.pop("init_main_from_path", None)
        return data

    spawn.get_preparation_data = without_main
    try:
        yield
    finally:
        spawn.get_preparation_data = complete
