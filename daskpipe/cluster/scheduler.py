"""Start the scheduler of a run in this process, and for a site the job scaler that brings it workers."""

from __future__ import annotations

import logging
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Scheduler
from distributed.spans import SpanMetadata, SpansSchedulerExtension

from daskpipe.cluster.addresses import LOOPBACK, address_of_interface, address_of_this_machine, bracket_address
from daskpipe.cluster.gpus import OwnGpu
from daskpipe.cluster.job_commands import cancel_leftover_jobs
from daskpipe.cluster.job_scaler import JobScaler
from daskpipe.cluster.sites import Site
from daskpipe.cluster.tls import choose_protocol, make_keys, remove_keys, write_keys
from daskpipe.core.errors import ClusterError
from daskpipe.core.events import Emit, Insecure, Notice
from daskpipe.engine.dask_pool import Workers

if TYPE_CHECKING:
    from distributed import Security, SpecCluster

SECRET_BYTES = 16
"""Random bytes in the address of the dashboard."""

INSECURE = (
    "WARNING: no TLS at {address}. Whoever reaches it, as every user of this machine does, can run programs as you,"
    " and read and change your files, while this run lasts"
)
"""Warning on the screen when there is no TLS."""


@contextmanager
def start_site_workers(
    site: Site, root: Path, emit: Emit, *, insecure: bool, dashboard: str | None
) -> Iterator[Workers]:
    """Start a scheduler in this process, yield it with the job scaler of a site, and end both and all jobs.

    Parameters
    ----------
    site
        Description of the site.
    root
        Run directory, which the jobs' machines must share: it has the keys, the logs and the record of the jobs.
    emit
        Called with events about the jobs that a person should read.
    insecure
        Whether to do without TLS.
    dashboard
        Address and port of the dashboard; None for none.

    Raises
    ------
    ClusterError
        If the scheduler cannot listen.
    """
    from distributed import Client

    address = find_scheduler_address(site)
    left = cancel_leftover_jobs(site, root)
    if left.jobs:
        emit(Notice(message=f"cancelled jobs that a driver of this run had left: {', '.join(left.jobs)}"))
    for message in (*left.doubts, *left.notes):
        emit(Notice(message=message))
    remove_keys(root)
    with ExitStack() as started:
        security = None if insecure else make_keys()
        keys = None if security is None else started.enter_context(write_keys(root, security))
        cluster = started.enter_context(run_scheduler(address, security, dashboard))
        if security is None:
            warn_insecure(cluster.scheduler_address, emit)
        scaler = started.enter_context(JobScaler(cluster, site, root, keys, emit))
        client = started.enter_context(Client(cluster, set_as_default=False))
        client.register_plugin(OwnGpu(), name="daskpipe-gpu")
        yield Workers(client, scaler)


def warn_insecure(address: str, emit: Emit) -> None:
    """Warn that there is no TLS, on the screen whatever else is shown there, and in the run's events."""
    print(INSECURE.format(address=address), file=sys.stderr, flush=True)
    emit(Insecure(address=address))


def find_scheduler_address(site: Site) -> str:
    """Return the address by which a site's jobs reach this machine: that of the site's interface, if it names one.

    Raises
    ------
    ClusterError
        If there is no such interface here, or several could be the one.
    """
    if site.interface is not None:
        return address_of_interface(site.interface)
    return address_of_this_machine(site.name)


class Spans(SpansSchedulerExtension):
    """Scheduler extension that keeps Dask's spans without an entry for each task ever submitted (0.25 GB a million)."""

    def observe_tasks(self, tss: Iterable[Any], code: Any, span_metadata: SpanMetadata) -> dict[Any, dict[str, Any]]:
        """Note the tasks without the collections that they belong to."""
        return super().observe_tasks(tss, code, SpanMetadata(collections=[]))


class PrivateScheduler(Scheduler):
    """Dask scheduler whose web server answers only below its prefix, which has a secret in it.

    Dask's own web server redirects ``/`` to the prefix, and lists it in ``/sitemap.json``.

    Parameters
    ----------
    http_prefix
        Beginning of the paths of its pages, ``/SECRET``.
    options
        Options of Dask's scheduler.
    """

    def __init__(self, *, http_prefix: str, **options: Any) -> None:
        self._prefix = f"{http_prefix}/"
        super().__init__(http_prefix=http_prefix, **options)

    def start_http_server(self, *arguments: Any, **options: Any) -> None:
        """Start the web server so that it answers 404 outside the prefix, from its first request on."""
        from tornado.web import ErrorHandler

        super().start_http_server(*arguments, **options)
        find_page = self.http_application.find_handler

        def find_handler(request: Any, **settings: Any) -> Any:
            if request.path.startswith(self._prefix):
                return find_page(request, **settings)
            return self.http_application.get_handler_delegate(request, ErrorHandler, {"status_code": 404})

        self.http_application.find_handler = find_handler


@contextmanager
def run_scheduler(address: str, security: Security | None, dashboard: str | None) -> Iterator[SpecCluster]:
    """Start a scheduler without workers in this process, listening on one address, and yield its cluster.

    Parameters
    ----------
    address
        Address of this machine; never all of them.
    security
        Keys that every client must have, too; None for plain TCP.
    dashboard
        Address and port of the dashboard; None for none. It has no login and shows logs and configs, so its address has
        a secret in it, which only the owner of the run is shown.

    Raises
    ------
    ClusterError
        If it cannot listen on the address.
    """
    import dask
    from distributed import SpecCluster

    secret = secrets.token_urlsafe(SECRET_BYTES)
    options = {
        "host": bracket_address(address),
        "port": 0,
        "protocol": choose_protocol(security),
        "security": security,
        "dashboard": dashboard is not None,
        "dashboard_address": dashboard or f"{LOOPBACK}:0",
        "http_prefix": f"/{secret}",
    }
    # Dask's own link would have the address of the scheduler, which serves nothing but TLS.
    settings: dict[str, Any] = {
        "distributed.dashboard.link": "" if dashboard is None else f"{{scheme}}://{LOOPBACK}:{{port}}/{secret}/status"
    }
    if dashboard is None:
        # Even without its dashboard Dask would serve the logs of workers.
        settings["distributed.scheduler.http.routes"] = []
    with ExitStack() as started:
        started.enter_context(dask.config.set(settings))
        try:
            cluster = started.enter_context(
                SpecCluster(
                    workers={},
                    scheduler={"cls": PrivateScheduler, "options": options},
                    security=security,
                    name="daskpipe",
                    silence_logs=logging.ERROR,
                )
            )
        except (OSError, RuntimeError) as error:
            raise ClusterError(
                f"the scheduler cannot listen on {address}: {error}. Give the site an interface"
            ) from error
        cluster.scheduler.extensions["spans"] = Spans(cluster.scheduler)
        yield cluster
