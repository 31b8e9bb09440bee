"""What a job starts: Dask's workers, on the one address of its machine by which the scheduler is reached.

Left to itself a Dask worker listens on all interfaces, and so does its HTTP server, which has no login.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence

from daskpipe.addresses import address_of_interface, address_towards, bracketed
from daskpipe.errors import ClusterError
from daskpipe.sites import WORKER_CONFIG

LOOPBACK_HTTP = "127.0.0.1:0"


def arguments(words: Sequence[str]) -> list[str]:
    """Return the arguments of ``dask worker``: what was given, and where it listens.

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
    listen = ["--host", bracketed(host), "--no-dashboard", "--dashboard-address", LOOPBACK_HTTP]
    return [address, *options, *listen]


def main() -> None:
    """Run ``dask worker``."""
    import dask
    from distributed.cli.dask_worker import main as dask_worker

    try:
        words = arguments(sys.argv[1:])
    except ClusterError as error:
        sys.exit(f"error: {error}")
    with dask.config.set(WORKER_CONFIG):
        dask_worker(words)


if __name__ == "__main__":
    main()
