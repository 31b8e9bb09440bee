"""Give orders to schedulers, workers and nannies in Dask's own protocol, without the keys of their run.

    python tests/intruder.py CANARIES KEYS HOST:PORT ...

As a program it gives each listener each order in each of `WAYS`; with a folder of KEYS (else ``-``) in that way alone.
CANARIES is the folder in which each order that is obeyed leaves a file. Prints, as JSON, whether each was heard or
refused; fails if a listener cannot be reached at all.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import socket
import ssl
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from distributed import Security

OPERATIONS = ("run_function", "run")
"""Names of the operation that runs a function: on a scheduler, and on a worker or nanny."""


def order(address: str, operation: str, canary: Path, **connection: Any) -> dict[str, Any]:
    """Order a scheduler or worker, in Dask's own protocol, to make a file; return its answer."""

    async def send_order() -> dict[str, Any]:
        from distributed.comm import connect as open_comm

        comm = await open_comm(address, timeout=3, **connection)
        try:
            await comm.write(
                {
                    "op": operation,
                    "function": pickle.dumps(os.system),
                    "args": pickle.dumps((f"touch {canary}",)),
                    "kwargs": pickle.dumps({}),
                    "wait": True,
                    "reply": True,
                }
            )
            answer: dict[str, Any] = await comm.read()
            return answer
        finally:
            comm.abort()

    return asyncio.run(send_order())


def without_certificate() -> dict[str, Any]:
    """Return a connection that is encrypted, with no proof of identity on either side."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return {"ssl_context": context, "require_encryption": True}


def of_another_authority() -> dict[str, Any]:
    """Return a connection with the certificate of another cluster."""
    stranger: dict[str, Any] = Security.temporary().get_connection_args("client")
    stranger["ssl_context"].check_hostname = False
    stranger["ssl_context"].verify_mode = ssl.CERT_NONE
    return stranger


def with_keys(folder: Path) -> dict[str, Any]:
    """Return a connection with the keys of a run."""
    ca, cert, key = (str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem"))
    security = Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True)
    return security.get_connection_args("client")


WAYS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "plain": ("tcp", dict),
    "without certificate": ("tls", without_certificate),
    "of another authority": ("tls", of_another_authority),
}
"""Protocol and connection of each way to connect without the keys."""


def main() -> None:
    """Give the orders, while silent connections stay open."""
    canaries, keys, listeners = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    ways = WAYS if keys == "-" else {"with the keys": ("tls", lambda: with_keys(Path(keys)))}

    def attempt(way: str, listener: str, operation: str) -> str:
        protocol, connection = ways[way]
        canary = canaries / f"{way}-{operation}-{listener}".replace(" ", "-")
        try:
            order(f"{protocol}://{listener}", operation, canary, **connection())
        except OSError:
            return "refused"
        return "heard"

    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        for listener in listeners:
            address, _, port = listener.rpartition(":")
            stack.enter_context(socket.create_connection((address.strip("[]"), int(port)), timeout=10))
        orders = [(way, listener, operation) for way in ways for listener in listeners for operation in OPERATIONS]
        answers = list(pool.map(attempt, *zip(*orders, strict=True)))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
