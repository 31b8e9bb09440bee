"""Rows of the matrix of faults: runs on a real Slurm of two nodes, over TLS, while the network fails."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import intruder
import two_nodes
from driver import Driver
from namespaces import Host
from rows_processes import STEPS, at_step
from rows_slurm import OnSlurm
from small_runs import last_segment, names_of
from strikes import HURRIED, PYTHON, Bench, Row, ended, newest, striking
from two_nodes import TwoNodes
from waiting import wait_until

from daskpipe.core.errors import EXIT_QUARANTINED

SITE = """class: SLURM
interface: eth0
pools:
  cpu: {jobs: 2, cores: 1, memory: 2GB, partition: cpu, walltime: "00:20:00"}
"""

CUT_SECONDS = 90.0
"""Longer than Dask's connections live without an answer (30 s), shorter than Slurm waits for a node (300 s)."""

HELD_STAGES = ("explore", "label")
"""Stages whose units wait until they are released, so that each fault comes while units are under way."""

INTRUDER = str(Path(intruder.__file__))


@dataclass
class OnNodes(OnSlurm):
    """Start a run on two nodes that is to be disturbed."""

    slurm: TwoNodes
    began: float = field(default_factory=time.time)

    def start(self) -> Driver:
        """Start a driver on the head node."""
        site = self.folder / "here.yaml"
        site.write_text(SITE)
        words = ("cluster.workers=null", f"cluster.name={site}")
        return self.bench.start(self.run_dir, *words, program=HURRIED, prefix=self.slurm.head.prefix)

    def units_on(self, node: str) -> list[Path]:
        """Return the marks of units that are being computed on a node."""
        marks = self.run_dir.glob("units/*/*/.*-work/*-running")
        return [mark for mark in marks if f"//{two_nodes.ADDRESSES[node]}:" in _text_of(mark)]

    def wait_for_units(self, driver: Driver, nodes: Sequence[str]) -> None:
        """Wait until a unit is being computed on each of some nodes; exploration has begun by then."""
        driver.wait_until(lambda events: names_of(events, "StageStarted", "explore") > 0)

        def at_work() -> bool:
            assert driver.process.poll() is None, f"the driver ended: {driver.log.read_text()}"
            return all(self.units_on(node) for node in nodes)

        wait_until(at_work, pause=0.01)

    def release(self, *stages: str) -> None:
        """Let the units of some stages continue, those that wait and all later ones."""
        for stage in stages:
            (self.folder / "plan" / stage).touch()

    def listeners(self, driver: Driver) -> list[str]:
        """Return address and port of all listeners of the run beyond loopback, its scheduler first."""
        listeners = [f"{address}:{port}" for address, port in self.slurm.head.listening()[driver.process.pid]]
        for node in two_nodes.NODES:
            here = self.slurm.node(node).listening()
            del here[self.slurm.daemons[f"slurmd-{node}"].pid]
            listeners += [f"{address}:{port}" for listening in here.values() for address, port in listening]
        off_loopback = [listener for listener in listeners if not listener.startswith("127.")]
        # The scheduler; a nanny and a worker on each node.
        assert len(off_loopback) == 1 + 2 * len(two_nodes.NODES), off_loopback
        return off_loopback

    def row(self, driver: Driver, fault: str, at: float, injected: int = 1) -> Row:
        """Wait for the end; return the row, with the units that were lost."""
        row = self.finish(driver, fault, "explore", at, injected)
        events = last_segment(self.run_dir)
        lost = [event for event in events if event["event"] == "UnitLost"]
        kinds = ", ".join(sorted({str(event["kind"]) for event in lost})) or "none"
        row.detail = (
            f"the run took {newest(self.run_dir) - self.began:.0f} s; units lost and computed again: {len(lost)} "
            f"({kinds}); jobs submitted: {len(self.submitted())}"
        )
        return row


def _text_of(mark: Path) -> str:
    try:
        return mark.read_text()
    except FileNotFoundError:
        return ""


@contextmanager
def disturbed(bench: Bench, slurm: TwoNodes) -> Iterator[tuple[OnNodes, Driver]]:
    """Yield a run of which each node computes a unit of exploration, which waits to be released."""
    folder = bench.fresh()
    step = STEPS["as it computes"]
    holds = [at_step("held", stage, step, act=f"wait {stage}", times=100) for stage in HELD_STAGES]
    with striking(folder / "plan", holds):
        run = OnNodes(bench, slurm, folder)
        driver = run.start()
        run.wait_for_units(driver, two_nodes.NODES)
        try:
            yield run, driver
        finally:
            run.release(*HELD_STAGES)


def cut_for_a_while(run: OnNodes, host: str) -> None:
    """Pull a cable, and plug it in again; exploration continues meanwhile, and labels wait."""
    run.slurm.network.cut(host)
    try:
        run.release("explore")
        time.sleep(CUT_SECONDS)
    finally:
        run.slurm.network.mend(host)
    run.release("label")


def node_cut_and_mended(bench: Bench, slurm: TwoNodes) -> list[Row]:
    """Pull the cable of a node that computes, and put it in again."""
    with disturbed(bench, slurm) as (run, driver):
        at = time.time()
        cut_for_a_while(run, "n2")
        return [run.row(driver, f"link of a node cut for {CUT_SECONDS:.0f} s", at)]


def node_cut(bench: Bench, slurm: TwoNodes) -> list[Row]:
    """Pull the cable of a node that computes; the run ends on the other one."""
    with disturbed(bench, slurm) as (run, driver):
        at = time.time()
        slurm.network.cut("n2")
        try:
            run.release(*HELD_STAGES)
            ended(driver, EXIT_QUARANTINED)
        finally:
            slurm.network.mend("n2")
            # Slurm asks a node that did not answer again after minutes only; a slurmd that starts reports itself.
            slurm.stop("slurmd-n2")
            slurm.start_node("n2")
        return [run.row(driver, "link of a node cut until the run was over", at)]


def node_killed(bench: Bench, slurm: TwoNodes) -> list[Row]:
    """Kill a node's slurmd with all that its job has started; the run ends on the other one."""
    with disturbed(bench, slurm) as (run, driver):
        at = time.time()
        n_killed = slurm.kill_node("n2")
        try:
            run.release(*HELD_STAGES)
            ended(driver, EXIT_QUARANTINED)
        finally:
            slurm.start_node("n2")
        return [run.row(driver, "slurmd of a node killed with its job", at, int(n_killed > 1))]


def driver_cut_off(bench: Bench, slurm: TwoNodes) -> list[Row]:
    """Pull the cable of the driver's node, and put it in again."""
    with disturbed(bench, slurm) as (run, driver):
        at = time.time()
        cut_for_a_while(run, "head")
        return [run.row(driver, f"driver's node cut off for {CUT_SECONDS:.0f} s", at)]


def intruders(bench: Bench, slurm: TwoNodes) -> list[Row]:
    """Give orders to all listeners of a run, without its keys, from one of its nodes and from another subnet."""
    with disturbed(bench, slurm) as (run, driver):
        canaries = run.folder / "canaries"
        canaries.mkdir()
        listeners = run.listeners(driver)
        at = time.time()
        refused, n_orders = 0, 0
        for host in (slurm.node("n1"), slurm.stranger):
            answers = order_from(host, canaries, "-", *listeners)
            refused += answers.count("refused")
            n_orders += len(answers)
        assert not list(canaries.iterdir()), "an order without keys was obeyed"
        # Without this the refusals would show nothing.
        (keys,) = run.run_dir.glob("keys-*")
        order_from(slurm.stranger, canaries, str(keys), listeners[0])
        assert len(list(canaries.iterdir())) == 1, "an order with the keys of the run was not obeyed"
        run.release(*HELD_STAGES)
        row = run.row(driver, "orders without the run's keys, from a node and from another subnet", at, n_orders)
        row.survived = refused
        return [row]


def order_from(host: Host, canaries: Path, keys: str, *listeners: str) -> list[str]:
    """Return whether each order that is given from a host, which reaches all listeners, was heard or refused."""
    answers: list[str] = json.loads(host.run(PYTHON, INTRUDER, canaries, keys, *listeners))
    return answers


DISTURBANCES: dict[str, Callable[[Bench, TwoNodes], list[Row]]] = {
    "node-cut-and-mended": node_cut_and_mended,
    "node-cut": node_cut,
    "node-killed": node_killed,
    "node-driver-cut-off": driver_cut_off,
    "node-intruders": intruders,
}
