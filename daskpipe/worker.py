"""What a job starts: Dask's workers, on the one address of its machine by which the scheduler is reached.

Left to itself a Dask worker listens on all interfaces, and so does its HTTP server, which has no login.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from daskpipe.errors import ClusterError
from daskpipe.gpus import gpus_of_job
from daskpipe.placement import GPU
from daskpipe.sites import WORKER_CONFIG

LOOPBACK_HTTP = "127.0.0.1:0"


def arguments(words: Sequence[str]) -> list[str]:
    """Return the arguments of ``dask worker``: what was given, and where it listens.

    Parameters
    ----------
    words
        Address of the scheduler, then options of ``dask worker``. Those with ``--interface`` listen there.
    """
    from distributed.comm import get_address_host
    from distributed.utils import get_ip

    listen = [] if "--interface" in words else ["--host", get_ip(get_address_host(words[0]))]
    # Without the dashboard there is still an HTTP server.
    return [*words, *listen, "--no-dashboard", "--dashboard-address", LOOPBACK_HTTP]


def main() -> None:
    """Run ``dask worker``."""
    import dask
    from distributed.cli.dask_worker import main as dask_worker

    words = sys.argv[1:]
    if f"{GPU}=1" in words:
        try:
            gpus = gpus_of_job(int(words[words.index("--nworkers") + 1]), os.environ)
        except ClusterError as error:
            sys.exit(f"error: {error}")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    with dask.config.set(WORKER_CONFIG):
        dask_worker(arguments(words))


if __name__ == "__main__":
    main()
