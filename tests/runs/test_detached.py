"""A driver that is a job of its own, on a real Slurm; and how it is stopped from elsewhere."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm
from slurm import Slurm
from small_runs import SMALL, UNITS, committed, files_of
from waiting import wait_until

from daskpipe.cluster import job_commands
from daskpipe.cluster.settings import Cluster
from daskpipe.core.errors import ClusterError
from daskpipe.engine.ledger import read_ledger
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs import cancel
from daskpipe.runs import detached as detach
from daskpipe.runs.lease import hold_lease, read_last_driver
from daskpipe.runs.run import Result
from daskpipe.runs.status import read_status

SITE = """
class: SLURM
driver: {{memory: 2GB, partition: cpu, walltime: "{walltime}"}}
pools:
  cpu: {{jobs: 1, cores: 1, memory: 2GB, partition: {partition}, walltime: "00:20:00"}}
"""

Command = Callable[..., Any]


@pytest.fixture
def queue(queue: Slurm) -> Iterator[Slurm]:
    """An empty queue, emptied again: a driver that a failed test leaves would go on for ever."""
    yield queue
    subprocess.run(["scancel", "--user=root"], check=True)
    queue.wait_until_idle()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the file of a site."""
    monkeypatch.chdir(tmp_path)
    Path("here.yaml").write_text(SITE.format(walltime="00:20:00", partition="cpu"))
    return tmp_path


def detached(type_command: Command, *words: str) -> dict[str, Any]:
    """Type a command that submits a driver; return its answer."""
    typed = type_command(*words, "--cluster", "here.yaml", "--detach", "--json")
    assert typed.code == 0, typed.out + typed.err
    answer: dict[str, Any] = json.loads(typed.out)
    return answer


def wait_for(reached: Callable[[], object], run_dir: Path) -> None:
    """Wait until something is reached; say what the jobs of the run printed if it never is."""
    wait_until(reached, lambda: read_jobs(run_dir), pause=0.2)


def read_jobs(run_dir: Path) -> str:
    """Read what the jobs of a run printed, without line breaks."""
    return "\n".join(f"{log.name}: {' '.join(log.read_text().split())}" for log in sorted((run_dir / "jobs").glob("*")))


# --- without a queue ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["local", "tcp://127.0.0.1:8786"])
def test_only_a_site_has_detached_drivers(type_command: Command, here: Path, where: str) -> None:
    typed = type_command("run", "emt_alloy", "--cluster", where, "--detach")
    assert typed.code == 2
    words = " ".join(typed.err.split())
    assert f"and cluster is {where}. Give --cluster slurm, or leave --detach out" in words
    assert not Path("runs").exists()


def write_record(root: Path, **changes: Any) -> detach.DriverRecord:
    """Write the record of a driver that waits in a queue which cannot be asked here, as earlier versions did."""
    values = {
        "token": "t", "job_id": "17", "kind": "OAR", "log": "l", "at": "2026-11-22T08:00:00Z", "cluster": {},
        "overrides": [],
    }  # fmt: skip
    (root / "detached.json").write_text(json.dumps(values | changes))
    made = detach.read_record(root)
    assert made is not None
    return made


@pytest.fixture
def run_dir(reference: Result, tmp_path: Path) -> Path:
    """A run that has not begun."""
    root = tmp_path / "run"
    root.mkdir()
    for name in ("config.yaml", "potentials.json"):
        (root / name).write_bytes((reference.run_dir / name).read_bytes())
    return root


def test_status_tells_of_a_driver_that_waits_until_it_begins(run_dir: Path, type_command: Command) -> None:
    assert read_status(run_dir)["state"] == "stopped"
    waits = write_record(run_dir)
    state = read_status(run_dir)
    assert (state["state"], state["queued"]) == ("queued", {"job_id": "17", "since": "2026-11-22T08:00:00Z"})
    assert "is queued as job 17 since 2026-11-22T08:00:00Z" in type_command("status", str(run_dir)).out
    with hold_lease(run_dir, token=waits.token):
        assert read_status(run_dir)["state"] == "running"
    assert (read_status(run_dir)["state"], read_status(run_dir)["queued"]) == ("stopped", None)
    with hold_lease(run_dir):  # someone who resumes it, or mends it, in a shell
        pass
    assert read_status(run_dir)["state"] == "stopped"
    write_record(run_dir, token="u")  # its successor
    assert read_status(run_dir)["state"] == "queued"


def test_a_second_detached_driver_is_refused(run_dir: Path, here: Path, type_command: Command) -> None:
    Path("here.yaml").write_text(Path("here.yaml").read_text().replace("SLURM", "OAR"))
    write_record(run_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{_stub_command(here, 'oarsub')}:{os.environ['PATH']}")
        typed = type_command("resume", str(run_dir), "--cluster", "here.yaml", "--detach")
        assert typed.code == 2
        assert f"job 17 waits to drive {run_dir} since" in " ".join(typed.err.split())
        with hold_lease(run_dir):
            typed = type_command("resume", str(run_dir), "--cluster", "here.yaml", "--detach")
    assert typed.code == 2
    assert f"another daskpipe works in {run_dir}" in " ".join(typed.err.split())


def _stub_command(folder: Path, name: str) -> Path:
    """Make a command of a queue that refuses everything."""
    program = folder / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text("#!/bin/sh\necho no such partition >&2\nexit 1\n")
    program.chmod(0o755)
    return program.parent


def test_a_driver_that_is_refused_leaves_no_record(run_dir: Path, here: Path, type_command: Command) -> None:
    Path("here.yaml").write_text(Path("here.yaml").read_text().replace("SLURM", "OAR"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{_stub_command(here, 'oarsub')}:{os.environ['PATH']}")
        typed = type_command("resume", str(run_dir), "--cluster", "here.yaml", "--detach")
    assert typed.code == 4
    words = " ".join(typed.err.split())
    assert "here accepts no job for the driver: no such partition. Change section driver of its file" in words
    assert detach.read_record(run_dir) is None
    assert read_status(run_dir)["state"] == "stopped"


def test_a_driver_whose_number_is_not_told_is_submitted_once(
    run_dir: Path, here: Path, oar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue has taken it: those that were submitted in its place would be lost as well."""
    monkeypatch.setattr(job_commands, "NAME_PAUSE", 0.01)
    Path("here.yaml").write_text(Path("here.yaml").read_text().replace("SLURM", "OAR"))
    program = here / "bin" / "oarsub"
    program.write_text(f"#!/bin/sh\necho >>{here}/submitted\necho 3 nodes of grid5000 are free\n")
    program.chmod(0o755)
    with pytest.raises(ClusterError, match=r"oarsub printed no line with a job's id: 3 nodes of grid5000 are free\. "):
        detach._submit_patiently(run_dir, Cluster(name="here.yaml"), [], 0)
    assert (here / "submitted").read_text() == "\n"
    assert detach.read_record(run_dir) is None


def test_a_job_whose_place_was_taken_does_nothing(run_dir: Path, type_command: Command) -> None:
    write_record(run_dir)
    typed = type_command("resume", str(run_dir), "--detached", "older")
    assert typed.code == 2
    assert "this job may not drive" in typed.err
    assert read_last_driver(run_dir) is None


def test_a_chain_of_drivers_that_bring_the_run_no_farther_ends(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(run_dir, fruitless=detach.FRUITLESS_LIMIT - 1, cluster={"workers": 1, "gpus": 0})
    monkeypatch.setenv("DASKPIPE_DEADLINE", str(time.time() + 2))  # less than workers take to start
    with pytest.raises(ClusterError, match=r"3 drivers of .* in a row reached neither a commit nor a checkpoint"):
        detach.drive_detached(run_dir, "t")
    assert read_last_driver(run_dir) is not None
    assert read_status(run_dir)["state"] == "stopped"


def test_cancel_where_nothing_runs(run_dir: Path, tmp_path: Path, type_command: Command) -> None:
    typed = type_command("cancel", str(run_dir))
    assert (typed.code, typed.out) == (0, "nothing runs\n")
    assert not (run_dir / "cancel").exists()
    typed = type_command("cancel", str(tmp_path))
    assert typed.code == 2
    assert "is no run directory" in typed.err


def test_cancel_of_a_queue_that_cannot_be_asked_says_where_to_type_it(run_dir: Path, type_command: Command) -> None:
    write_record(run_dir)
    typed = type_command("cancel", str(run_dir))
    assert typed.code == 4
    assert "oarstat" in typed.err
    assert "Type this where the site's commands are" in " ".join(typed.err.split())
    assert read_status(run_dir)["state"] == "queued"


OAR_JOB = '{{"17": {{"name": "{name}", "state": "Waiting"}}}}'


@pytest.fixture
def oar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A queue of OAR that lists what is written into this file; it keeps the numbers that are cancelled beside it."""
    programs = {"oarstat": f"cat {tmp_path}/listed", "oardel": f"echo $* >>{tmp_path}/deleted; rm {tmp_path}/listed"}
    for name, words in programs.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{words} 2>/dev/null || true\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path / "listed"


def test_a_waiting_driver_is_cancelled_by_its_number_and_name(run_dir: Path, oar: Path, type_command: Command) -> None:
    waits = write_record(run_dir)
    oar.write_text(OAR_JOB.format(name=waits.name))
    assert detach.is_queued(waits) is True
    typed = type_command("cancel", str(run_dir))
    assert (typed.code, "cancelled jobs: 17" in typed.out) == (0, True)
    assert (oar.parent / "deleted").read_text() == "17\n"
    assert detach.read_record(run_dir) is None


def test_a_waiting_driver_that_the_queue_does_not_list_is_not_nothing(
    run_dir: Path, oar: Path, type_command: Command
) -> None:
    """It is said each time, and the job, should it begin, has nothing to drive any more."""
    waits = write_record(run_dir)
    assert detach.is_queued(waits) is None
    for _ in range(2):
        typed = type_command("cancel", str(run_dir))
        assert typed.code == 4
        words = " ".join(typed.err.split())
        assert "the queue does not list jobs 17 of this run, and may still hold them. Look as user" in words
        assert "if it still has them, type: oardel 17" in words
        assert "nothing runs" not in typed.out
    assert detach.read_record(run_dir) is None
    oar.write_text(OAR_JOB.format(name="thesis"))
    assert "jobs 17 of this run were submitted to another cluster" in type_command("cancel", str(run_dir)).err
    oar.write_text(OAR_JOB.format(name=waits.name))
    assert type_command("cancel", str(run_dir)).code == 0
    assert (oar.parent / "deleted").read_text() == "17\n"
    assert type_command("cancel", str(run_dir)).out == "nothing runs\n"  # it was listed, and is not any more


def test_a_waiting_driver_that_was_listed_and_is_not_any_more_has_ended(run_dir: Path, oar: Path) -> None:
    assert detach.is_queued(write_record(run_dir, seen=True)) is False
    assert detach.is_queued(write_record(run_dir, seen=True, user="somebody-else")) is None


def test_a_driver_that_does_not_stop_is_named(
    run_dir: Path, type_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancel, "HONOUR_SECONDS", 1.0)
    with hold_lease(run_dir):  # which has just been renewed, and looks for requests every five seconds
        typed = type_command("cancel", str(run_dir))
    assert typed.code == 1
    assert f"End it there: ssh {os.uname().nodename} kill {os.getpid()}" in " ".join(typed.err.split())


# --- on a real Slurm ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_detached_driver_completes_the_run(
    queue: Slurm, here: Path, reference: Result, type_command: Command
) -> None:
    answer = detached(type_command, "run", "emt_alloy", *SMALL, "--run-dir", "run")
    assert answer["job_id"] in queue.squeue()
    run_dir = here / "run"
    watched = type_command("status", "run", "--watch")  # ends when the run does
    assert watched.code == 0
    assert re.search(r"^(queued as job|running on) ", watched.out), watched.out
    assert "run is complete" in watched.out, read_jobs(run_dir)
    assert Path(answer["log"]).is_file()
    driver = read_last_driver(run_dir)
    assert driver is not None
    assert (driver.job_id, driver.token) == (answer["job_id"], detach.read_record(run_dir).token)
    queue.wait_until_idle()
    assert files_of(run_dir / "dataset.zarr") == files_of(reference.dataset)


@pytest.mark.slow
def test_a_driver_near_its_walltime_submits_the_next(
    queue: Slurm, here: Path, reference: Result, type_command: Command
) -> None:
    run_dir = here / "run"
    slurm.command("scontrol", "update", "partition=gpu", "state=down")  # the first driver sees no worker
    Path("here.yaml").write_text(SITE.format(walltime="00:01:00", partition="gpu"))
    first = detached(type_command, "run", "emt_alloy", *SMALL, "--run-dir", "run")
    wait_for(lambda: read_status(run_dir)["state"] == "running", run_dir)
    Path("here.yaml").write_text(SITE.format(walltime="00:20:00", partition="gpu"))  # and the second one has the time
    wait_for(lambda: "goes on with" in read_jobs(run_dir), run_dir)
    slurm.command("scontrol", "update", "partition=gpu", "state=up")
    wait_for(lambda: read_status(run_dir)["state"] == "complete", run_dir)
    second = detach.read_record(run_dir)
    assert second is not None
    assert second.job_id != first["job_id"]
    assert f"the job of this driver ends soon; job {second.job_id} goes on with {run_dir}" in read_jobs(run_dir)
    driver = read_last_driver(run_dir)
    assert driver is not None
    assert driver.job_id == second.job_id
    assert files_of(run_dir / "dataset.zarr") == files_of(reference.dataset)
    queue.wait_until_idle()  # no third one


@pytest.mark.slow
def test_cancel_of_a_driver_that_waits(queue: Slurm, here: Path, type_command: Command) -> None:
    slurm.command("scontrol", "update", "partition=cpu", "state=down")
    try:
        answer = detached(type_command, "run", "emt_alloy", *SMALL, "--run-dir", "run")
        assert read_status(here / "run")["state"] == "queued"
        typed = type_command("cancel", "run")
        assert typed.code == 0
        assert f"cancelled jobs: {answer['job_id']}" in typed.out
        assert queue.squeue() == {}
        assert read_status(here / "run")["state"] == "stopped"
    finally:
        slurm.command("scontrol", "update", "partition=cpu", "state=up")


@pytest.mark.slow
def test_cancel_of_a_driver_at_work_leaves_no_job(queue: Slurm, here: Path, type_command: Command) -> None:
    run_dir = here / "run"
    answer = detached(type_command, "run", "emt_alloy", *SMALL, "--run-dir", "run")
    wait_for(lambda: len(queue.squeue()) > 1 and read_status(run_dir)["state"] == "running", run_dir)
    typed = type_command("cancel", "run")
    assert typed.code == 0, typed.err
    assert f"job {answer['job_id']}" in typed.out
    queue.wait_until_idle()
    assert read_status(run_dir)["state"] == "stopped"
    assert "cancelled from" in read_jobs(run_dir)
    assert len(committed(run_dir)) < sum(UNITS.values())


@pytest.mark.slow
def test_cancel_after_the_driver_was_killed(queue: Slurm, here: Path, type_command: Command) -> None:
    run_dir = here / "run"
    detached(type_command, "run", "emt_alloy", *SMALL, "--run-dir", "run")
    wait_for(lambda: len(queue.squeue()) > 1 and read_status(run_dir)["state"] == "running", run_dir)
    driver = read_last_driver(run_dir)
    assert driver is not None
    os.kill(driver.pid, signal.SIGKILL)
    wait_for(lambda: read_status(run_dir)["state"] == "stopped", run_dir)
    typed = type_command("cancel", "run")
    assert typed.code == 0, typed.err
    assert queue.squeue() == {}


@pytest.mark.slow
def test_a_requeued_driver_goes_on(queue: Slurm, here: Path, reference: Result, type_command: Command) -> None:
    run_dir = here / "run"
    answer = detached(type_command, "run", "emt_alloy", *SMALL, "--run-dir", "run")
    wait_for(lambda: read_status(run_dir)["stages"].get("explore"), run_dir)
    queue.requeue(answer["job_id"])
    wait_for(lambda: read_status(run_dir)["state"] == "complete", run_dir)
    starts = {event["segment"] for event in read_ledger(RunDirectory(run_dir)) if event["event"] == "RunStarted"}
    assert len(starts) == 2
    assert files_of(run_dir / "dataset.zarr") == files_of(reference.dataset)
    queue.wait_until_idle()
