"""Connect to Dask workers by a name: ``local``, a site of ``jobqueue/``, or the address of a scheduler.

All that is started here talks TLS with keys of the run, on one machine too: other users can reach its ports. Local
listeners are on loopback only. A worker has one thread, and NumPy and torch in it one thread each: sums over threads
round differently on machines with other core counts, and Dask is the parallelism.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import shutil
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing import spawn
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import WorkerPlugin

from daskpipe import jobs
from daskpipe.addresses import LOOPBACK
from daskpipe.config import Cluster
from daskpipe.errors import ClusterError, ConfigError
from daskpipe.events import Emit
from daskpipe.gpus import visible_gpus
from daskpipe.joining import join
from daskpipe.placement import GPU, Workers
from daskpipe.sites import WORKER_CONFIG, site_of

if TYPE_CHECKING:
    from distributed import Security

DASHBOARD_PORT = 8787
CONNECT_SECONDS = 20
LONGEST_GREETING = 2**20
"""Bytes; a greeting has about a hundred."""

MOST_WORKERS = 8
"""Local workers that are started if no number is given."""

WORKER_BYTES = 2 * 10**9
"""Memory that a local worker has at least, as far as their number is chosen here."""

SHARE_OF_MEMORY = 0.9
"""The rest is the driver's."""

NANNY_PROCESS = "Dask Worker process (from Nanny)"
"""Name that Dask's nannies give to the processes of their workers."""

DASK_CONFIG = {
    **WORKER_CONFIG,
    # The driver owns retries: a lost worker is reported at once instead of killing three more.
    "distributed.scheduler.allowed-failures": 0,
    # Dask would close the nanny of a worker that takes longer than 15 s to be back, and start no other.
    "distributed.deploy.lost-worker-timeout": "1 day",
    "distributed.admin.tick.limit": "30s",
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
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        os.close(descriptor)


@contextmanager
def connect(settings: Cluster, log: Path | None = None, emit: Emit = lambda event: None) -> Iterator[Workers]:
    """Yield workers, and close what was started for it.

    Parameters
    ----------
    settings
        Section ``cluster`` of the config.
    log
        File to which workers that are started here append what libraries print, instead of the screen. For a site,
        whose machines must share its folder, keys and logs of jobs lie beside it.
    emit
        Called with what a person should know of a site's jobs.

    Raises
    ------
    ClusterError
        If the workers cannot be had, or would be reached without TLS.
    ConfigError
        If there is no such site.
    """
    import dask

    dashboard = f"{LOOPBACK}:{DASHBOARD_PORT}" if settings.dashboard else None
    with dask.config.set(DASK_CONFIG), _quiet():
        if settings.address:
            yield from _join(settings, settings.address, log, emit)
        elif settings.name == "local":
            yield from _local(settings, log, dashboard, emit)
        elif log is None:
            raise ConfigError(
                f"this has no run directory, which the jobs of cluster {settings.name} would need; "
                "give --cluster local, or the address of a scheduler"
            )
        else:
            site = site_of(settings)
            with jobs.site_workers(site, log.parent, emit, insecure=settings.insecure, dashboard=dashboard) as workers:
                yield workers


def check(settings: Cluster) -> None:
    """See, before anything is written or started, that a cluster of that description can be had here.

    Raises
    ------
    ClusterError
        If the scheduler of the site is not installed here, or would be reached without TLS.
    ConfigError
        If there is no such site.
    """
    if settings.address:
        _check_encrypted(settings, settings.address)
    elif settings.name != "local":
        command = site_of(settings).submit_command
        if shutil.which(command) is None:
            raise ClusterError(
                f"cluster {settings.name} needs {command}, and there is none on the PATH. "
                "Type this where jobs are submitted, or give --cluster local"
            )


# --- a scheduler that others started ----------------------------------------------------------------


def _join(settings: Cluster, address: str, log: Path | None, emit: Emit) -> Iterator[Workers]:
    from distributed import Client

    if not _check_encrypted(settings, address):
        jobs.warn_insecure(address, emit)
    security = _keys(settings, address)
    try:
        _check_speaks_dask(address, security)
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False, security=security)
    except (OSError, ValueError, TimeoutError) as error:
        raise ClusterError(
            f"no scheduler answers at {address}: {error}. Start one: dask scheduler --host 127.0.0.1"
        ) from error
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            raise ClusterError(
                f"the scheduler at {address} has no workers. Start one: dask worker {address} --nthreads 1"
            )
        yield join(client, None if log is None else log.parent, emit)


def _check_speaks_dask(address: str, security: Security | None) -> None:
    """See that a Dask server listens at an address, such as that of a scheduler and not that of its dashboard.

    Dask's client would take the first bytes of anything else for the length of a message, and wait for it for ever. A
    Dask server speaks first: eight bytes say how long its greeting is.

    Raises
    ------
    OSError
        If it cannot be reached, or says something else, or nothing.
    """
    from distributed.comm.addressing import parse_host_port

    protocol, _, location = address.partition("://")
    if protocol not in ("tcp", "tls"):
        return
    host, port = parse_host_port(location)
    with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as plain:
        context = security.get_connection_args("client")["ssl_context"] if security is not None else None
        with context.wrap_socket(plain) if context is not None else plain as connection:
            greeting = connection.makefile("rb").read(8)
    if len(greeting) < 8 or int.from_bytes(greeting, "little") > LONGEST_GREETING:
        raise OSError(f"what listens there is no scheduler; its first bytes are {greeting!r}")


def _check_encrypted(settings: Cluster, address: str) -> bool:
    """Return whether an address talks TLS; refuse one on another machine that does not, unless the config insists."""
    if address.startswith("tls://"):
        return True
    if not settings.insecure and _beyond_this_machine(address.rpartition("://")[2]):
        raise ClusterError(
            f"{address} is not on this machine, and without TLS whoever is on the network could run programs as you. "
            "Start the scheduler with --protocol tls --tls-ca-file ... and give cluster.address=tls://... and "
            "cluster.tls=FOLDER; or, on a network that you trust, cluster.insecure=true"
        )
    return False


def _beyond_this_machine(location: str) -> bool:
    """Tell whether host:port is elsewhere; a host that has no address cannot be reached at all."""
    host = location.rpartition(":")[0].strip("[]") or location
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return not all(ipaddress.ip_address(str(item[4][0]).partition("%")[0]).is_loopback for item in found)


def _keys(settings: Cluster, address: str) -> Security | None:
    """Return the keys of a client: those of the config's folder, or Dask's own; none for plain TCP."""
    from distributed import Security

    if not address.startswith("tls://"):
        return None
    if settings.tls is None:
        security = Security()
        if not security.tls_client_cert:
            raise ClusterError(
                f"{address} needs keys: give cluster.tls=FOLDER with ca.pem, cert.pem and key.pem, "
                "or distributed.comm.tls in Dask's config"
            )
        return security
    folder = Path(settings.tls).expanduser()
    if missing := [name for name in jobs.KEY_FILES if not (folder / name).is_file()]:
        raise ClusterError(
            f"cluster.tls={settings.tls} holds no {', '.join(missing)}; give a folder with all three keys"
        )
    ca, cert, key = (str(folder / name) for name in jobs.KEY_FILES)
    return Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True)


# --- workers on this machine ------------------------------------------------------------------------


def _local(settings: Cluster, log: Path | None, dashboard: str | None, emit: Emit) -> Iterator[Workers]:
    from distributed import Client, Nanny

    n_workers, n_gpus = local_workers(settings)
    security = None if settings.insecure else jobs.make_keys()  # in memory only
    options = {
        "host": LOOPBACK,
        "protocol": jobs.protocol(security),
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
            environment["CUDA_VISIBLE_DEVICES"] = _visible_gpu(number)
            resources = {GPU: 1}
        else:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        workers[number] = {"cls": Nanny, "options": {**options, "resources": resources, "env": environment}}
    with ExitStack() as started:
        try:
            started.enter_context(_main_module_left_out())
            cluster = started.enter_context(jobs.scheduler(LOOPBACK, security, dashboard))
            if security is None:
                jobs.warn_insecure(cluster.scheduler_address, emit)
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


def local_workers(settings: Cluster) -> tuple[int, int]:
    """Return how many workers are started on this machine, and how many of them offer a GPU."""
    n_gpus = count_gpus() if settings.gpus is None else settings.gpus
    return max(settings.workers or default_workers(), n_gpus), n_gpus


def default_workers() -> int:
    """Return how many workers this machine is good for, by its cores and its memory."""
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    return max(1, min(MOST_WORKERS, CPU_COUNT, int(MEMORY_LIMIT * SHARE_OF_MEMORY) // WORKER_BYTES))


def count_gpus() -> int:
    """Return the number of NVIDIA GPUs that this process may use; asks the driver, does not import torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len(visible_gpus(visible))
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _visible_gpu(number: int) -> str:
    names = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return names[number] if number < len(names) else str(number)


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
