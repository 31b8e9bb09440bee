"""Find the address of a machine, on hosts of the test's own with many kinds of networks or none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import namespaces
import pytest
from namespaces import Host

from daskpipe.cluster.addresses import LOOPBACK, address_of_interface, address_of_this_machine, address_towards
from daskpipe.core.errors import ClusterError

SITE = "class: SLURM\npools: {cpu: {jobs: 1}}\n"

ADDRESS = """
from daskpipe.cluster.scheduler import find_scheduler_address
from daskpipe.cluster.sites import read_site
print(find_scheduler_address(read_site(FILE)))
"""
ARGUMENTS = "from daskpipe.cluster.worker import main; import sys; sys.argv[1:] = WORDS; main()"

Interfaces = dict[str, list[str]]


@pytest.fixture
def host_with() -> Iterator[Callable[..., Host]]:
    """Yield a function that makes a host with interfaces, their addresses, and a default route if one is given."""
    if reason := namespaces.missing():
        pytest.skip(reason)
    with ExitStack() as stack:

        def host_with(interfaces: Interfaces, gateway: str | None = None) -> Host:
            made, other = (stack.enter_context(namespaces.host(name)) for name in ("here", "other"))
            for name, addresses in interfaces.items():
                made.run("ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", other.pid)
                for end in (made, other):
                    end.run("ip", "link", "set", name, "up")
                for address in addresses:
                    made.run("ip", "address", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
            if gateway is not None:
                made.run("ip", "route", "add", "default", "via", gateway)
            return made

        yield host_with


def run_python(host: Host, program: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program on a host."""
    words = [*host.prefix, sys.executable, "-c", program]
    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})


def ask_address(host: Host, folder: Path, site: str = SITE) -> str:
    """Return the address by which jobs of a site would reach that host, or the error."""
    file = folder / "there.yaml"
    file.write_text(site)
    done = run_python(host, ADDRESS.replace("FILE", repr(str(file))))
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


ETH0 = {"eth0": ["10.5.0.7/24"]}
SIX = {"eth0": ["fd05::7/64"]}
TWO = {"eth0": ["10.5.0.7/24"], "ib0": ["10.6.0.7/24", "fd06::7/64"]}

FOUND: dict[str, tuple[Interfaces, str | None, str]] = {
    "a default route": (TWO, "10.6.0.1", "10.6.0.7"),
    "one interface and no default route": (ETH0, None, "10.5.0.7"),
    "IPv6 only": (SIX, "fd05::1", "fd05::7"),
    "IPv6 only and no default route": (SIX, None, "fd05::7"),
    "an interface that has no address": ({**ETH0, "eth1": []}, None, "10.5.0.7"),
    "an interface with an address of its link only": ({**ETH0, "usb0": ["169.254.3.1/16"]}, None, "10.5.0.7"),
    "no interface": ({}, None, LOOPBACK),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND)
def test_the_address_is_one_by_which_others_reach_this_machine(
    name: str, host_with: Callable[..., Host], tmp_path: Path
) -> None:
    interfaces, gateway, expected = FOUND[name]
    assert ask_address(host_with(interfaces, gateway), tmp_path) == expected


@pytest.mark.slow
def test_several_networks_and_no_default_route_are_refused(host_with: Callable[..., Host], tmp_path: Path) -> None:
    host = host_with(TWO)
    assert ask_address(host, tmp_path) == (
        "daskpipe.core.errors.ClusterError: no default route leads from this machine to others, so it is not known by "
        "which address jobs of site there reach it. It has eth0 (10.5.0.7), ib0 (10.6.0.7, fd06::7). Write one of them "
        "into the site's file, e.g. interface: eth0 (or interface: lo if its jobs run on this machine only)"
    )
    assert ask_address(host, tmp_path, f"interface: ib0\n{SITE}") == "10.6.0.7"
    assert ask_address(host, tmp_path, f"interface: lo\n{SITE}") == LOOPBACK


def test_an_interface_may_have_ipv6_only(host_with: Callable[..., Host], tmp_path: Path) -> None:
    host = host_with({**ETH0, "ib0": ["fd06::7/64"], "ib1": []}, "10.5.0.1")
    assert ask_address(host, tmp_path, f"interface: ib0\n{SITE}") == "fd06::7"
    assert "'ib1' of here has no address by which other machines reach it" in ask_address(
        host, tmp_path, f"interface: ib1\n{SITE}"
    )


def test_a_run_is_refused_before_anything_is_submitted(host_with: Callable[..., Host], tmp_path: Path) -> None:
    """Where `sbatch` would note that it was called."""
    commands, called = tmp_path / "bin", tmp_path / "called"
    commands.mkdir()
    for name in ("sbatch", "squeue", "scancel"):
        (commands / name).write_text(f"#!/bin/sh\necho {name} >> {called}\n")
        (commands / name).chmod(0o755)
    file = tmp_path / "there.yaml"
    file.write_text(SITE)
    words = ["-m", "daskpipe", "run", "emt_alloy", "--cluster", str(file), "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(
        [*host_with(TWO).prefix, sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"},
    )
    assert done.returncode == ClusterError.exit_code, done.stderr
    assert "interface: eth0" in done.stderr.replace("\n", " ")
    assert not called.exists()


def test_a_worker_without_a_route_to_its_scheduler_says_so(host_with: Callable[..., Host]) -> None:
    words = ["tls://10.9.0.1:8786", "--nthreads", "1"]
    done = run_python(host_with(ETH0), ARGUMENTS.replace("WORDS", repr(words)))
    assert done.returncode == 1
    assert done.stderr.startswith("error: no route leads from here to the scheduler at tls://10.9.0.1:8786. Write ")


def test_an_interface_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ClusterError, match=r"no network interface 'nope9' on .* It has .*lo \(127\.0\.0\.1.*\)"):
        address_of_interface("nope9")
    assert address_of_interface("lo") == LOOPBACK
    assert address_of_interface("lo", scheduler="::1") == "::1"


def test_the_route_decides_where_a_worker_listens() -> None:
    assert address_towards("127.0.0.1") == LOOPBACK
    assert address_towards("localhost") in (LOOPBACK, "::1")
    assert address_towards("no.such.host.invalid") is None
    assert address_of_this_machine("here")
