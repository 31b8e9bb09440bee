"""Make hosts for tests: they reach each other unless a cable is cut, and end with their test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import namespaces
import psutil
import pytest
from namespaces import Host, Network
from waiting import wait_until

ADDRESSES = {"a": "10.77.0.10", "b": "10.77.0.11", "far": "10.99.0.12"}
REACHES = """
import errno, socket, sys
with socket.socket() as probe:
    probe.settimeout(2)
    print(probe.connect_ex((sys.argv[1], 9)) == errno.ECONNREFUSED)
"""
"""Program that connects to a port without a listener: a host that is reached refuses."""

HOST_AND_SLEEP = """
import time, namespaces
with namespaces.host("left") as host:
    print(host.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def networks(tmp_path: Path) -> Iterator[tuple[Network, Network]]:
    """Two networks with the same names and addresses."""
    if reason := namespaces.missing():
        pytest.skip(reason)
    with ExitStack() as stack:
        folders = [tmp_path / "1", tmp_path / "2"]
        for folder in folders:
            folder.mkdir()
        first, second = (stack.enter_context(namespaces.network(folder, ADDRESSES)) for folder in folders)
        yield first, second


def can_reach(host: Host, name: str) -> bool:
    """Tell whether a host reaches another one by its name."""
    return host.run(sys.executable, "-c", REACHES, name).strip() == "True"


def is_up(process: psutil.Process) -> bool:
    """Tell whether a process still runs."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_hosts_reach_each_other_unless_a_cable_is_out(networks: tuple[Network, Network]) -> None:
    first, second = networks
    assert first.hosts["a"].run("hostname").strip() == "a"
    assert can_reach(first.hosts["a"], "b")
    assert can_reach(first.hosts["far"], "a")
    first.cut("b")
    assert not can_reach(first.hosts["a"], "b")
    assert not can_reach(first.hosts["b"], "far")
    assert can_reach(first.hosts["far"], "a")
    assert can_reach(second.hosts["a"], "b")
    first.mend("b")
    assert can_reach(first.hosts["a"], "b")


def test_a_host_ends_with_the_process_that_made_it() -> None:
    if reason := namespaces.missing():
        pytest.skip(reason)
    words = [sys.executable, "-c", HOST_AND_SLEEP]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(namespaces.__file__).parent) as process:
        assert process.stdout is not None
        waits = psutil.Process(int(process.stdout.readline()))
        assert is_up(waits)
        process.kill()
    wait_until(lambda: not is_up(waits))
