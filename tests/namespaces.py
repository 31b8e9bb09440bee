"""Make hosts for tests on one machine, each with a name and network interfaces of its own. Needs root.

A host is a process that waits in namespaces of its own (network, host name, mounts). It ends with the process that made
it, however that ends, and its interfaces go with it: nothing has a name or an address outside.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

WAIT = 'hostname "$0" && ip link set lo up && { test -z "$1" || mount --bind "$1" /etc/hosts; } && echo && exec cat'
"""Command of the process of a host; ``cat`` ends when the other end of its input is closed."""

FORWARD = "echo 1 | tee /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding"

SWITCH = "br0"


def missing() -> str | None:
    """Return why there can be no such hosts here, and what to do about it; None if there can."""
    if absent := [name for name in ("ip", "nsenter", "setpriv", "ss", "unshare") if shutil.which(name) is None]:
        return f"no {', '.join(absent)} on the PATH: apt-get install iproute2 util-linux"
    if os.geteuid():
        return "network namespaces are root's to make"
    tried = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True)
    return f"this machine makes no namespaces: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True)
class Host:
    """Run commands on a host that is up.

    Parameters
    ----------
    name
        Its host name.
    pid
        The process that keeps its namespaces.
    """

    name: str
    pid: int

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words before a command that make it run on this host, in the folder of this process."""
        return ("nsenter", f"--target={self.pid}", "--net", "--uts", "--mount", "--wd", "--")

    def run(self, *words: object) -> str:
        """Run a command there; return what it printed."""
        done = subprocess.run([*self.prefix, *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, f"{self.name}: {words}: {done.stderr}"
        return done.stdout

    def listening(self) -> dict[int, set[tuple[str, int]]]:
        """Return the addresses and ports on which processes of this host listen, by process id."""
        listeners: dict[int, set[tuple[str, int]]] = {}
        for line in self.run("ss", "--tcp", "--listening", "--numeric", "--processes", "--no-header").splitlines():
            address, _, port = line.split()[3].rpartition(":")
            for word in line.split("pid=")[1:]:
                listeners.setdefault(int(word.partition(",")[0]), set()).add((address, int(port)))
        return listeners


@contextmanager
def host(name: str, hosts_file: Path | None = None) -> Iterator[Host]:
    """Yield a host without any interface but loopback; `hosts_file` stands there for ``/etc/hosts``."""
    words = ["unshare", "--net", "--uts", "--mount", "sh", "-c", WAIT, name, str(hosts_file or "")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n", f"no host {name}"
        yield Host(name, process.pid)
        process.communicate()


class Network:
    """Hosts with an interface ``eth0`` each, joined by a switch that also leads from one subnet to another."""

    def __init__(self, switch: Host, hosts: Mapping[str, Host]) -> None:
        self.switch, self.hosts = switch, hosts

    def cut(self, name: str) -> None:
        """Pull a host's cable."""
        self.switch.run("ip", "link", "set", f"port-{name}", "down")

    def mend(self, name: str) -> None:
        """Put it in again."""
        self.switch.run("ip", "link", "set", f"port-{name}", "up")


@contextmanager
def network(folder: Path, addresses: Mapping[str, str]) -> Iterator[Network]:
    """Yield hosts that reach each other.

    Parameters
    ----------
    folder
        For their file of names.
    addresses
        Address of each, by name. The first of each subnet (``/24``, or ``/64`` of IPv6) is the gateway.
    """
    hosts_file = folder / "hosts"
    hosts_file.write_text(
        "".join(f"{address} {name}\n" for name, address in addresses.items()) + "127.0.0.1 localhost\n"
    )
    with ExitStack() as stack:
        switch = stack.enter_context(host("switch"))
        switch.run("ip", "link", "add", SWITCH, "type", "bridge")
        switch.run("ip", "link", "set", SWITCH, "up")
        switch.run("sh", "-c", FORWARD)
        for gateway in sorted({_gateway(address) for address in addresses.values()}):
            _add_address(switch, gateway, SWITCH)
        hosts = {}
        for name, address in addresses.items():
            hosts[name] = made = stack.enter_context(host(name, hosts_file))
            peer = ("peer", "name", "eth0", "netns", made.pid)
            switch.run("ip", "link", "add", f"port-{name}", "type", "veth", *peer)
            switch.run("ip", "link", "set", f"port-{name}", "master", SWITCH, "up")
            _add_address(made, address, "eth0")
            made.run("ip", "link", "set", "eth0", "up")
            made.run("ip", "route", "add", "default", "via", _gateway(address))
        yield Network(switch, hosts)


def _subnet(address: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(f"{address}/{64 if ':' in address else 24}", strict=False)


def _gateway(address: str) -> str:
    return str(_subnet(address)[1])


def _add_address(host: Host, address: str, interface: str) -> None:
    # An IPv6 address is used at once, and not only when nobody has been seen to have it, too.
    at_once = ["nodad"] if ":" in address else []
    host.run("ip", "address", "add", f"{address}/{_subnet(address).prefixlen}", "dev", interface, *at_once)
