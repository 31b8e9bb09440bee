"""Try, as another user of this machine, to make the programs that listen on some addresses run code.

    python tests/security/stranger.py CANARIES HOST:PORT...

Started by root, it becomes another user. It asks each address for the pages of Dask's web server. If the address is no
web server, it sends each order of `intruder` in each way. An order that is obeyed leaves a file in the folder CANARIES.
It prints a JSON object: the answer to each try, by address.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from intruder import OPERATIONS, WAYS, order

NOBODY = 65534
SECONDS = 5

PAGES = ("", "status", "workers", "info/main/workers.html", "info/main/logs.html", "json/counts.json", "sitemap.json")


def ask_for_page(url: str) -> str:
    """Return the status and the beginning of a web page, or the error."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            return f"{answer.status} {answer.read(200)!r}"
    except urllib.error.HTTPError as error:
        return str(error.code)
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"


def give_orders(place: str, canaries: Path, ways: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, str]:
    """Send each order in each way; return the answers."""
    results = {}
    for way, (protocol, connection) in ways.items():
        for operation in OPERATIONS:
            canary = canaries / f"{operation} {way} {place}".replace(" ", "-")
            try:
                answer = str(order(f"{protocol}://{place}", operation, canary, **connection))
            except (OSError, ValueError, MemoryError) as error:  # bytes of the other protocol have many faces
                answer = f"{type(error).__name__}: {error}"
            results[f"{way} {operation}"] = answer
    return results


def try_all(canaries: Path, places: list[str], ways: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Ask each address for the pages, send the orders to those that are no web servers, and return all answers."""
    results = {}
    for place in places:
        results[place] = {f"/{path}": ask_for_page(f"http://{place}/{path}") for path in PAGES}
        # A web server takes no orders, and Dask's client would take its answer for the length of a message.
        if not any(answer[:3].isdigit() for answer in results[place].values()):
            results[place] |= give_orders(place, canaries, ways)
    return results


def main() -> None:
    """Become another user, try everything, and print the answers."""
    canaries, *places = sys.argv[1:]
    ways = {way: (protocol, connection()) for way, (protocol, connection) in WAYS.items()}
    # Once as root, for what the tries import: another user may not be able to read Python and its packages.
    with tempfile.TemporaryDirectory() as rehearsal:
        try_all(Path(rehearsal), places, ways)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    print(json.dumps(try_all(Path(canaries), places, ways), indent=1))


if __name__ == "__main__":
    main()
