"""Run Dask's workers in a job, listening only on the address of the machine from which the scheduler is reached.

By default a Dask worker listens on all interfaces, and so does its HTTP server, which has no login.
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
"""Address of a worker's HTTP server; port 0 takes any free port."""

KEY_SECONDS = 30.0
"""Seconds between two checks that the run's key is there."""


def worker_arguments(words: Sequence[str]) -> list[str]:
    """Return the arguments of ``dask worker``: the given ones and the address to listen on.

    Parameters
    ----------
    words
        Address of the scheduler, then options of ``dask worker``. ``--interface`` is replaced by the address of the
        interface, since Dask itself can do that with IPv4 only.

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
    # There is an HTTP server even without the dashboard.
    listen = ["--host", bracket_address(host), "--no-dashboard", "--dashboard-address", LOOPBACK_HTTP]
    return [address, *options, *listen]


def end_with_key(key: Path) -> None:
    """End this process once the key of its run is gone, since the driver removes it at its end.

    On a machine that has lost its network, Dask's nanny does not notice that its worker gave up. It would start another
    one, which cannot read the key, again and again until the job's walltime.
    """
    missed = 0
    while missed < 2:
        time.sleep(KEY_SECONDS)
        try:
            key.stat()
            missed = 0
        except FileNotFoundError:
            missed += 1
        except OSError:  # the file server does not answer, which proves nothing about the run
            missed = 0
    print(f"daskpipe: {key} is gone, and so is the run", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(DEATH_SECONDS)
    os._exit(1)


def main() -> None:
    """Run ``dask worker`` with the arguments of this process, on the GPUs of its job."""
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
