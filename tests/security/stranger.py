"""Try, as another user of this machine, to have code run by whatever listens on the given addresses.

Typed as ``python stranger.py FOLDER HOST:PORT...``, by root. Gives its rights up, then sends to each address orders to
make a file in the folder: in Dask's own words, in plain TCP and in TLS without the keys of the run; and asks for the
pages of Dask's web server. Prints a JSON object: what came of each try, by address.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import pickle
import ssl
import sys
import urllib.error
import urllib.request
from typing import Any

from distributed import Security
from distributed.comm import connect
from distributed.comm.registry import get_backend

NOBODY = 65534
SECONDS = 5

OPERATIONS = {"run_function": "scheduler", "run": "worker or nanny"}
"""Operations of Dask that call a function, and where there are such."""

PAGES = ("", "status", "workers", "info/main/workers.html", "info/main/logs.html", "json/counts.json", "sitemap.json")


def without_certificate() -> dict[str, Any]:
    """Encrypt, ask for no proof of the other side, and give none."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return {"ssl_context": context, "require_encryption": True}


def with_own_keys() -> dict[str, Any]:
    """Encrypt with the certificate of another authority."""
    stranger: dict[str, Any] = Security.temporary().get_connection_args("client")
    stranger["ssl_context"].check_hostname = False
    stranger["ssl_context"].verify_mode = ssl.CERT_NONE
    return stranger


CONNECTIONS = {
    "tcp": ("tcp", dict),
    "tls": ("tls", without_certificate),
    "tls with own keys": ("tls", with_own_keys),
}


async def order(address: str, operation: str, canary: str, connection: dict[str, Any]) -> str:
    """Tell a scheduler, worker or nanny to make a file; return its answer."""
    comm = await connect(address, timeout=SECONDS, **connection)
    try:
        call = {"function": os.system, "args": (f"touch {canary}",), "kwargs": {}}
        message = {name: pickle.dumps(value) for name, value in call.items()}
        await comm.write({"op": operation, **message, "wait": True, "reply": True})
        return str(await asyncio.wait_for(comm.read(), SECONDS))
    finally:
        comm.abort()


def page(url: str) -> str:
    """Return the status and the beginning of a web page, or why there is none."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            return f"{answer.status} {answer.read(200)!r}"
    except urllib.error.HTTPError as error:
        return str(error.code)
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"


def orders(place: str, folder: str, connections: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, str]:
    """Send each order over each kind of connection; return what came of it."""
    found = {}
    for name, (protocol, connection) in connections.items():
        for operation in OPERATIONS:
            canary = f"{folder}/{place}-{operation}-{name}".replace(" ", "-").replace(":", "-")
            try:
                answer = asyncio.run(order(f"{protocol}://{place}", operation, canary, connection))
            except (OSError, ValueError, MemoryError) as error:  # bytes of the other protocol have many faces
                answer = f"{type(error).__name__}: {error}"
            found[f"{name} {operation}"] = answer
    return found


def main() -> None:
    """Drop the rights, try everything, print what came of it."""
    folder, *places = sys.argv[1:]
    connections = {name: (protocol, make()) for name, (protocol, make) in CONNECTIONS.items()}
    for protocol, _ in connections.values():
        get_backend(protocol)  # what it imports could not be read later
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    found = {}
    for place in places:
        found[place] = {f"/{path}": page(f"http://{place}/{path}") for path in PAGES}
        # A web server takes no orders, and Dask's client would take its answer for the length of a message.
        if not any(answer[:3].isdigit() for answer in found[place].values()):
            found[place] |= orders(place, folder, connections)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
