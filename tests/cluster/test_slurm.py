"""Runs on a real Slurm: the bytes of a local run, whatever becomes of the jobs; and nothing is left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import slurm
from slurm import Slurm
from small_runs import SMALL, UNITS, committed, files_of
from waiting import wait_until

import daskpipe
from daskpipe.cluster import failures, job_scaler
from daskpipe.cluster.connect import LOOPBACK, connect
from daskpipe.cluster.scheduler import find_scheduler_address
from daskpipe.cluster.settings import Cluster
from daskpipe.cluster.sites import read_site
from daskpipe.cluster.submitted_jobs import RECORD
from daskpipe.cluster.tls import KEY_FILES
from daskpipe.config.load import load_config
from daskpipe.core.errors import ClusterError
from daskpipe.core.events import Event, Insecure, Notice, StageStarted, UnitCommitted, UnitYielded
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs.run import Result

pytestmark = pytest.mark.slow

CPU = '{jobs: 2, cores: 1, memory: 2GB, partition: cpu, walltime: "00:20:00"}'
GPU = '{jobs: 1, cores: 1, gpus: 1, memory: 2GB, partition: gpu, walltime: "00:20:00", idle: 0}'


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scaler look often: this queue serves nobody else."""
    monkeypatch.setattr(job_scaler, "TICK_SECONDS", 0.2)
    monkeypatch.setattr(job_scaler, "QUEUE_SECONDS", 1.0)


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., Path]:
    """Write the file of a site."""

    def site(**pools: str) -> Path:
        file = tmp_path / "here.yaml"
        file.write_text("class: SLURM\npools:\n" + "".join(f"  {name}: {pool}\n" for name, pool in pools.items()))
        return file

    return site


def one_job(*changes: str) -> str:
    """A pool of one job at a time."""
    return CPU.replace("jobs: 2", ", ".join(["jobs: 1", *changes]))


def run(site: Path, run_dir: Path, *subscribers: Callable[[Event], None]) -> Result:
    """Run the small config there, GPUs where the site has any."""
    overrides = [*SMALL, "explore.device=auto", f"cluster.name={site}"]
    return daskpipe.run("emt_alloy", overrides, run_dir=run_dir, subscribers=subscribers)


def submitted(run_dir: Path) -> list[dict[str, str]]:
    """Jobs of a run in the order in which they were submitted."""
    lines = [json.loads(line) for line in (run_dir / RECORD).read_text().splitlines()]
    return [line for line in lines if "job_id" in line]


def in_state(queue: Slurm, state: str) -> list[str]:
    """Ids of the jobs in a state."""
    return [job_id for job_id, job in queue.squeue().items() if job["state"] == state]


def nothing_is_left(queue: Slurm, run_dir: Path) -> None:
    queue.wait_until_idle()
    assert list(run_dir.glob("keys-*")) == []
    assert programs(run_dir) == []


def programs(run_dir: Path) -> list[psutil.Process]:
    """Return what the jobs of a run have started: `daskpipe.cluster.worker`, whose children are the workers."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "daskpipe.cluster.worker" in (words := process.info["cmdline"] or []) and str(run_dir) in " ".join(words)
    ]


class Once:
    """Subscriber that does something when a unit of a stage is committed for the first time."""

    def __init__(self, stage: str, act: Callable[[], None]) -> None:
        self.stage, self.act, self.done = stage, act, False
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, UnitCommitted) and event.stage == self.stage and not self.done:
            self.done = True
            self.act()

    def notices(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Notice)]


# --- an undisturbed run -----------------------------------------------------------------------------


def listening(*processes: psutil.Process) -> set[str]:
    """Addresses that processes listen on."""
    return {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_two_pools_give_the_same_bytes_and_leave_nothing(
    queue: Slurm, reference: Result, site: Callable[..., Path], tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}
    run_dir = tmp_path / "run"

    def look(event: Event) -> None:
        if isinstance(event, UnitCommitted) and event.stage == "explore":
            seen["gpu"] = [job for job in queue.squeue().values() if job["partition"] == "gpu"]
            seen["driver"] = listening(psutil.Process())
            jobs = programs(run_dir)
            seen["workers"] = listening(*jobs, *(child for job in jobs for child in job.children(recursive=True)))
            (keys,) = run_dir.glob("keys-*")
            seen["keys"] = keys.name
            seen["modes"] = {path.name: path.stat().st_mode & 0o777 for path in (keys, *keys.iterdir())}
        if isinstance(event, StageStarted) and event.stage == "label":
            # The GPU job has had nothing to do since exploration ended; those of the other pool work.
            wait_until(lambda: all(job["partition"] == "cpu" for job in queue.squeue().values()))
            seen["given back"] = True

    file = site(cpu=CPU, gpu=GPU)
    result = run(file, run_dir, look)
    assert files_of(result.dataset) == files_of(reference.dataset)
    assert len(seen["gpu"]) == 1
    assert seen["given back"]
    assert seen["modes"].pop(seen["keys"]) == 0o700
    assert seen["modes"] == dict.fromkeys(KEY_FILES, 0o600)
    # TLS on one address of this machine; the dashboard and the workers' HTTP on loopback.
    address = find_scheduler_address(read_site(str(file)))
    assert seen["driver"] == seen["workers"] == {LOOPBACK, address}
    pools = [job["pool"] for job in submitted(run_dir)]
    assert sorted(pools) == ["cpu", "cpu", "gpu"]
    nothing_is_left(queue, run_dir)


QUICKSTART = ["explore.dynamics.steps=20", "explore.dynamics.stride=10", "select.n=8"]
"""The quickstart with less molecular dynamics and fewer labels: MACE explores, CHGNet labels."""


def test_the_quickstart_gives_the_same_bytes(queue: Slurm, site: Callable[..., Path], tmp_path: Path) -> None:
    local = daskpipe.run("quickstart", [*QUICKSTART, "cluster.workers=2", "cluster.gpus=0"], run_dir=tmp_path / "local")
    file = site(cpu=CPU.replace("2GB", "4GB"), gpu=GPU.replace("jobs: 1", "jobs: 2").replace("2GB", "4GB"))
    result = daskpipe.run("quickstart", [*QUICKSTART, f"cluster.name={file}"], run_dir=tmp_path / "run")
    assert files_of(result.dataset) == files_of(local.dataset)
    assert {job["pool"] for job in submitted(result.run_dir)} == {"cpu", "gpu"}
    nothing_is_left(queue, result.run_dir)


# --- jobs that are disturbed ------------------------------------------------------------------------


def cancel_running(queue: Slurm) -> None:
    slurm.command("scancel", *in_state(queue, "RUNNING"))


def requeue_running(queue: Slurm) -> None:
    (job_id,) = in_state(queue, "RUNNING")
    queue.requeue(job_id)


@pytest.mark.parametrize(("disturb", "n_jobs"), [(cancel_running, 2), (requeue_running, 1)])
def test_a_job_that_goes_is_replaced_and_one_that_comes_back_is_not(
    disturb: Callable[[Slurm], None],
    n_jobs: int,
    queue: Slurm,
    reference: Result,
    site: Callable[..., Path],
    tmp_path: Path,
) -> None:
    once = Once("explore", lambda: disturb(queue))
    result = run(site(cpu=one_job()), tmp_path / "run", once)
    assert once.done
    assert len(submitted(tmp_path / "run")) == n_jobs
    assert files_of(result.dataset) == files_of(reference.dataset)
    nothing_is_left(queue, tmp_path / "run")


def test_the_queue_may_be_away_for_a_while(
    queue: Slurm, reference: Result, site: Callable[..., Path], tmp_path: Path
) -> None:
    """The controller is killed, and the only job with it; the controller comes back when that was noticed."""

    def go_down() -> None:
        queue.stop_controller()
        (program,) = programs(tmp_path / "run")
        program.kill()

    def come_back(event: Event) -> None:
        if isinstance(event, Notice) and "does not answer" in event.message and "slurmctld" not in queue.daemons:
            queue.start_controller()

    once = Once("explore", go_down)
    result = run(site(cpu=one_job()), tmp_path / "run", once, come_back)
    assert any("the queue of here does not answer" in line for line in once.notices())
    assert len(submitted(tmp_path / "run")) == 2
    assert files_of(result.dataset) == files_of(reference.dataset)
    nothing_is_left(queue, tmp_path / "run")


def test_jobs_end_at_their_walltime_and_others_go_on(
    queue: Slurm, reference: Result, site: Callable[..., Path], tmp_path: Path
) -> None:
    """A minute, of which the workers know nothing: Slurm ends the job, and whatever it is at."""
    deaf = tmp_path / "deaf.sh"
    deaf.write_text("unset DASKPIPE_DEADLINE SLURM_JOB_END_TIME\n")
    pool = one_job(f"environment: [source {deaf}]").replace("00:20:00", "00:01:00")

    def wait_for_the_end() -> None:
        (job_id,) = in_state(queue, "RUNNING")
        wait_until(lambda: job_id not in queue.squeue())

    once = Once("generate", wait_for_the_end)
    result = run(site(cpu=pool), tmp_path / "run", once)
    assert len(submitted(tmp_path / "run")) >= 2
    (log,) = (tmp_path / "run" / "jobs").glob(f"{submitted(tmp_path / 'run')[0]['name']}-*")
    assert "DUE TO TIME LIMIT" in log.read_text()
    assert files_of(result.dataset) == files_of(reference.dataset)
    nothing_is_left(queue, tmp_path / "run")


def test_workers_that_know_their_end_retire_and_their_jobs_end(
    queue: Slurm, reference: Result, site: Callable[..., Path], tmp_path: Path
) -> None:
    """No unit starts in the last minute of a job: the worker retires, which ends the job, and another one comes."""
    soon = tmp_path / "soon.sh"
    flag = tmp_path / "flag"
    soon.write_text(f"[ -e {flag} ] || export DASKPIPE_DEADLINE=$(( $(date +%s) + 30 ))\ntouch {flag}\n")
    once = Once("generate", lambda: None)
    result = run(site(cpu=one_job(f"environment: [source {soon}]")), tmp_path / "run", once)
    assert sum(isinstance(event, UnitYielded) for event in once.events) >= 1
    assert len(submitted(tmp_path / "run")) == 2
    assert files_of(result.dataset) == files_of(reference.dataset)
    nothing_is_left(queue, tmp_path / "run")


def test_what_a_dead_driver_left_is_cancelled(
    queue: Slurm, reference: Result, site: Callable[..., Path], tmp_path: Path
) -> None:
    run_dir, file = tmp_path / "run", site(cpu=CPU)
    words = ["run", "emt_alloy", *SMALL, "--cluster", str(file), "--run-dir", str(run_dir)]
    with (tmp_path / "said.txt").open("wb") as said:
        driver = subprocess.Popen([sys.executable, "-m", "daskpipe", *words], stdout=said, stderr=said)
    wait_until(lambda: driver.poll() is not None or len(committed(run_dir)) > UNITS["generate"])
    assert driver.poll() is None, (tmp_path / "said.txt").read_text()
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    left = set(in_state(queue, "RUNNING"))
    assert len(left) == 2
    assert len(list(run_dir.glob("keys-*"))) == 1
    events: list[Event] = []
    result = daskpipe.resume(run_dir, subscribers=[events.append])
    (notice,) = [event.message for event in events if isinstance(event, Notice) and "had left" in event.message]
    assert all(job_id in notice for job_id in left)
    assert files_of(result.dataset) == files_of(reference.dataset)
    nothing_is_left(queue, run_dir)


# --- jobs that cannot be had ------------------------------------------------------------------------


def test_jobs_that_die_before_a_worker_registers_stop_the_run(
    queue: Slurm, site: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(failures, "FAILURE_LIMIT", 4)
    events: list[Event] = []
    pool = one_job("environment: [ls /no/such/module, exit 3]")
    with pytest.raises(
        ClusterError,
        match=r"(?s)4 jobs in a row of pool cpu of here came to nothing.*job \d+ ended before a worker of it registered"
        r".*No such file or directory.*daskpipe plan .*config.yaml --show-script",
    ):
        run(site(cpu=pool), tmp_path / "run", events.append)
    notices = " ".join(event.message for event in events if isinstance(event, Notice))
    # Its only machine is left out; then Slurm takes no jobs, and it is taken in again.
    assert "2 jobs in a row ended early on" in notices
    assert "here refuses jobs without" in notices
    nothing_is_left(queue, tmp_path / "run")


def test_a_queue_that_takes_no_jobs_stops_the_run_at_once(
    queue: Slurm, site: Callable[..., Path], tmp_path: Path
) -> None:
    pool = CPU.replace("partition: cpu", "partition: cup")
    with pytest.raises(
        ClusterError, match=r"here takes no jobs of pool cpu: .*invalid partition.*cluster.pools.cpu.partition=NAME"
    ):
        run(site(cpu=pool), tmp_path / "run")
    nothing_is_left(queue, tmp_path / "run")


def test_jobs_that_the_queue_would_never_start_stop_the_run(
    queue: Slurm, site: Callable[..., Path], tmp_path: Path
) -> None:
    pool = one_job("directives: [--hold]")
    with pytest.raises(ClusterError, match=r"job \d+ of pool cpu of here would never start: JobHeldUser"):
        run(site(cpu=pool), tmp_path / "run")
    nothing_is_left(queue, tmp_path / "run")


def test_without_tls_only_with_a_warning(
    queue: Slurm, site: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    events: list[Event] = []
    settings = Cluster(name=str(site(cpu=CPU)), insecure=True)
    with connect(settings, tmp_path / "workers.log", events.append) as workers:
        address = workers.client.scheduler.address
        assert address.startswith("tcp://")
        assert list(tmp_path.glob("keys-*")) == []
    assert f"WARNING: no TLS at {address}. Whoever reaches it" in capfd.readouterr().err
    assert [event.address for event in events if isinstance(event, Insecure)] == [address]
    assert load_config("emt_alloy").cluster.insecure is False
    assert RunDirectory(tmp_path).config.exists() is False
