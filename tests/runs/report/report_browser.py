"""Chromium for tests of pages: its DevTools protocol over two pipes, nothing but the standard library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """One tab; `events` holds all that the browser has said besides its answers."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.to_browser = to_browser
        self.from_browser = from_browser
        self.events: list[dict[str, Any]] = []
        self._number = 0
        self._session: str | None = None
        self._unread = b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser for something and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            data = os.read(self.from_browser, 2**20)
            assert data, "the browser has gone"
            self._unread += data
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a file in a window of so many pixels and wait until it is complete."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.absolute().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())
        # Figures are drawn in callbacks and animation frames after the load.
        self.evaluate("new Promise(done => setTimeout(() => requestAnimationFrame(() => done(1)), 500))")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, of a promise's outcome."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """Return errors and warnings of the console and the log, and what was thrown."""
        texts = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                texts.append(str(params["exceptionDetails"]))
            elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                texts.append(str(params["args"]))
            elif event.get("method") == "Log.entryAdded":
                texts.append(params["entry"]["text"])
        return texts

    def requests(self) -> list[str]:
        """Return the addresses that were asked for, data in the page left out."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent if not params["request"]["url"].startswith("data:")]

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write a picture of the page."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def pdf(self) -> bytes:
        """Print the page."""
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"])


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Start Chromium with a profile of its own; end it."""
    assert CHROMIUM is not None
    read_here, write_there = os.pipe()
    read_there, write_here = os.pipe()
    flags = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    # The protocol is read from descriptor 3 and written to 4.
    command = f'exec "$0" {flags} --user-data-dir="$1" --remote-debugging-pipe 3<&{read_there} 4>&{write_there}'
    process = subprocess.Popen(
        ["bash", "-c", command, CHROMIUM, str(profile)],
        pass_fds=(read_there, write_there),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_there)
    os.close(write_there)
    try:
        yield Page(write_here, read_here)
    finally:
        process.terminate()
        process.wait()
        os.close(write_here)
        os.close(read_here)
