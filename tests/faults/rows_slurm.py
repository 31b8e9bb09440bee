"""Rows of the matrix of faults: jobs on a real Slurm, with a pool for GPUs and one for CPUs."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from driver import Driver, Events
from slurm import Slurm, command
from small_runs import last_segment, names_of
from strikes import HURRIED, Bench, Row, ended
from waiting import wait_until

from daskpipe.cluster.submitted_jobs import RECORD
from daskpipe.core.errors import EXIT_QUARANTINED

CPU = '{{jobs: 1, cores: 1, memory: 2GB, partition: cpu, walltime: "{walltime}"{more}}}'
GPU = '{{jobs: 1, cores: 1, gpus: 1, memory: 2GB, partition: gpu, walltime: "{walltime}", idle: 0{more}}}'


@dataclass
class OnSlurm:
    """Start a run on Slurm that is to be disturbed."""

    bench: Bench
    slurm: Slurm
    folder: Path
    walltime: str = "00:20:00"
    environment: str = ""

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return self.folder / "run"

    def start(self) -> Driver:
        """Start a driver."""
        site = self.folder / "here.yaml"
        words = {"walltime": self.walltime, "more": f", environment: [{self.environment}]" if self.environment else ""}
        site.write_text(f"class: SLURM\npools:\n  cpu: {CPU.format(**words)}\n  gpu: {GPU.format(**words)}\n")
        return self.bench.start(
            self.run_dir, "explore.device=auto", "cluster.workers=null", f"cluster.name={site}", program=HURRIED
        )

    def until(self, driver: Driver, stage: str) -> None:
        """Wait until a unit of a stage is being computed; the first one of a process takes seconds, for its imports."""

        def reached(events: Events) -> bool:
            assert names_of(events, "StageFinished", stage) == 0, f"{stage} was over before it was disturbed"
            return any(self.run_dir.glob(f"units/{stage}/*/.*-work/*-running"))

        driver.wait_until(reached)

    def jobs(self, state: str) -> list[str]:
        """Return the ids of the jobs in a state."""
        return [job_id for job_id, job in self.slurm.squeue().items() if job["state"] == state]

    def submitted(self) -> list[str]:
        """Return the ids of all jobs of the run, in their order."""
        lines = [json.loads(line) for line in (self.run_dir / RECORD).read_text().splitlines()]
        return [line["job_id"] for line in lines if "job_id" in line]

    def logs(self) -> str:
        """Return what the jobs printed."""
        return "\n".join(path.read_text(errors="replace") for path in (self.run_dir / "jobs").iterdir())

    def finish(self, driver: Driver, fault: str, stage: str, at: float, injected: int) -> Row:
        """Wait for the end; check that no job is left; return the row."""
        ended(driver, EXIT_QUARANTINED)
        self.slurm.wait_until_idle()
        assert list(self.run_dir.glob("keys-*")) == []
        return self.bench.row(fault, stage, self.run_dir, at, injected)


def programs(run_dir: Path) -> list[psutil.Process]:
    """Return the processes that the jobs of a run have started."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "daskpipe.cluster.worker" in (words := process.info["cmdline"] or []) and str(run_dir) in " ".join(words)
    ]


def scancel(bench: Bench, slurm: Slurm) -> list[Row]:
    """Cancel the jobs that run."""
    run = OnSlurm(bench, slurm, bench.fresh())
    driver = run.start()
    run.until(driver, "explore")
    running = run.jobs("RUNNING")
    at = time.time()
    command("scancel", *running)
    row = run.finish(driver, "scancel of all worker jobs under way", "explore", at, len(running))
    assert len(run.submitted()) > len(running)
    return [row]


def requeue(bench: Bench, slurm: Slurm) -> list[Row]:
    """Put the job of the GPU pool back into the queue."""
    run = OnSlurm(bench, slurm, bench.fresh())
    driver = run.start()
    run.until(driver, "explore")
    (job_id,) = [job_id for job_id, job in slurm.squeue().items() if job["partition"] == "gpu"]
    at = time.time()
    slurm.requeue(job_id)
    return [run.finish(driver, "scontrol requeue", "explore", at, 1)]


def walltime(bench: Bench, slurm: Slurm) -> list[Row]:
    """Let Slurm end jobs that do not know their walltime, while the driver is stopped."""
    folder = bench.fresh()
    deaf = folder / "deaf.sh"
    deaf.write_text("unset DASKPIPE_DEADLINE SLURM_JOB_END_TIME\n")
    run = OnSlurm(bench, slurm, folder, walltime="00:01:00", environment=f"source {deaf}")
    driver = run.start()
    run.until(driver, "explore")
    first = run.jobs("RUNNING")
    driver.process.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: not set(first) & set(slurm.squeue()))
    finally:
        at = time.time()
        driver.process.send_signal(signal.SIGCONT)
    n_ended = run.logs().count("DUE TO TIME LIMIT")
    return [run.finish(driver, "walltime of the jobs reached", "explore", at, n_ended)]


def early_death(bench: Bench, slurm: Slurm) -> list[Row]:
    """Let the first job end before its worker registers."""
    folder = bench.fresh()
    flag, fatal = folder / "flag", folder / "fatal.sh"
    fatal.write_text(f"mkdir {flag} 2>/dev/null && exit 3\n")
    at = time.time()
    run = OnSlurm(bench, slurm, folder, environment=f"source {fatal}")
    driver = run.start()
    ended(driver, EXIT_QUARANTINED)
    notices = [event["message"] for event in last_segment(run.run_dir) if event["event"] == "Notice"]
    n_died = sum("ended before a worker of it registered" in notice for notice in notices)
    return [run.finish(driver, "job dies before its worker registers", "generate", at, n_died)]


def controller(bench: Bench, slurm: Slurm) -> list[Row]:
    """Stop slurmctld and kill the jobs' programs; it comes back when the driver has noticed."""
    run = OnSlurm(bench, slurm, bench.fresh())
    driver = run.start()
    run.until(driver, "explore")
    at = time.time()
    slurm.stop_controller()
    try:
        for program in programs(run.run_dir):
            program.kill()
        wait_until(lambda: "does not answer" in ledger_of(run.run_dir))
    finally:
        slurm.start_controller()
    return [run.finish(driver, "slurmctld restarted, the jobs' programs killed meanwhile", "explore", at, 1)]


def drain(bench: Bench, slurm: Slurm) -> list[Row]:
    """Drain the only node and cancel its jobs; others wait in the queue until it is resumed."""
    run = OnSlurm(bench, slurm, bench.fresh())
    driver = run.start()
    run.until(driver, "explore")
    before = set(run.submitted())
    at = time.time()
    node = os.uname().nodename
    command("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=faults")
    try:
        command("scancel", *run.jobs("RUNNING"))
        wait_until(lambda: set(run.jobs("PENDING")) - before)
    finally:
        command("scontrol", "update", f"NodeName={node}", "State=RESUME")
    return [run.finish(driver, "node drained, its jobs cancelled, node resumed", "explore", at, 1)]


def driver_killed(bench: Bench, slurm: Slurm) -> list[Row]:
    """Kill the driver: its jobs are cancelled by the next one."""
    run = OnSlurm(bench, slurm, bench.fresh())
    driver = run.start()
    run.until(driver, "explore")
    at = time.time()
    assert driver.send(signal.SIGKILL) == -signal.SIGKILL
    left = run.jobs("RUNNING")
    row = run.finish(run.start(), "driver of a Slurm run killed, its jobs left", "explore", at, 1 if left else 0)
    assert any("had left" in event["message"] for event in last_segment(run.run_dir) if event["event"] == "Notice")
    return [row]


def ledger_of(run_dir: Path) -> str:
    """Return the text of all segments of the ledger."""
    return "".join(path.read_text() for path in sorted((run_dir / "ledger").glob("*.jsonl")))


DISTURBANCES: dict[str, Callable[[Bench, Slurm], list[Row]]] = {
    "slurm-scancel": scancel,
    "slurm-requeue": requeue,
    "slurm-walltime": walltime,
    "slurm-early-death": early_death,
    "slurm-controller": controller,
    "slurm-drain": drain,
    "slurm-driver-killed": driver_killed,
}
