"""Run on a real Slurm: same bytes as a local run whatever happens to the jobs, and nothing left behind."""

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
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the job scaler's intervals: this queue serves nobody else."""
    monkeypatch.setattr(job_scaler, "TICK_SECONDS", 0.2)
    monkeypatch.setattr(job_scaler, "QUEUE_SECONDS", 1.0)


@pytest.fixture
def write_site(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the file of a site with some pools."""

    def write_site(**pools: str) -> Path:
        file = tmp_path / "here.yaml"
        file.write_text("class: SLURM\npools:\n" + "".join(f"  {name}: {pool}\n" for name, pool in pools.items()))
        return file

    return write_site


def make_one_job(*changes: str) -> str:
    """Return a pool of one job at a time."""
    return CPU.replace("jobs: 2", ", ".join(["jobs: 1", *changes]))


def run_on(site: Path, run_dir: Path, *subscribers: Callable[[Event], None]) -> Result:
    """Run the small config on a site, with GPUs if the site has any."""
    overrides = [*SMALL, "explore.device=auto", f"cluster.name={site}"]
    return daskpipe.run("emt_alloy", overrides, run_dir=run_dir, subscribers=subscribers)


def read_submitted(run_dir: Path) -> list[dict[str, str]]:
    """Return the jobs of a run in the order in which they were submitted."""
    lines = [json.loads(line) for line in (run_dir / RECORD).read_text().splitlines()]
    return [line for line in lines if "job_id" in line]


def find_jobs(queue: Slurm, state: str) -> list[str]:
    """Return the ids of the jobs in a state."""
    return [job_id for job_id, job in queue.squeue().items() if job["state"] == state]


def check_nothing_is_left(queue: Slurm, run_dir: Path) -> None:
    """Check that a run has left neither jobs nor keys nor processes."""
    queue.wait_until_idle()
    assert list(run_dir.glob("keys-*")) == []
    assert find_processes(run_dir) == []


def find_processes(run_dir: Path) -> list[psutil.Process]:
    """Return the processes `daskpipe.cluster.worker` of a run's jobs; the workers are their children."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "daskpipe.cluster.worker" in (words := process.info["cmdline"] or []) and str(run_dir) in " ".join(words)
    ]


class Once:
    """Subscriber that calls a function when a unit of a stage is committed for the first time."""

    def __init__(self, stage: str, act: Callable[[], None]) -> None:
        self.stage, self.act, self.done = stage, act, False
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, UnitCommitted) and event.stage == self.stage and not self.done:
            self.done = True
            self.act()

    def read_notices(self) -> list[str]:
        """Return the messages of all notices."""
        return [event.message for event in self.events if isinstance(event, Notice)]


# --- an undisturbed run -----------------------------------------------------------------------------


def find_addresses(*processes: psutil.Process) -> set[str]:
    """Return the addresses that processes listen on."""
    return {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_two_pools_give_the_same_bytes_and_leave_nothing(
    queue: Slurm, reference: Result, write_site: Callable[..., Path], tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}
    run_dir = tmp_path / "run"

    def note_state(event: Event) -> None:
        if isinstance(event, UnitCommitted) and event.stage == "explore":
            seen["gpu"] = [job for job in queue.squeue().values() if job["partition"] == "gpu"]
            seen["driver"] = find_addresses(psutil.Process())
            jobs = find_processes(run_dir)
            seen["workers"] = find_addresses(*jobs, *(child for job in jobs for child in job.children(recursive=True)))
            (keys,) = run_dir.glob("keys-*")
            seen["keys"] = keys.name
            seen["modes"] = {path.name: path.stat().st_mode & 0o777 for path in (keys, *keys.iterdir())}
        if isinstance(event, StageStarted) and event.stage == "label":
            # The GPU job has had nothing to do since exploration ended; those of the other pool work.
            wait_until(lambda: all(job["partition"] == "cpu" for job in queue.squeue().values()))
            seen["is GPU job cancelled"] = True

    file = write_site(cpu=CPU, gpu=GPU)
    result = run_on(file, run_dir, note_state)
    assert files_of(result.dataset) == files_of(reference.dataset)
    assert len(seen["gpu"]) == 1
    assert seen["is GPU job cancelled"]
    assert seen["modes"].pop(seen["keys"]) == 0o700
    assert seen["modes"] == dict.fromkeys(KEY_FILES, 0o600)
    # TLS on one address of this machine; the dashboard and the workers' HTTP on loopback.
    address = find_scheduler_address(read_site(str(file)))
    assert seen["driver"] == seen["workers"] == {LOOPBACK, address}
    pools = [job["pool"] for job in read_submitted(run_dir)]
    assert sorted(pools) == ["cpu", "cpu", "gpu"]
    check_nothing_is_left(queue, run_dir)


QUICKSTART = [
    *(f"generate.sources.{name}.n=2" for name in ("alloys", "surfaces", "clusters")),
    *("explore.dynamics.steps=10", "explore.dynamics.equilibration=0", "explore.dynamics.stride=5"),
    *("explore.batch_size=3", "select.n=4"),
    *("label=emt", "label.checks.finite_differences=null"),
]
"""The quickstart with fewer seeds, less molecular dynamics and fewer labels: MACE explores, EMT labels."""


def test_the_quickstart_gives_the_same_bytes(queue: Slurm, write_site: Callable[..., Path], tmp_path: Path) -> None:
    local = daskpipe.run("quickstart", [*QUICKSTART, "cluster.workers=2", "cluster.gpus=0"], run_dir=tmp_path / "local")
    file = write_site(cpu=CPU.replace("2GB", "4GB"), gpu=GPU.replace("jobs: 1", "jobs: 2").replace("2GB", "4GB"))
    result = daskpipe.run("quickstart", [*QUICKSTART, f"cluster.name={file}"], run_dir=tmp_path / "run")
    assert files_of(result.dataset) == files_of(local.dataset)
    assert {job["pool"] for job in read_submitted(result.run_dir)} == {"cpu", "gpu"}
    check_nothing_is_left(queue, result.run_dir)


# --- jobs that are disturbed ------------------------------------------------------------------------


def cancel_running_jobs(queue: Slurm) -> None:
    """Cancel the jobs that run."""
    slurm.command("scancel", *find_jobs(queue, "RUNNING"))


def requeue_running_job(queue: Slurm) -> None:
    """Put the job that runs back into the queue."""
    (job_id,) = find_jobs(queue, "RUNNING")
    queue.requeue(job_id)


@pytest.mark.parametrize(("disturb", "n_jobs"), [(cancel_running_jobs, 2), (requeue_running_job, 1)])
def test_a_job_that_goes_is_replaced_and_one_that_comes_back_is_not(
    disturb: Callable[[Slurm], None],
    n_jobs: int,
    queue: Slurm,
    reference: Result,
    write_site: Callable[..., Path],
    tmp_path: Path,
) -> None:
    once = Once("explore", lambda: disturb(queue))
    result = run_on(write_site(cpu=make_one_job()), tmp_path / "run", once)
    assert once.done
    assert len(read_submitted(tmp_path / "run")) == n_jobs
    assert files_of(result.dataset) == files_of(reference.dataset)
    check_nothing_is_left(queue, tmp_path / "run")


def test_the_queue_may_be_away_for_a_while(
    queue: Slurm, reference: Result, write_site: Callable[..., Path], tmp_path: Path
) -> None:
    """The controller and the only job are killed; the controller is back once the scaler has noticed that."""

    def stop_controller() -> None:
        queue.stop_controller()
        (program,) = find_processes(tmp_path / "run")
        program.kill()

    def restart_controller(event: Event) -> None:
        if isinstance(event, Notice) and "does not answer" in event.message and "slurmctld" not in queue.daemons:
            queue.start_controller()

    once = Once("explore", stop_controller)
    result = run_on(write_site(cpu=make_one_job()), tmp_path / "run", once, restart_controller)
    assert any("the queue of here does not answer" in line for line in once.read_notices())
    assert len(read_submitted(tmp_path / "run")) == 2
    assert files_of(result.dataset) == files_of(reference.dataset)
    check_nothing_is_left(queue, tmp_path / "run")


def test_jobs_end_at_their_walltime_and_others_go_on(
    queue: Slurm, reference: Result, write_site: Callable[..., Path], tmp_path: Path
) -> None:
    """Slurm ends a job after a minute; the workers do not know when."""
    deaf = tmp_path / "deaf.sh"
    deaf.write_text("unset DASKPIPE_DEADLINE SLURM_JOB_END_TIME\n")
    pool = make_one_job(f"environment: [source {deaf}]").replace("00:20:00", "00:01:00")

    def wait_for_end_of_job() -> None:
        (job_id,) = find_jobs(queue, "RUNNING")
        wait_until(lambda: job_id not in queue.squeue())

    once = Once("generate", wait_for_end_of_job)
    result = run_on(write_site(cpu=pool), tmp_path / "run", once)
    assert len(read_submitted(tmp_path / "run")) >= 2
    (log,) = (tmp_path / "run" / "jobs").glob(f"{read_submitted(tmp_path / 'run')[0]['name']}-*")
    assert "DUE TO TIME LIMIT" in log.read_text()
    assert files_of(result.dataset) == files_of(reference.dataset)
    check_nothing_is_left(queue, tmp_path / "run")


def test_workers_that_know_their_end_retire_and_their_jobs_end(
    queue: Slurm, reference: Result, write_site: Callable[..., Path], tmp_path: Path
) -> None:
    """No unit starts in the last minute of a job: the worker retires, which ends the job, and another one comes."""
    soon = tmp_path / "soon.sh"
    flag = tmp_path / "flag"
    soon.write_text(f"[ -e {flag} ] || export DASKPIPE_DEADLINE=$(( $(date +%s) + 30 ))\ntouch {flag}\n")
    once = Once("generate", lambda: None)
    result = run_on(write_site(cpu=make_one_job(f"environment: [source {soon}]")), tmp_path / "run", once)
    assert sum(isinstance(event, UnitYielded) for event in once.events) >= 1
    assert len(read_submitted(tmp_path / "run")) == 2
    assert files_of(result.dataset) == files_of(reference.dataset)
    check_nothing_is_left(queue, tmp_path / "run")


def test_what_a_dead_driver_left_is_cancelled(
    queue: Slurm, reference: Result, write_site: Callable[..., Path], tmp_path: Path
) -> None:
    run_dir, file = tmp_path / "run", write_site(cpu=CPU)
    words = ["run", "emt_alloy", *SMALL, "--cluster", str(file), "--run-dir", str(run_dir)]
    with (tmp_path / "output.txt").open("wb") as output:
        driver = subprocess.Popen([sys.executable, "-m", "daskpipe", *words], stdout=output, stderr=output)
    wait_until(lambda: driver.poll() is not None or len(committed(run_dir)) > UNITS["generate"])
    assert driver.poll() is None, (tmp_path / "output.txt").read_text()
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    left = set(find_jobs(queue, "RUNNING"))
    assert len(left) == 2
    assert len(list(run_dir.glob("keys-*"))) == 1
    events: list[Event] = []
    result = daskpipe.resume(run_dir, subscribers=[events.append])
    (notice,) = [event.message for event in events if isinstance(event, Notice) and "had left" in event.message]
    assert all(job_id in notice for job_id in left)
    assert files_of(result.dataset) == files_of(reference.dataset)
    check_nothing_is_left(queue, run_dir)


# --- jobs that never work ---------------------------------------------------------------------------


def test_jobs_that_die_before_a_worker_registers_stop_the_run(
    queue: Slurm, write_site: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(failures, "FAILURE_LIMIT", 4)
    events: list[Event] = []
    pool = make_one_job("environment: [ls /no/such/module, exit 3]")
    with pytest.raises(
        ClusterError,
        match=r"(?s)4 jobs in a row of pool cpu of here came to nothing.*job \d+ ended before a worker of it registered"
        r".*No such file or directory.*daskpipe plan .*config.yaml --show-script",
    ):
        run_on(write_site(cpu=pool), tmp_path / "run", events.append)
    notices = " ".join(event.message for event in events if isinstance(event, Notice))
    # The only machine is left out; then Slurm refuses all jobs, and no machine is left out any more.
    assert "2 jobs in a row ended early on" in notices
    assert "here refuses jobs without" in notices
    check_nothing_is_left(queue, tmp_path / "run")


def test_a_queue_that_takes_no_jobs_stops_the_run_at_once(
    queue: Slurm, write_site: Callable[..., Path], tmp_path: Path
) -> None:
    pool = CPU.replace("partition: cpu", "partition: cup")
    with pytest.raises(
        ClusterError, match=r"here takes no jobs of pool cpu: .*invalid partition.*cluster.pools.cpu.partition=NAME"
    ):
        run_on(write_site(cpu=pool), tmp_path / "run")
    check_nothing_is_left(queue, tmp_path / "run")


def test_jobs_that_the_queue_would_never_start_stop_the_run(
    queue: Slurm, write_site: Callable[..., Path], tmp_path: Path
) -> None:
    pool = make_one_job("directives: [--hold]")
    with pytest.raises(ClusterError, match=r"job \d+ of pool cpu of here would never start: JobHeldUser"):
        run_on(write_site(cpu=pool), tmp_path / "run")
    check_nothing_is_left(queue, tmp_path / "run")


def test_without_tls_only_with_a_warning(
    queue: Slurm, write_site: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    events: list[Event] = []
    settings = Cluster(name=str(write_site(cpu=CPU)), insecure=True)
    with connect(settings, tmp_path / "workers.log", events.append) as workers:
        address = workers.client.scheduler.address
        assert address.startswith("tcp://")
        assert list(tmp_path.glob("keys-*")) == []
    assert f"WARNING: no TLS at {address}. Whoever reaches it" in capfd.readouterr().err
    assert [event.address for event in events if isinstance(event, Insecure)] == [address]
    assert load_config("emt_alloy").cluster.insecure is False
    assert RunDirectory(tmp_path).config.exists() is False
