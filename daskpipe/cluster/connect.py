"""Connect to Dask workers by a name: ``local``, a site of ``jobqueue/``, or the address of a scheduler.

Everything that is started here talks TLS with keys of the run, also on one machine, where other users can reach its
ports. Local listeners are on loopback only. A worker has one thread, and NumPy and torch in it one thread each: sums
over threads round differently on machines with other numbers of cores, and Dask already works in parallel.
"""

from __future__ import annotations

import ipaddress
import logging
import shutil
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from daskpipe.cluster import local, scheduler, tls
from daskpipe.cluster.addresses import LOOPBACK
from daskpipe.cluster.dask_config import DASK_CONFIG
from daskpipe.cluster.joining import join_scheduler
from daskpipe.cluster.settings import Cluster
from daskpipe.cluster.sites import load_site
from daskpipe.core.errors import ClusterError, ConfigError
from daskpipe.core.events import Emit
from daskpipe.engine.dask_pool import Workers

if TYPE_CHECKING:
    from distributed import Security

DASHBOARD_PORT = 8787
"""Port of the dashboard, if it is free."""

LONGEST_GREETING = 2**20
"""Most bytes of a Dask server's greeting, which has about a hundred."""


@contextmanager
def connect(settings: Cluster, log: Path | None = None, emit: Emit = lambda event: None) -> Iterator[Workers]:
    """Connect to workers, yield them, and close everything that was started for them.

    Parameters
    ----------
    settings
        Section ``cluster`` of the config.
    log
        File to which workers that are started here append the output of libraries, instead of the screen. Keys and
        logs of a site's jobs lie beside it, in a folder that the site's machines must share.
    emit
        Called with events about the workers that a person should read.

    Raises
    ------
    ClusterError
        If there are no workers to be had, or they would be reached without TLS.
    ConfigError
        If there is no such site.
    """
    import dask

    dashboard = f"{LOOPBACK}:{DASHBOARD_PORT}" if settings.dashboard else None
    with dask.config.set(DASK_CONFIG), _silence_dask():
        if settings.address:
            yield from _join_address(settings, settings.address, log, emit)
        elif settings.name == "local":
            yield from local.start_local_workers(settings, log, dashboard, emit)
        elif log is None:
            raise ConfigError(
                f"this has no run directory, which the jobs of cluster {settings.name} would need; "
                "give --cluster local, or the address of a scheduler"
            )
        else:
            site = load_site(settings)
            with scheduler.start_site_workers(
                site, log.parent, emit, insecure=settings.insecure, dashboard=dashboard
            ) as workers:
                yield workers


def check_cluster(settings: Cluster) -> None:
    """Check that a cluster can be had here, before anything is written or started.

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
        command = load_site(settings).queue_system.submit_command
        if shutil.which(command) is None:
            raise ClusterError(
                f"cluster {settings.name} needs {command}, and there is none on the PATH. "
                "Type this where jobs are submitted, or give --cluster local"
            )


# --- a scheduler that others started ----------------------------------------------------------------


def _join_address(settings: Cluster, address: str, log: Path | None, emit: Emit) -> Iterator[Workers]:
    """Connect to a scheduler that others started, check its workers, and yield them."""
    from distributed import Client

    if not _check_encrypted(settings, address):
        scheduler.warn_insecure(address, emit)
    security = _load_keys(settings, address)
    try:
        _check_speaks_dask(address, security)
        client = Client(address, timeout=local.CONNECT_SECONDS, set_as_default=False, security=security)
    except (OSError, ValueError, TimeoutError) as error:
        raise ClusterError(
            f"no scheduler answers at {address}: {error}. Start one: dask scheduler --host 127.0.0.1"
        ) from error
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            raise ClusterError(
                f"the scheduler at {address} has no workers. Start one: dask worker {address} --nthreads 1"
            )
        yield join_scheduler(client, None if log is None else log.parent, emit)


def _check_speaks_dask(address: str, security: Security | None) -> None:
    """Check that a Dask server listens at an address, and not for example a dashboard.

    Dask's client would take the first bytes of anything else for the length of a message, and wait for ever. A Dask
    server speaks first: eight bytes with the length of its greeting.

    Raises
    ------
    OSError
        If it cannot be reached, or sends something else, or nothing.
    """
    from distributed.comm.addressing import parse_host_port

    protocol, _, location = address.partition("://")
    if protocol not in ("tcp", "tls"):
        return
    host, port = parse_host_port(location)
    with socket.create_connection((host, port), timeout=local.CONNECT_SECONDS) as plain:
        context = security.get_connection_args("client")["ssl_context"] if security is not None else None
        with context.wrap_socket(plain) if context is not None else plain as connection:
            greeting = connection.makefile("rb").read(8)
    if len(greeting) < 8 or int.from_bytes(greeting, "little") > LONGEST_GREETING:
        raise OSError(f"what listens there is no scheduler; its first bytes are {greeting!r}")


def _check_encrypted(settings: Cluster, address: str) -> bool:
    """Tell whether an address talks TLS; refuse plain TCP to another machine, unless the config insists."""
    if address.startswith("tls://"):
        return True
    if not settings.insecure and _is_on_another_machine(address.rpartition("://")[2]):
        raise ClusterError(
            f"{address} is not on this machine, and without TLS whoever is on the network could run programs as you. "
            "Start the scheduler with --protocol tls --tls-ca-file ... and give cluster.address=tls://... and "
            "cluster.tls=FOLDER; or, on a network that you trust, cluster.insecure=true"
        )
    return False


def _is_on_another_machine(location: str) -> bool:
    """Tell whether host:port is on another machine; a host without an address is on none."""
    host = location.rpartition(":")[0].strip("[]") or location
    try:
        resolved = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return not all(ipaddress.ip_address(str(item[4][0]).partition("%")[0]).is_loopback for item in resolved)


def _load_keys(settings: Cluster, address: str) -> Security | None:
    """Return a client's keys from the config's folder or from Dask's config; None for plain TCP."""
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
    if missing := [name for name in tls.KEY_FILES if not (folder / name).is_file()]:
        raise ClusterError(
            f"cluster.tls={settings.tls} holds no {', '.join(missing)}; give a folder with all three keys"
        )
    ca, cert, key = (str(folder / name) for name in tls.KEY_FILES)
    return Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True)


@contextmanager
def _silence_dask() -> Iterator[None]:
    """Keep Dask's messages about lost workers and about a port that is taken off the screen.

    The driver reports lost workers itself. If the port of the dashboard is taken, Dask takes another one, which is in
    the link.
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
