"""Rows of the matrix of faults: processes that are killed, or stand still."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from driver import Driver
from strikes import HURRIED, PYTHON, STAGES, Bench, Plan, Row, Strike, ended, striking
from waiting import wait_until

from daskpipe.core.errors import EXIT_INTERRUPTED, EXIT_QUARANTINED, ClusterError, ConfigError

ATTEMPT = r"units/STAGE/[0-9a-f]{2}/\.[0-9a-f]{32}-[0-9a-f]{8}-attempt"

STEPS: dict[str, dict[str, str]] = {
    "as it computes": {"call": "write", "when": "after", "pattern": r"units/STAGE/.*-running: ", "file": "-running$"},
    "before its folder is made": {"call": "mkdir", "when": "before", "pattern": f"{ATTEMPT}$"},
    "after its folder was made": {"call": "mkdir", "when": "after", "pattern": f"{ATTEMPT}$"},
    "before payload.npz is synced": {"call": "fsync", "when": "before", "pattern": f"{ATTEMPT}/payload.npz$"},
    "after payload.npz": {"call": "fsync", "when": "after", "pattern": f"{ATTEMPT}/payload.npz$"},
    "after rejected.json": {"call": "fsync", "when": "after", "pattern": f"{ATTEMPT}/rejected.json$"},
    "after manifest.json": {"call": "fsync", "when": "after", "pattern": f"{ATTEMPT}/manifest.json$"},
    "before the rename": {"call": "rename", "when": "before", "pattern": f"{ATTEMPT} -> "},
    "after the rename": {"call": "rename", "when": "after", "pattern": f"{ATTEMPT} -> "},
    "before the receipt returns": {"call": "fsync", "when": "after", "pattern": r"units/STAGE/[0-9a-f]{2}$"},
}
"""Steps of a unit, in their order."""

OWN_FILES = {"call": "fsync", "when": "after", "pattern": f"{ATTEMPT}/(?!payload|rejected|manifest)[^/]+$"}
PUBLISHED = {"call": "rename", "pattern": r"/\.dataset-[0-9a-f]{32}\.zarr -> .*dataset\.zarr$"}
MORE_STEPS = (
    ("store-sort", "after a file of its own", OWN_FILES),
    ("store-write", "after a file of its own", OWN_FILES),
    ("store", "before the dataset is published", {**PUBLISHED, "when": "before"}),
)
"""Steps that only units of some stages have."""

LEDGER_MOMENTS = ("before", "half", "after")


def at_step(fault: str, stage: str, step: dict[str, str], **more: Any) -> Strike:
    """Return a strike at a step of the first unit of a stage that comes there."""
    return Strike(fault=fault, stage=stage, **{**step, "pattern": step["pattern"].replace("STAGE", stage)}, **more)


def diagonal(rotation: int, stages: Sequence[str], who: str, **more: Any) -> list[Strike]:
    """Return a strike in each stage; each at the next step, so that as many rotations as steps make all pairs."""
    names = list(STEPS)
    return [
        at_step(f"{who} {name}", stage, STEPS[name], **more)
        for index, stage in enumerate(STAGES)
        if stage in stages and (name := names[(index + rotation) % len(names)])
    ]


def more_steps(stages: Sequence[str]) -> list[Strike]:
    """Return the strikes at steps that only some stages have."""
    return [at_step(f"worker killed {name}", stage, step) for stage, name, step in MORE_STEPS if stage in stages]


def published(stages: Sequence[str], who: str, **more: str) -> list[Strike]:
    """Return the strike between the publication of the dataset and the commit of its unit."""
    step = {**PUBLISHED, "when": "after"}
    return [at_step(f"{who} after the dataset was published", "store", step, **more)] if "store" in stages else []


def workers_struck(bench: Bench, strikes: Sequence[Strike]) -> list[Row]:
    """Strike workers at the steps of units, in the run of one driver."""
    if not strikes:  # none of the stages that were asked for
        return []
    folder = bench.fresh()
    with striking(folder / "plan", strikes) as plan:
        ended(bench.start(folder / "run"), EXIT_QUARANTINED)
    return bench.rows(plan, folder / "run")


def driver_killed(bench: Bench, strikes: Sequence[Strike]) -> list[Row]:
    """Kill the driver, with its scheduler, again and again; the next one starts while the last one's workers live."""
    if not strikes:
        return []
    folder = bench.fresh()
    starts: list[float] = []
    with striking(folder / "plan", strikes) as plan:
        code, n_before = -signal.SIGKILL, -1
        while code != EXIT_QUARANTINED:
            assert plan.n_struck > n_before, "a driver was killed by something else"
            n_before = plan.n_struck
            starts.append(time.time())
            code = ended(bench.start(folder / "run"), EXIT_QUARANTINED, -signal.SIGKILL)
        wait_until(lambda: not alive(plan))
    return bench.rows(plan, folder / "run", starts)


def alive(plan: Plan) -> list[psutil.Process]:
    """Return the processes that struck, or were struck, and are still there."""
    processes = []
    for mark in (mark for strike in plan.strikes for mark in plan.struck(strike)):
        for pid in (mark.pid, mark.parent):
            try:
                process = psutil.Process(pid)
                if pid != 1 and process.create_time() < mark.at and process.status() != psutil.STATUS_ZOMBIE:
                    processes.append(process)
            except psutil.NoSuchProcess:
                continue
    return [process for process in processes if "multiprocessing" in " ".join(process.cmdline())]


def workers_at_steps(bench: Bench, rotation: int) -> list[Row]:
    """Kill a worker in each stage, each at another step of its unit."""
    return workers_struck(bench, diagonal(rotation, bench.stages, "worker killed"))


def workers_at_more_steps(bench: Bench) -> list[Row]:
    """Kill workers at the steps that only some stages have."""
    return workers_struck(bench, more_steps(bench.stages))


def worker_has_published(bench: Bench) -> list[Row]:
    """Kill the worker that has published the dataset, before its unit is committed."""
    return workers_struck(bench, published(bench.stages, "worker killed"))


def driver_while_published(bench: Bench) -> list[Row]:
    """Kill the driver in the moment in which a worker has published the dataset."""
    return driver_killed(bench, published(bench.stages, "driver killed", act="kill parent"))


def driver_while_units_commit(bench: Bench, rotation: int) -> list[Row]:
    """Let a worker kill its driver at a step of its unit, and continue for as long as it lives."""
    return driver_killed(bench, diagonal(rotation, bench.stages, "driver killed, a unit", act="kill parent"))


def driver_at_its_ledger(bench: Bench, rotation: int) -> list[Row]:
    """Kill the driver before, in the middle of and after a line of its ledger in each stage."""
    strikes = []
    for index, stage in enumerate(STAGES):
        when = LEDGER_MOMENTS[(index + rotation) % len(LEDGER_MOMENTS)]
        name = {"half": "in the middle of"}.get(when, when)
        if stage in bench.stages:
            strikes.append(
                Strike(
                    fault=f"driver killed {name} a line of its ledger",
                    stage=stage,
                    call="write",
                    when=when,
                    file=r"ledger/\d+\.jsonl$",
                    pattern=f'"event": "UnitCommitted", "stage": "{stage}"',
                )
            )
    return driver_killed(bench, strikes)


def driver_at_its_files(bench: Bench) -> list[Row]:
    """Kill the driver around each small file that it writes."""
    files = (
        ("config.yaml", "start", r"/\.config\.yaml-\w+ -> "),
        ("potentials.json", "start", r"/\.potentials\.json-\w+ -> "),
        ("a quarantined structure", "generate", r"/quarantine/\.\w+\.json-\w+ -> "),
        ("quality.json", "end", r"/\.quality\.json-\w+ -> "),
    )
    strikes = [
        Strike(fault=f"driver killed {when} {name} is renamed", stage=stage, call="rename", when=when, pattern=pattern)
        for name, stage, pattern in files
        for when in ("before", "after")
    ]
    lease = Strike(
        fault="driver killed in the middle of its lease",
        stage="start",
        call="fsync",
        when="before",
        pattern=r"/drivers/\d+\.json$",
    )
    return driver_killed(bench, [lease, *strikes])


# --- a scheduler of its own -------------------------------------------------------------------------


@dataclass
class Cluster:
    """Start a scheduler and workers as people start them."""

    folder: Path
    options: Sequence[str] = ()
    n_workers: int = 2
    scheduler: subprocess.Popen[bytes] = field(init=False)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    address: str = ""

    def start(self) -> None:
        """Start the scheduler and its workers."""
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        words = ["-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        self.scheduler = self._process(*words, "--scheduler-file", str(file))
        wait_until(file.exists)
        time.sleep(0.2)
        self.address = json.loads(file.read_text())["address"]
        (self.folder / "scheduler.pid").write_text(str(self.scheduler.pid))
        self.workers = [self._worker() for _ in range(self.n_workers)]
        self._wait_for_workers()

    def tend(self) -> None:
        """Start a new worker for each that has ended."""
        for number, worker in enumerate(self.workers):
            if worker.poll() is not None:
                self.workers[number] = self._worker()

    def stop(self) -> None:
        """Kill the scheduler and the workers, with all processes that they have started."""
        for process in (*self.workers, self.scheduler):
            try:
                children = psutil.Process(process.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                children = []
            process.kill()
            process.wait(30)
            for child in children:
                if child.is_running():
                    child.kill()

    def _worker(self) -> subprocess.Popen[bytes]:
        return self._process("-m", "daskpipe.cluster.worker", self.address, "--nthreads", "1", *self.options)

    def _process(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / "cluster.txt").open("ab") as log:
            return subprocess.Popen([PYTHON, *words], stdout=log, stderr=log, start_new_session=True)

    def _wait_for_workers(self) -> None:
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(self.n_workers, timeout=120)


@contextmanager
def external(folder: Path, *options: str) -> Iterator[Cluster]:
    """Start a cluster, and end it."""
    cluster = Cluster(folder, options)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


def nannies_killed(bench: Bench) -> list[Row]:
    """Kill the nanny and its worker as it computes, in each stage; another worker comes, as a job's successor would."""
    folder = bench.fresh()
    strikes = [
        at_step("nanny killed with its worker", stage, STEPS["as it computes"], act="kill parent self")
        for stage in bench.stages
    ]
    with striking(folder / "plan", strikes) as plan, external(folder / "plan") as cluster:
        driver = bench.start(folder / "run", f"cluster.address={cluster.address}")
        while driver.process.poll() is None:
            cluster.tend()
            time.sleep(0.2)
        ended(driver, EXIT_QUARANTINED)
    return bench.rows(plan, folder / "run")


def schedulers_killed(bench: Bench) -> list[Row]:
    """Kill a scheduler of its own in each stage; the driver reports it and ends, and is resumed with another one."""
    folder = bench.fresh()
    strikes = [
        at_step("scheduler killed", stage, STEPS["as it computes"], act="kill scheduler.pid") for stage in bench.stages
    ]
    starts: list[float] = []
    with striking(folder / "plan", strikes) as plan:
        for turn in range(len(strikes) + 1):
            with external(folder / "plan", "--death-timeout", "5") as cluster:
                starts.append(time.time())
                driver = bench.start(folder / "run", f"cluster.address={cluster.address}", program=HURRIED)
                ended(driver, EXIT_QUARANTINED if turn == len(strikes) else ClusterError.exit_code)
                assert plan.n_struck == min(turn + 1, len(strikes))
    return bench.rows(plan, folder / "run", starts)


# --- standing still ---------------------------------------------------------------------------------

TTL_SECONDS = 5
"""Shortest time after which Dask gives up a worker, whatever its settings."""


def workers_stopped(bench: Bench, stages: Sequence[str] = ("explore", "label", "store-plan")) -> list[Row]:
    """Stop workers before they rename, for longer than their scheduler waits; their units are run a second time."""
    folder = bench.fresh()
    fault = "worker stopped for longer than Dask's TTL before the rename, no nanny"
    strikes = [
        at_step(fault, stage, STEPS["before the rename"], act="stop") for stage in stages if stage in bench.stages
    ]
    went_on: dict[str, bool] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", f"{TTL_SECONDS}s")
        with striking(folder / "plan", strikes) as plan, external(folder / "plan", "--no-nanny") as cluster:
            driver = bench.start(folder / "run", f"cluster.address={cluster.address}")
            while driver.process.poll() is None:
                cluster.tend()
                for strike in strikes:
                    for mark in plan.struck(strike):
                        attempt, _, final = mark.subject.partition(" -> ")
                        if strike.stage not in went_on and Path(final).exists():
                            assert Path(attempt, "manifest.json").exists()  # both attempts are whole
                            os.kill(mark.pid, signal.SIGCONT)
                            wait_until(lambda attempt=attempt: not Path(attempt).exists())
                            went_on[strike.stage] = True
                time.sleep(0.1)
            ended(driver, EXIT_QUARANTINED)
    rows = bench.rows(plan, folder / "run")
    for row in rows:
        row.survived = int(went_on.get(row.stage, False))
    return rows


def local_worker_stopped(bench: Bench) -> list[Row]:
    """Stop a local worker: its scheduler has the nanny end it and start another one."""
    folder = bench.fresh()
    step = STEPS["after payload.npz"]
    strikes = [at_step("local worker stopped for longer than Dask's TTL", "label", step, act="stop")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", f"{TTL_SECONDS}s")
        with striking(folder / "plan", strikes) as plan:
            ended(bench.start(folder / "run"), EXIT_QUARANTINED)
    assert not alive(plan)
    return bench.rows(plan, folder / "run")


LEASE_SECONDS = 6.0


def driver_stopped(bench: Bench, stages: Sequence[str] = ("explore",)) -> list[Row]:
    """Stop a driver for longer than its lease; another one takes over, and the first ends when it wakes up."""
    folder = bench.fresh()
    (stage,) = stages
    strike = Strike(
        fault="driver stopped for longer than its lease, another takes over",
        stage=stage,
        call="write",
        when="after",
        file=r"ledger/\d+\.jsonl$",
        pattern=f'"event": "StageStarted", "stage": "{stage}"',
        act="stop",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASKPIPE_LEASE_SECONDS", str(LEASE_SECONDS))
        with striking(folder / "plan", [strike]) as plan:
            first = bench.start(folder / "run")
            try:
                wait_until(lambda: plan.n_struck)
                time.sleep(1.5 * LEASE_SECONDS)
                starts = [time.time()]
                second = Driver(folder / "run", "resume", str(folder / "run"))
                ended(second, EXIT_QUARANTINED)
            finally:
                first.process.send_signal(signal.SIGCONT)
            ended(first, EXIT_INTERRUPTED)
    return bench.rows(plan, folder / "run", starts)


def two_drivers_at_once(bench: Bench) -> list[Row]:
    """Start two drivers of one run in the same moment: one is refused."""
    run_dir = bench.fresh() / "run"
    at = time.time()
    drivers = [bench.start(run_dir), bench.start(run_dir)]
    codes = sorted(ended(driver, EXIT_QUARANTINED, ConfigError.exit_code) for driver in drivers)
    injected = int(codes == [ConfigError.exit_code, EXIT_QUARANTINED])
    return [bench.row("two drivers started at once", "start", run_dir, at, injected)]
