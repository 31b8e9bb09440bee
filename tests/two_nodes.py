"""Start a private Slurm of two nodes for tests: hosts ``head``, ``n1`` and ``n2`` of their own, which a switch joins.

The controller and those who submit are on ``head``; a fourth host, ``stranger``, is in another subnet. All share one
file system. A node has one CPU, so that two jobs lie on two nodes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import namespaces
import psutil
import slurm
from namespaces import Host, Network
from slurm import Slurm

NODES = ("n1", "n2")
ADDRESSES = {"head": "10.77.0.10", "n1": "10.77.0.11", "n2": "10.77.0.12", "stranger": "10.99.0.13"}
"""In namespaces of the test's own: any number of tests may use them at once."""

IPV6_ADDRESSES = {"head": "fd77::10", "n1": "fd77::11", "n2": "fd77::12", "stranger": "fd99::13"}

NODE = "NodeName={name} NodeAddr={address} CPUs=1 RealMemory=20000 State=UNKNOWN"


def missing() -> str | None:
    """Return why two nodes cannot be started here, and what to do about it; None if they can."""
    return slurm.missing() or namespaces.missing()


@dataclass
class TwoNodes(Slurm):
    """Control a Slurm of two nodes that runs."""

    network: Network = field(kw_only=True)

    @property
    def head(self) -> Host:
        """Host of the controller, on which drivers are started."""
        return self.network.hosts["head"]

    @property
    def stranger(self) -> Host:
        """Host that does not belong to the site."""
        return self.network.hosts["stranger"]

    def node(self, name: str) -> Host:
        """Return the host of a node."""
        return self.network.hosts[name]

    def nodes_of_jobs(self) -> dict[str, str]:
        """Return the node of each running job, by job id."""
        lines = self.command("squeue", "-h", "-t", "RUNNING", "-o", "%A|%N").splitlines()
        return dict(line.split("|") for line in lines)

    def start_node(self, name: str) -> None:
        """Start a node's slurmd again."""
        self.start(f"slurmd-{name}", "slurmd", "-D", prefix=self.node(name).prefix)

    def kill_node(self, name: str) -> int:
        """Kill the slurmd of a node and all processes of its jobs there; return the number of these processes."""
        self.stop(f"slurmd-{name}")
        network = _network_of(self.node(name).pid)
        pids = [pid for pid in psutil.pids() if pid != self.node(name).pid and _network_of(pid) == network]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return len(pids)


def _network_of(pid: int) -> str:
    """Return what identifies the network namespace of a process; empty if it is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


@contextmanager
def running(addresses: Mapping[str, str] = ADDRESSES) -> Iterator[TwoNodes]:
    """Start hosts with these addresses and a Slurm on them; end it with all its jobs, and the hosts."""
    more = "CommunicationParameters=EnableIPv6,DisableIPv4" if ":" in addresses["head"] else ""
    with slurm.own_folder() as folder, namespaces.network(folder, addresses) as network:
        here = TwoNodes(folder, network.hosts["head"].prefix, network=network)
        lines = [NODE.format(name=name, address=addresses[name]) for name in NODES]
        slurmds: dict[str, Sequence[str]] = {f"slurmd-{name}": network.hosts[name].prefix for name in NODES}
        with slurm.started(here, f"head({addresses['head']})", lines, slurmds, more=more):
            yield here
