"""Cancel the jobs of a run directory, and no others, on a real Slurm; describe the rest."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm
from slurm import Slurm

from daskpipe.cluster.job_commands import cancel_leftover_jobs, list_jobs, name_cluster, submit_job
from daskpipe.cluster.job_script import build_job
from daskpipe.cluster.sites import Site
from daskpipe.cluster.submitted_jobs import Submission, job_name_prefix, read_submissions, record_submission

SITE = Site.model_validate({"name": "here", "class": "SLURM", "pools": {"cpu": {"memory": "64MB", "partition": "cpu"}}})

Command = Callable[..., Any]


@pytest.fixture
def queue(queue: Slurm) -> Iterator[Slurm]:
    """Yield an empty queue, and empty it again."""
    yield queue
    subprocess.run(["scancel", "--user=root"], check=True)
    queue.wait_until_idle()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Make a folder that passes for a run directory."""
    root = tmp_path / "run"
    (root / "jobs").mkdir(parents=True)
    (root / "config.yaml").touch()
    return root


def submit_sleeping_job(root: Path, number: int, *, name: str | None = None) -> Submission:
    """Submit a job that sleeps, as a job scaler does, and record it."""
    made = build_job(
        SITE,
        SITE.pools["cpu"],
        scheduler="tcp://127.0.0.1:1",
        name=name or f"{job_name_prefix(root)}-cpu.{number}",
        keys=None,
        log_directory=root / "jobs",
        command="sleep 300",
    )

    async def submit() -> Submission:
        return await submit_job(SITE, made, pool="cpu", cluster_name=await name_cluster(SITE))

    submission = asyncio.run(submit())
    record_submission(root, submission)
    return submission


def list_ids(queue: Slurm) -> set[str]:
    """Return the ids of the jobs in the queue."""
    return {job_id for job_id, job in queue.squeue().items() if job["state"] != "COMPLETING"}


def write_program(folder: Path, name: str, text: str) -> None:
    """Write a program that takes the place of Slurm's."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / "bin" / name).chmod(0o755)


def test_a_submit_command_that_greets_its_users(
    queue: Slurm, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(
        tmp_path, "sbatch", f"echo 'Welcome to Stampede3'; echo '2 nodes free'; exec {shutil.which('sbatch')} \"$@\""
    )
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    jobs = {submit_sleeping_job(run_dir, number).job_id for number in (1, 2)}
    assert jobs == list_ids(queue)
    assert set(cancel_leftover_jobs(SITE, run_dir).jobs) == jobs
    queue.wait_until_idle()


def test_the_job_of_somebody_else_with_a_recorded_number_is_left_alone(
    queue: Slurm, run_dir: Path, tmp_path: Path, type_command: Command
) -> None:
    """As after a move to another cluster, or on one that was set up anew."""
    thesis = submit_sleeping_job(tmp_path / "run", 1, name="thesis")
    ours = submit_sleeping_job(run_dir, 2)
    (run_dir / "jobs.jsonl").write_text(
        (run_dir / "jobs.jsonl").read_text().replace("thesis", f"{job_name_prefix(run_dir)}-cpu.1")
    )
    assert [job.job_id for job in read_submissions(run_dir)] == [thesis.job_id, ours.job_id]
    typed = type_command("cancel", str(run_dir))
    assert (typed.code, f"cancelled jobs: {ours.job_id}\n" in typed.out) == (0, True), typed.err
    assert list_ids(queue) == {thesis.job_id}


def test_a_copy_of_a_run_directory_leaves_the_jobs_of_the_original_alone(
    queue: Slurm, run_dir: Path, tmp_path: Path, type_command: Command
) -> None:
    ours = submit_sleeping_job(run_dir, 1)
    shutil.copytree(run_dir, tmp_path / "copy")
    typed = type_command("cancel", str(tmp_path / "copy"))
    words = " ".join(typed.out.split())
    assert typed.code == 0, typed.err
    assert f"nothing runs jobs {ours.job_id} were submitted by a run in another directory, of which this is a" in words
    assert list_ids(queue) == {ours.job_id}
    assert f"cancelled jobs: {ours.job_id}" in type_command("cancel", str(run_dir)).out
    queue.wait_until_idle()


def test_a_wrong_name_in_the_environment_hides_nothing(
    queue: Slurm, run_dir: Path, type_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, "nobody")
    jobs = [str(submit_sleeping_job(run_dir, number).job_id) for number in (1, 2, 3)]
    assert f"cancelled jobs: {', '.join(jobs)}" in type_command("cancel", str(run_dir)).out
    queue.wait_until_idle()


def test_jobs_that_are_private_data_are_not_taken_for_gone(
    queue: Slurm, run_dir: Path, tmp_path: Path, type_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm shows them to root and to their owner; here nobody asks for those of root, and is shown an empty list."""
    jobs = [str(submit_sleeping_job(run_dir, number).job_id) for number in (1, 2, 3)]
    nobody = f"setpriv --reuid=nobody --regid=nogroup --clear-groups {shutil.which('squeue')}"
    write_program(tmp_path, "squeue", f'exec {nobody} "$@"')
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
        assert set(jobs) <= set(list_jobs(SITE).jobs)
        conf = Path(os.environ["SLURM_CONF"])
        conf.write_text(f"{conf.read_text()}PrivateData=jobs\n")
        slurm.command("scontrol", "reconfigure")
        assert list_jobs(SITE).jobs == {}
        typed = type_command("cancel", str(run_dir))
    words = " ".join(typed.err.split())
    assert typed.code == 4, typed.out
    assert f"the queue does not list jobs {', '.join(jobs)} of this run, and may still hold them. Look as " in words
    assert f"type: scancel {' '.join(jobs)}" in words
    assert list_ids(queue) == set(jobs)
    typed = type_command("cancel", str(run_dir))
    assert (typed.code, f"cancelled jobs: {', '.join(jobs)}" in typed.out) == (0, True), typed.err


def test_jobs_that_were_listed_and_are_over_are_gone(queue: Slurm, run_dir: Path, type_command: Command) -> None:
    ours = submit_sleeping_job(run_dir, 1)
    slurm.command("scancel", ours.job_id)
    queue.wait_until_idle()
    # Slurm lists for five minutes what has ended.
    assert list_jobs(SITE).jobs[str(ours.job_id)].state == "over"
    typed = type_command("cancel", str(run_dir))
    assert (typed.code, typed.out) == (0, "nothing runs\n")
