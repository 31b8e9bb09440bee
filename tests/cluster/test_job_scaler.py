"""Submit and cancel jobs with a job scaler; programs stand in for a queue's commands, and no job ever runs."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from daskpipe.cluster import failures, job_commands, job_scaler
from daskpipe.cluster.addresses import LOOPBACK
from daskpipe.cluster.job_commands import cancel_leftover_jobs
from daskpipe.cluster.job_scaler import JobScaler
from daskpipe.cluster.listings import Listing
from daskpipe.cluster.queues import JobState
from daskpipe.cluster.scheduler import run_scheduler
from daskpipe.cluster.sites import Site
from daskpipe.cluster.submitted_jobs import (
    RECORD,
    Submission,
    append_line,
    format_time_now,
    read_lines,
    read_submissions,
)
from daskpipe.cluster.tls import KEY_FILES, remove_keys, write_keys
from daskpipe.core.errors import ClusterError
from daskpipe.core.events import Event, Notice
from daskpipe.engine.dask_pool import CPU, GPU

PROGRAMS = {
    "sbatch": """
        [ -e $HERE/full ] && { echo "sbatch: error: no more jobs" >&2; exit 1; }
        n=$(( $(ls $HERE/ever | wc -l) + 1 ))
        cp "$2" $HERE/ever/$n
        echo "PENDING||Resources|$(sed -n 's/^#SBATCH -J //p' "$2")" >$HERE/queue/$n
        [ -e $HERE/greeting ] && cat $HERE/greeting
        [ -e $HERE/mute ] || echo $n
    """,
    "squeue": """
        [ -e $HERE/blind ] && exit 0
        cd $HERE/queue; for n in *; do [ -e $n ] && echo "$n|$(cat $n)"; done; true
    """,
    "scancel": "for n in $*; do echo $n >>$HERE/cancelled; rm $HERE/queue/$n; done",
    "scontrol": 'echo "ClusterName             = here"',
}
"""Programs of a queue that is a folder, with a file a job."""


class Queue:
    """A queue whose jobs are files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("queue", "ever", "bin"):
            (folder / name).mkdir()
        for name, program in PROGRAMS.items():
            file = folder / "bin" / name
            down = "[ -e $HERE/down ] && { echo 'cannot reach it' >&2; exit 1; }"
            file.write_text(f"#!/bin/sh\nHERE={folder}\n{down}\n{program}\n")
            file.chmod(0o755)

    def list_jobs(self) -> set[str]:
        """Return the ids of the jobs in it."""
        return {file.name for file in (self.folder / "queue").iterdir()}

    def count_submitted(self) -> int:
        """Return the number of jobs that were ever submitted."""
        return len(list((self.folder / "ever").iterdir()))

    def end_job(self, job_id: str) -> None:
        """End a job."""
        (self.folder / "queue" / job_id).unlink()

    def set_state(self, word: str, *, on: bool = True) -> None:
        """Make it ``down``, ``full``, ``blind`` (lists no jobs) or ``mute`` (answers without ids)."""
        (self.folder / word).touch() if on else (self.folder / word).unlink()


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    for name, seconds in {"TICK": 0.05, "QUEUE": 0.2, "CLOSE": 2.0, "SETTLED": 0.5}.items():
        monkeypatch.setattr(job_scaler, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(failures, "FIRST_PAUSE", 0.05)
    return Queue(tmp_path)


@pytest.fixture
def start_scaler(queue: Queue, tmp_path: Path) -> Iterator[Callable[..., JobScaler]]:
    """Yield a function that starts the job scaler of a site with some pools; the run directory is ``run``."""
    with ExitStack() as started:

        def start_scaler(events: list[Event] | None = None, **pools: dict[str, Any]) -> JobScaler:
            (tmp_path / "run").mkdir(exist_ok=True)
            site = Site.model_validate({"name": "here", "class": "SLURM", "pools": pools})
            cluster = started.enter_context(run_scheduler(LOOPBACK, None, None))
            emit = (lambda event: None) if events is None else events.append
            return started.enter_context(JobScaler(cluster, site, tmp_path / "run", None, emit))

        yield start_scaler


def check_settles(queue: Queue, n: int) -> None:
    """Wait until there are so many jobs, and check that the number stays."""
    wait_until(lambda: len(queue.list_jobs()) == n)
    time.sleep(0.5)
    assert len(queue.list_jobs()) == n


def test_as_many_jobs_as_units_need_up_to_the_limit(queue: Queue, start_scaler: Callable[..., JobScaler]) -> None:
    scaler = start_scaler(cpu={"jobs": 3, "cores": 4}, gpu={"jobs": 2, "gpus": 1})
    assert scaler.resources == {CPU, GPU}
    check_settles(queue, 0)
    scaler.request_workers(CPU, 5)  # four of them in a job
    check_settles(queue, 2)
    scaler.request_workers(CPU, 1000)
    check_settles(queue, 3)
    scaler.request_workers(GPU, 1)
    check_settles(queue, 4)


def test_pools_of_one_resource_are_filled_in_their_order(
    queue: Queue, start_scaler: Callable[..., JobScaler], tmp_path: Path
) -> None:
    scaler = start_scaler(first={"jobs": 1, "cores": 2}, second={"jobs": 5, "cores": 1, "keep": 1})
    check_settles(queue, 1)  # one is kept though nothing waits
    scaler.request_workers(CPU, 4)
    check_settles(queue, 3)
    assert sorted(job.pool for job in read_submissions(tmp_path / "run")) == ["first", "second", "second"]


def test_idle_jobs_are_given_back_and_some_are_kept(queue: Queue, start_scaler: Callable[..., JobScaler]) -> None:
    scaler = start_scaler(cpu={"jobs": 4, "keep": 1, "idle": 1})
    scaler.request_workers(CPU, 4)
    check_settles(queue, 4)
    scaler.request_workers(CPU, 0)
    assert len(queue.list_jobs()) == 4  # the next stage may want them in a moment
    scaler.request_workers(CPU, 4)
    check_settles(queue, 4)
    assert queue.count_submitted() == 4
    scaler.request_workers(CPU, 0)
    check_settles(queue, 1)


def test_lost_jobs_are_replaced(queue: Queue, start_scaler: Callable[..., JobScaler]) -> None:
    events: list[Event] = []
    scaler = start_scaler(events, cpu={"jobs": 2})
    scaler.request_workers(CPU, 2)
    check_settles(queue, 2)
    queue.end_job("1")
    wait_until(lambda: queue.list_jobs() == {"2", "3"})
    scaler.request_workers(CPU, 2)
    (notice,) = [event.message for event in events if isinstance(event, Notice)]
    assert notice.startswith("pool cpu: job 1 ended before a worker of it registered")


def test_a_queue_that_does_not_answer_has_lost_nothing(queue: Queue, start_scaler: Callable[..., JobScaler]) -> None:
    events: list[Event] = []
    scaler = start_scaler(events, cpu={"jobs": 2})
    scaler.request_workers(CPU, 1)
    check_settles(queue, 1)
    queue.set_state("down")
    scaler.request_workers(CPU, 2)
    time.sleep(1.0)
    assert queue.count_submitted() == 1
    queue.set_state("down", on=False)
    check_settles(queue, 2)
    assert queue.count_submitted() == 2
    scaler.request_workers(CPU, 2)
    messages = [event.message for event in events if isinstance(event, Notice)]
    assert sum("the queue of here does not answer: cannot reach it" in line for line in messages) == 1


def test_a_queue_that_never_answered_is_an_error(queue: Queue, start_scaler: Callable[..., JobScaler]) -> None:
    queue.set_state("down")
    scaler = start_scaler(cpu={})
    scaler.request_workers(CPU, 1)
    wait_until(lambda: scaler.failure)
    with pytest.raises(
        ClusterError, match="here takes no jobs, and its queue does not answer: cannot reach it. Try again"
    ):
        scaler.request_workers(CPU, 1)


def test_refusals_are_waited_out_for_a_while(
    queue: Queue, start_scaler: Callable[..., JobScaler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "FAILURE_LIMIT", 4)
    scaler = start_scaler(cpu={"jobs": 2})
    scaler.request_workers(CPU, 1)
    check_settles(queue, 1)
    queue.set_state("full")
    scaler.request_workers(CPU, 2)
    wait_until(lambda: scaler.failure)
    with pytest.raises(
        ClusterError,
        match=r"4 jobs in a row of pool cpu of here came to nothing; the last job was refused: sbatch: error: no more",
    ):
        scaler.request_workers(CPU, 2)


def test_jobs_that_wait_are_cancelled_at_the_end(queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    site = Site.model_validate({"name": "here", "class": "SLURM", "pools": {"cpu": {}}})
    events: list[Event] = []
    for queue_is_down in (False, True):
        with (
            run_scheduler(LOOPBACK, None, None) as cluster,
            JobScaler(cluster, site, tmp_path / "run", None, events.append) as scaler,
        ):
            scaler.request_workers(CPU, 2)
            check_settles(queue, 2)
            if queue_is_down:
                queue.set_state("down")
        if not queue_is_down:
            assert queue.list_jobs() == set()
            assert read_submissions(tmp_path / "run") == []
    # The queue was down: a notice says what to type, and the next driver cancels the jobs.
    assert queue.list_jobs() == {"3", "4"}
    last = [event.message for event in events if isinstance(event, Notice)][-1]
    assert "may still hold jobs of this run. Type: scancel 3 4" in last
    with pytest.raises(ClusterError, match="squeue .*cannot reach it. Try again when it answers"):
        cancel_leftover_jobs(site, tmp_path / "run")
    queue.set_state("down", on=False)
    queue.end_job("3")
    assert cancel_leftover_jobs(site, tmp_path / "run").jobs == ["4"]
    assert queue.list_jobs() == set()


SLURM = {"class": "SLURM", "cluster_name": "a", "user": "ada"}


def make_line(number: int, **line: str | None) -> dict[str, str | None]:
    """Return a line of the record of jobs."""
    return {"job_id": str(number), "name": f"x-cpu.{number}", "pool": "cpu", "at": "2026-11-29T12:00:00+0000", **line}


def write_lines(root: Path, *lines: dict[str, str | None]) -> None:
    """Write the record of jobs."""
    (root / RECORD).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_list_of_jobs(tmp_path: Path) -> None:
    """Those before an orderly end are no longer ours: queues use their numbers again. A torn line is none."""
    assert read_submissions(tmp_path) == []
    write_lines(tmp_path, make_line(1, **SLURM), {"closed": "yes", **SLURM}, make_line(2, **SLURM))
    with (tmp_path / RECORD).open("a") as lines:
        lines.write('{"job_id": "3')
    assert [job.job_id for job in read_submissions(tmp_path)] == ["2"]
    append_line(tmp_path, seen="x-cpu.2")
    assert [(job.job_id, job.seen, job.user) for job in read_submissions(tmp_path)] == [("2", True, "ada")]


def test_the_end_of_a_driver_closes_the_jobs_of_its_own_cluster_only(tmp_path: Path) -> None:
    jobs = [make_line(1, **SLURM), make_line(2, **SLURM | {"cluster_name": "b"}), make_line(3, **{"class": "PBS"})]
    write_lines(tmp_path, *jobs, {"closed": "yes", **SLURM})
    assert [job.job_id for job in read_submissions(tmp_path)] == ["2", "3"]


def test_lists_of_jobs_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They name neither user nor cluster; ``closed`` was written by the driver that submitted the job before it."""
    old = {"class": "SLURM"}
    write_lines(tmp_path, make_line(1, **{"class": "PBS"}), make_line(2, **old), {"closed": "yes"}, make_line(3, **old))
    assert [job.job_id for job in read_submissions(tmp_path)] == ["1", "3"]
    assert read_submissions(tmp_path)[1] == Submission(
        job_id="3", name="x-cpu.3", kind="SLURM", at="2026-11-29T12:00:00+0000", pool="cpu"
    )


def test_keys_of_dead_drivers_go(tmp_path: Path) -> None:
    from distributed import Security

    with write_keys(tmp_path, Security.temporary()) as folder:
        assert {file.name for file in folder.iterdir()} == set(KEY_FILES)
    assert not folder.exists()
    (tmp_path / "keys-of-a-dead-driver").mkdir()
    remove_keys(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- which jobs are ours, and which are gone ------------------------------------------------------------


def join_messages(events: list[Event]) -> str:
    """Return the messages of all notices on one line."""
    return " ".join(event.message for event in events if isinstance(event, Notice))


def test_numbers_in_a_greeting_are_no_ids(queue: Queue, start_scaler: Callable[..., JobScaler], tmp_path: Path) -> None:
    (tmp_path / "greeting").write_text("Welcome to Stampede3\n2 nodes free\n")
    scaler = start_scaler(cpu={"jobs": 2})
    scaler.request_workers(CPU, 2)
    check_settles(queue, 2)
    assert [job.job_id for job in read_submissions(tmp_path / "run")] == ["1", "2"]


def test_a_job_whose_id_is_not_told_is_found_by_its_name(
    queue: Queue, start_scaler: Callable[..., JobScaler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_commands, "NAME_PAUSE", 0.05)
    queue.set_state("mute")
    scaler = start_scaler(cpu={"jobs": 2})
    scaler.request_workers(CPU, 2)
    check_settles(queue, 2)
    assert [job.job_id for job in read_submissions(tmp_path / "run")] == ["1", "2"]


def test_a_job_whose_id_is_not_known_stops_the_run_and_is_found_later(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_commands, "NAME_PAUSE", 0.01)
    (tmp_path / "greeting").write_text("3 nodes of Stampede3 are free\n")
    queue.set_state("mute")
    queue.set_state("blind")
    run_dir, events = tmp_path / "run", list[Event]()
    run_dir.mkdir()
    site = Site.model_validate({"name": "here", "class": "SLURM", "pools": {"cpu": {"jobs": 3}}})
    with (
        run_scheduler(LOOPBACK, None, None) as cluster,
        JobScaler(cluster, site, run_dir, None, events.append) as scaler,
    ):
        scaler.request_workers(CPU, 3)
        wait_until(lambda: scaler.failure)
        with pytest.raises(
            ClusterError,
            match=r"sbatch printed no line with a job's id: 3 nodes of Stampede3 are free. squeue .* does not show its "
            r"job daskpipe-\w+-cpu.1 either",
        ):
            scaler.request_workers(CPU, 3)
    assert queue.count_submitted() == 1
    assert "the queue does not list jobs without a number, named daskpipe-" in join_messages(events)
    assert not (tmp_path / "cancelled").exists()
    queue.set_state("blind", on=False)
    assert cancel_leftover_jobs(site, run_dir).jobs == ["1"]
    assert queue.list_jobs() == set()


def test_a_list_that_hides_jobs_proves_nothing(queue: Queue, tmp_path: Path) -> None:
    """As under another user's name: none is replaced, all are cancelled by their numbers, the record stays open."""
    queue.set_state("blind")
    run_dir, events = tmp_path / "run", list[Event]()
    run_dir.mkdir()
    site = Site.model_validate({"name": "here", "class": "SLURM", "pools": {"cpu": {"jobs": 3}}})
    with (
        run_scheduler(LOOPBACK, None, None) as cluster,
        JobScaler(cluster, site, run_dir, None, events.append) as scaler,
    ):
        scaler.request_workers(CPU, 3)
        check_settles(queue, 3)
        wait_until(lambda: scaler._warned_unseen)
        scaler.request_workers(CPU, 3)
    assert queue.count_submitted() == 3
    assert queue.list_jobs() == set()
    assert sorted((tmp_path / "cancelled").read_text().split()) == ["1", "2", "3"]
    assert "job 1 was submitted 0 s ago, and the queue of here does not list it" in join_messages(events)
    assert "does not list jobs 1, 2, 3 of this run, and may still hold them" in join_messages(events)
    assert "type: scancel 1 2 3" in join_messages(events)
    assert len(read_submissions(run_dir)) == 3
    # The next driver, to which they are not shown either, does not take them for gone.
    (doubt,) = cancel_leftover_jobs(site, run_dir).doubts
    assert "does not list jobs 1, 2, 3 of this run" in doubt


def test_a_job_that_a_list_without_others_never_shows_has_begun_once_its_log_says_so(
    queue: Queue, start_scaler: Callable[..., JobScaler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_scaler, "START_SECONDS", 0.5)
    queue.set_state("blind")
    events: list[Event] = []
    scaler = start_scaler(events, cpu={})
    scaler.request_workers(CPU, 1)
    check_settles(queue, 1)
    (job,) = read_submissions(tmp_path / "run")
    (tmp_path / "run" / "jobs" / f"{job.name}-1.log").write_text("daskpipe: on host n1\nno such program\n")
    wait_until(lambda: "1" not in queue.list_jobs())
    scaler.request_workers(CPU, 1)
    assert "job 1 of pool cpu has run for 0 s without a worker" in join_messages(events)


def test_a_job_of_another_name_is_left_alone(queue: Queue, tmp_path: Path) -> None:
    """The cluster was set up anew, or this is another one: its job 1 is somebody's."""
    run_dir, events = tmp_path / "run", list[Event]()
    run_dir.mkdir()
    site = Site.model_validate({"name": "here", "class": "SLURM", "pools": {"cpu": {}}})
    with (
        run_scheduler(LOOPBACK, None, None) as cluster,
        JobScaler(cluster, site, run_dir, None, events.append) as scaler,
    ):
        scaler.request_workers(CPU, 1)
        check_settles(queue, 1)
        queue.set_state("down")
    queue.set_state("down", on=False)
    (tmp_path / "queue" / "1").write_text("RUNNING|n1|None|thesis\n")
    left = cancel_leftover_jobs(site, run_dir)
    assert (left.jobs, left.doubts) == ([], [])  # the number is used again, so its job is gone
    lines = [line | ({"cluster_name": "there"} if "job_id" in line else {}) for line in read_lines(run_dir)]
    write_lines(run_dir, *lines)
    left = cancel_leftover_jobs(site, run_dir)
    assert left.jobs == []
    assert left.doubts == [
        f"jobs 1 of this run were submitted to there, which is not asked here. Type there: daskpipe cancel {run_dir}"
    ]
    assert queue.list_jobs() == {"1"}


def test_a_copy_of_a_run_directory_has_none_of_its_jobs(
    queue: Queue, start_scaler: Callable[..., JobScaler], tmp_path: Path
) -> None:
    scaler = start_scaler(cpu={"jobs": 2})
    scaler.request_workers(CPU, 2)
    check_settles(queue, 2)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    left = cancel_leftover_jobs(scaler.site, tmp_path / "copy")
    assert (left.jobs, left.doubts) == ([], [])
    assert "jobs 1, 2 were submitted by a run in another directory, of which this is a copy" in left.notes[0]
    assert "If it was moved here, type: scancel 1 2" in left.notes[0]
    assert queue.list_jobs() == {"1", "2"}
    assert cancel_leftover_jobs(scaler.site, tmp_path / "link").jobs == ["1", "2"]


def test_what_a_list_proves() -> None:
    """One that lacks a job proves its end only if it has shown it, or has shown others for a minute."""
    state = JobState("running", name="x-cpu.1")
    job = Submission(job_id="1", name="x-cpu.1", kind="SLURM", cluster_name="a", user="ada", at=format_time_now())
    old = replace(job, job_id="2", name="x-cpu.2", at="2026-11-29T12:00:00+0000")

    def conclude(job: Submission, jobs: dict[str, JobState] | None = None, *others: Submission, **asked: Any) -> str:
        listing = Listing(**{"kind": "SLURM", "cluster_name": "a", "user": "ada", "jobs": jobs or {}, **asked})
        return next(fate for fate, those in listing.sort_by_fate([job, *others]).items() if job in those)

    assert conclude(job, {"1": state}) == "queued"
    assert conclude(job, {"1": replace(state, state="over")}) == "gone"
    assert conclude(job) == conclude(old) == "unknown"
    assert conclude(replace(job, seen=True)) == "gone"
    assert conclude(replace(job, seen=True), user="bob") == "unknown"
    assert (
        conclude(replace(job, seen=True), cluster_name="b")
        == conclude(job, {"1": state}, cluster_name="b")
        == "elsewhere"
    )
    assert conclude(old, {"1": state}, job) == "gone"
    assert conclude(replace(job, job_id="3"), {"2": replace(state, name="x-cpu.2")}, old) == "unknown"  # too young
    assert conclude(job, {"1": replace(state, name="thesis")}) == "gone"
    assert conclude(replace(job, cluster_name=None), {"1": replace(state, name="thesis")}) == "elsewhere"
    nameless = replace(job, job_id=None)
    assert conclude(nameless, {"1": state}) == "queued"
    assert conclude(nameless) == "unknown"
