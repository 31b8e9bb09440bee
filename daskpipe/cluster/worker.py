"""What a job starts: Dask's workers, on the one address of its machine by which the scheduler is reached.

Left to itself a Dask worker listens on all interfaces, and so does its HTTP server, which has no login.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from daskpipe.cluster.addresses import address_of_interface, address_towards, bracket_address
from daskpipe.cluster.dask_config import WORKER_CONFIG
from daskpipe.cluster.gpus import gpus_of_job
from daskpipe.cluster.job_script import DEATH_SECONDS
from daskpipe.core.errors import ClusterError
from daskpipe.engine.dask_pool import GPU

LOOPBACK_HTTP = "127.0.0.1:0"

KEY_SECONDS = 30.0
"""Seconds between two looks for the run's key."""


def worker_arguments(words: Sequence[str]) -> list[str]:
    """Return the worker_arguments of ``dask worker``: what was given, and where it listens.

    Parameters
    ----------
    words
        Address of the scheduler, then options of ``dask worker``. Those with ``--interface`` listen there, which Dask
        itself can do with IPv4 only.

    Raises
    ------
    ClusterError
        If there is no such interface, or no route to the scheduler.
    """
    from distributed.comm import get_address_host

    address, *options = words
    scheduler = get_address_host(address)
    if "--interface" in options:
        place = options.index("--interface")
        host = address_of_interface(options[place + 1], scheduler=scheduler)
        del options[place : place + 2]
    elif (towards := address_towards(scheduler)) is not None:
        host = towards
    else:
        raise ClusterError(
            f"no route leads from {socket.gethostname()} to the scheduler at {address}. Write the network that joins "
            "the machines into the site's file, e.g. interface: ib0"
        )
    # Without the dashboard there is still an HTTP server.
    listen = ["--host", bracket_address(host), "--no-dashboard", "--dashboard-address", LOOPBACK_HTTP]
    return [address, *options, *listen]


def end_with_key(key: Path) -> None:
    """End this process once the key of its run is gone, with which the run's driver ended.

    Where a machine has lost its network, Dask's nanny does not hear that its worker gave up. It would start another
    one, which cannot read its key, again and again until the job's walltime.
    """
    missed = 0
    while missed < 2:
        time.sleep(KEY_SECONDS)
        try:
            key.stat()
            missed = 0
        except FileNotFoundError:
            missed += 1
        except OSError:  # the file server does not answer, which says nothing of the run
            missed = 0
    print(f"daskpipe: {key} is gone, and so is the run", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(DEATH_SECONDS)
    os._exit(1)


def main() -> None:
    """Run ``dask worker``."""
    import dask
    from distributed.cli.dask_worker import main as dask_worker

    words = sys.argv[1:]
    try:
        if f"{GPU}=1" in words:
            gpus = gpus_of_job(int(words[words.index("--nworkers") + 1]), os.environ)
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        words = worker_arguments(words)
    except ClusterError as error:
        sys.exit(f"error: {error}")
    if "--tls-key" in words:
        key = Path(words[words.index("--tls-key") + 1])
        threading.Thread(target=end_with_key, args=(key,), daemon=True).start()
    with dask.config.set(WORKER_CONFIG):
        dask_worker(words)


if __name__ == "__main__":
    main()
