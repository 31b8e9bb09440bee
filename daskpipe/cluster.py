"""From a name to a Dask client: ``local``, a site of ``jobqueue/``, or the address of a scheduler.

Local listeners are on loopback only. A worker has one thread, and NumPy and torch in it one thread each:
sums over threads round differently on machines with other core counts, and Dask is the parallelism.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin

from daskpipe.config import Cluster, package_folder
from daskpipe.errors import ClusterError, ConfigError, unknown
from daskpipe.placement import GPU, Workers

LOOPBACK = "127.0.0.1"
DASHBOARD_PORT = 8787
CONNECT_SECONDS = 20

SUBMIT_COMMANDS = {
    "HTCondorCluster": "condor_submit",
    "LSFCluster": "bsub",
    "OARCluster": "oarsub",
    "PBSCluster": "qsub",
    "SGECluster": "qsub",
    "SLURMCluster": "sbatch",
}
"""Classes of dask-jobqueue that a site may name, and what they submit jobs with."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "TORCH_NUM_THREADS")

# Dask would also set MALLOC_TRIM_THRESHOLD_, whereupon each tensor above 128 kB is mapped and unmapped anew: 30 % to
# 40 % of the time of molecular dynamics with MACE went into the kernel.
WORKER_ENVIRONMENT = dict.fromkeys(THREADS, "1")

DASK_CONFIG = {
    # Set before the process starts, since malloc and OpenMP look only once.
    "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
    # The driver owns retries: a lost worker is reported at once instead of killing three more.
    "distributed.scheduler.allowed-failures": 0,
    "distributed.admin.tick.limit": "30s",
    "distributed.worker.daemon": True,
}


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
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        os.close(descriptor)


@contextmanager
def connect(settings: Cluster, log: Path | None = None) -> Iterator[Workers]:
    """Yield workers, and close what was started for it.

    Parameters
    ----------
    settings
        Section ``cluster`` of the config.
    log
        File to which workers that are started here append what libraries print, instead of the screen. Its
        folder, which a site's machines must share, holds the keys of a site's cluster while that lives.

    Raises
    ------
    ClusterError
        If the workers cannot be had.
    ConfigError
        If there is no such site.
    """
    import dask

    with dask.config.set(DASK_CONFIG), _quiet():
        if settings.address:
            yield from _join(settings.address)
        elif settings.name == "local":
            yield from _local(settings, log)
        else:
            yield from _site(settings, log)


def check(settings: Cluster) -> None:
    """See, before anything is written or started, that a cluster of that description can be had here.

    Raises
    ------
    ClusterError
        If the scheduler of the site is not installed here.
    ConfigError
        If there is no such site.
    """
    if settings.address or settings.name == "local":
        return
    command = SUBMIT_COMMANDS[read_site(settings.name)["class"]]
    if shutil.which(command) is None:
        raise ClusterError(
            f"cluster {settings.name} needs {command}, and there is none on the PATH. "
            "Type this where jobs are submitted, or give --cluster local"
        )


def _join(address: str) -> Iterator[Workers]:
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise ClusterError(
            f"no scheduler answers at {address}: {error}. Start one: dask scheduler --host 127.0.0.1"
        ) from error
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            raise ClusterError(
                f"the scheduler at {address} has no workers. Start one: dask worker {address} --nthreads 1"
            )
        yield Workers(client)


def _local(settings: Cluster, log: Path | None) -> Iterator[Workers]:
    from distributed import Client, Nanny, Scheduler, SpecCluster

    n_gpus = count_gpus() if settings.gpus is None else settings.gpus
    n_workers = max(settings.workers or min(8, os.cpu_count() or 1), n_gpus)
    options = {
        "host": LOOPBACK,
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
            environment["CUDA_VISIBLE_DEVICES"] = _visible_gpu(number)
            resources = {GPU: 1}
        else:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        workers[number] = {"cls": Nanny, "options": {**options, "resources": resources, "env": environment}}
    scheduler = {
        "cls": Scheduler,
        "options": {
            "host": LOOPBACK,
            "dashboard": settings.dashboard,
            "dashboard_address": f"{LOOPBACK}:{DASHBOARD_PORT}",
        },
    }
    with ExitStack() as started:
        try:
            cluster = started.enter_context(
                SpecCluster(workers={}, scheduler=scheduler, name="daskpipe", silence_logs=logging.ERROR)
            )
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


def _site(settings: Cluster, log: Path | None) -> Iterator[Workers]:
    """Start the pools of a site through dask-jobqueue: TLS between machines, dashboard on loopback."""
    import dask_jobqueue
    from distributed import Client, Security, Status

    site = read_site(settings.name)
    cluster_class = getattr(dask_jobqueue, site["class"])
    job = site["job"]
    if log is not None:
        # dask-jobqueue hands the keys of this cluster to its jobs in files; by default in the present directory.
        job = {"shared_temp_directory": str(log.parent), **job}
    n_jobs = settings.workers or site["workers"]
    refused: list[str] = []

    async def start(job: Any) -> None:
        try:
            await cluster_class.job_cls.start(job)
        except (OSError, RuntimeError) as error:
            # Dask would log it and wait for the job for ever; that it does not run is seen below.
            job.status = Status.running
            refused.append(" ".join(str(error).split()))

    with ExitStack() as started:
        try:
            cluster = started.enter_context(
                cluster_class(
                    **job,
                    job_cls=type("Job", (cluster_class.job_cls,), {"start": start}),
                    n_workers=n_jobs,
                    security=Security.temporary(),
                    scheduler_options={"dashboard_address": f"{LOOPBACK}:{DASHBOARD_PORT}"},
                )
            )
            started.callback(_remove_keys, cluster)
            client = started.enter_context(Client(cluster, set_as_default=False))
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise ClusterError(f"cluster {settings.name} does not start: {error}. See its file in jobqueue/") from error
        while not client.scheduler_info(n_workers=-1)["workers"]:
            if len(refused) >= n_jobs:
                raise ClusterError(f"cluster {settings.name} takes no jobs: {refused[0]}. See its file in jobqueue/")
            time.sleep(0.2)
        yield Workers(client)


def _remove_keys(cluster: Any) -> None:
    """Remove the files through which dask-jobqueue hands keys to its jobs; it leaves that to garbage collection."""
    for name in ("_job_ca_file", "_job_cert", "_job_key"):
        if file := getattr(cluster, name, None):
            file.close()


def read_site(name: str) -> dict[str, Any]:
    """Read the description of a site, from ``jobqueue/`` or a path.

    Raises
    ------
    ConfigError
        If there is none, or a value in it could be read by a shell as more than a value.
    """
    import yaml

    path = Path(name) if name.endswith((".yaml", ".yml")) else package_folder("jobqueue") / f"{name}.yaml"
    known = ["local", *sorted(file.stem for file in package_folder("jobqueue").glob("*.yaml"))]
    if not path.is_file():
        raise ConfigError(unknown("cluster", name, known))
    try:
        site: dict[str, Any] = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    wanted = {"class": str, "workers": int, "job": dict}
    if not isinstance(site, dict) or not all(isinstance(site.get(key), kind) for key, kind in wanted.items()):
        raise ConfigError(f"{path} must hold class: (a word), workers: (a number) and job: (keys and values)")
    if site["class"] not in SUBMIT_COMMANDS:
        raise ConfigError(f"{path}: {unknown('class', site['class'], list(SUBMIT_COMMANDS))}")
    for key, value in site["job"].items():
        if isinstance(value, str) and re.search(r"[;&|`$<>\n\\\"']", value):
            raise ConfigError(f"{path}: job.{key} must not hold shell characters, received {value!r}")
    return site


def count_gpus() -> int:
    """Return the number of NVIDIA GPUs that this process may use; asks the driver, does not import torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([item for item in visible.split(",") if item.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _visible_gpu(number: int) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else []
    return names[number] if number < len(names) else str(number)


def _share_of_memory(n_workers: int) -> int:
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT * 0.9 / n_workers)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the screen what Dask says of lost workers, which the driver reports itself, and of a port that is taken.

    Where that of the dashboard is, Dask takes another one; the link says which.
    """
    parts = ("client", "nanny", "scheduler", "worker", "core")
    names = ("distributed", *(f"distributed.{part}" for part in parts))
    before: Mapping[str, int] = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\s*Port \d+ is already in use", UserWarning)
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
