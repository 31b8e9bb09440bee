"""What the scaler submits and gives back, with programs in place of a queue's: no job of theirs ever runs."""

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

    def jobs(self) -> set[str]:
        """Ids of the jobs in it."""
        return {file.name for file in (self.folder / "queue").iterdir()}

    def ever(self) -> int:
        """How many were submitted."""
        return len(list((self.folder / "ever").iterdir()))

    def lose(self, job_id: str) -> None:
        """Let a job end."""
        (self.folder / "queue" / job_id).unlink()

    def say(self, word: str, *, on: bool = True) -> None:
        """Let it be ``down``, ``full``, ``blind`` (it lists nothing) or ``mute`` (it tells no ids)."""
        (self.folder / word).touch() if on else (self.folder / word).unlink()


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    for name, seconds in {"TICK": 0.05, "QUEUE": 0.2, "CLOSE": 2.0, "SETTLED": 0.5}.items():
        monkeypatch.setattr(job_scaler, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(failures, "FIRST_PAUSE", 0.05)
    return Queue(tmp_path)


@pytest.fixture
def keep(queue: Queue, tmp_path: Path) -> Iterator[Callable[..., JobScaler]]:
    """Start a scaler of a site with these pools; its run directory is ``run``."""
    with ExitStack() as started:

        def keep(events: list[Event] | None = None, **pools: dict[str, Any]) -> JobScaler:
            (tmp_path / "run").mkdir(exist_ok=True)
            site = Site.model_validate({"name": "here", "class": "SLURM", "pools": pools})
            cluster = started.enter_context(run_scheduler(LOOPBACK, None, None))
            emit = (lambda event: None) if events is None else events.append
            return started.enter_context(JobScaler(cluster, site, tmp_path / "run", None, emit))

        yield keep


def settled(queue: Queue, n: int) -> None:
    """Wait until there are so many jobs, and see that it stays at that."""
    wait_until(lambda: len(queue.jobs()) == n)
    time.sleep(0.5)
    assert len(queue.jobs()) == n


def test_as_many_jobs_as_units_need_up_to_the_limit(queue: Queue, keep: Callable[..., JobScaler]) -> None:
    ours = keep(cpu={"jobs": 3, "cores": 4}, gpu={"jobs": 2, "gpus": 1})
    assert ours.resources == {CPU, GPU}
    settled(queue, 0)
    ours.request_workers(CPU, 5)  # four of them in a job
    settled(queue, 2)
    ours.request_workers(CPU, 1000)
    settled(queue, 3)
    ours.request_workers(GPU, 1)
    settled(queue, 4)


def test_pools_of_one_resource_are_filled_in_their_order(
    queue: Queue, keep: Callable[..., JobScaler], tmp_path: Path
) -> None:
    ours = keep(first={"jobs": 1, "cores": 2}, second={"jobs": 5, "cores": 1, "keep": 1})
    settled(queue, 1)  # one is kept though nothing waits
    ours.request_workers(CPU, 4)
    settled(queue, 3)
    assert sorted(job.pool for job in read_submissions(tmp_path / "run")) == ["first", "second", "second"]


def test_idle_jobs_are_given_back_and_some_are_kept(queue: Queue, keep: Callable[..., JobScaler]) -> None:
    ours = keep(cpu={"jobs": 4, "keep": 1, "idle": 1})
    ours.request_workers(CPU, 4)
    settled(queue, 4)
    ours.request_workers(CPU, 0)
    assert len(queue.jobs()) == 4  # the next stage may want them in a moment
    ours.request_workers(CPU, 4)
    settled(queue, 4)
    assert queue.ever() == 4
    ours.request_workers(CPU, 0)
    settled(queue, 1)


def test_lost_jobs_are_replaced(queue: Queue, keep: Callable[..., JobScaler]) -> None:
    events: list[Event] = []
    ours = keep(events, cpu={"jobs": 2})
    ours.request_workers(CPU, 2)
    settled(queue, 2)
    queue.lose("1")
    wait_until(lambda: queue.jobs() == {"2", "3"})
    ours.request_workers(CPU, 2)
    (notice,) = [event.message for event in events if isinstance(event, Notice)]
    assert notice.startswith("pool cpu: job 1 ended before a worker of it registered")


def test_a_queue_that_does_not_answer_has_lost_nothing(queue: Queue, keep: Callable[..., JobScaler]) -> None:
    events: list[Event] = []
    ours = keep(events, cpu={"jobs": 2})
    ours.request_workers(CPU, 1)
    settled(queue, 1)
    queue.say("down")
    ours.request_workers(CPU, 2)
    time.sleep(1.0)
    assert queue.ever() == 1
    queue.say("down", on=False)
    settled(queue, 2)
    assert queue.ever() == 2
    ours.request_workers(CPU, 2)
    said = [event.message for event in events if isinstance(event, Notice)]
    assert sum("the queue of here does not answer: cannot reach it" in line for line in said) == 1


def test_a_queue_that_never_answered_is_an_error(queue: Queue, keep: Callable[..., JobScaler]) -> None:
    queue.say("down")
    ours = keep(cpu={})
    ours.request_workers(CPU, 1)
    wait_until(lambda: ours.failure)
    with pytest.raises(
        ClusterError, match="here takes no jobs, and its queue does not answer: cannot reach it. Try again"
    ):
        ours.request_workers(CPU, 1)


def test_refusals_are_waited_out_for_a_while(
    queue: Queue, keep: Callable[..., JobScaler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "FAILURE_LIMIT", 4)
    ours = keep(cpu={"jobs": 2})
    ours.request_workers(CPU, 1)
    settled(queue, 1)
    queue.say("full")
    ours.request_workers(CPU, 2)
    wait_until(lambda: ours.failure)
    with pytest.raises(
        ClusterError,
        match=r"4 jobs in a row of pool cpu of here came to nothing; the last job was refused: sbatch: error: no more",
    ):
        ours.request_workers(CPU, 2)


def test_jobs_that_wait_are_cancelled_at_the_end(queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    site = Site.model_validate({"name": "here", "class": "SLURM", "pools": {"cpu": {}}})
    events: list[Event] = []
    for queue_is_down in (False, True):
        with (
            run_scheduler(LOOPBACK, None, None) as cluster,
            JobScaler(cluster, site, tmp_path / "run", None, events.append) as ours,
        ):
            ours.request_workers(CPU, 2)
            settled(queue, 2)
            if queue_is_down:
                queue.say("down")
        if not queue_is_down:
            assert queue.jobs() == set()
            assert read_submissions(tmp_path / "run") == []
    # It could not be told: so a person is told what to type, and the next driver cancels them.
    assert queue.jobs() == {"3", "4"}
    last = [event.message for event in events if isinstance(event, Notice)][-1]
    assert "may still hold jobs of this run. Type: scancel 3 4" in last
    with pytest.raises(ClusterError, match="squeue .*cannot reach it. Try again when it answers"):
        cancel_leftover_jobs(site, tmp_path / "run")
    queue.say("down", on=False)
    queue.lose("3")
    assert cancel_leftover_jobs(site, tmp_path / "run").jobs == ["4"]
    assert queue.jobs() == set()


SLURM = {"class": "SLURM", "cluster_name": "a", "user": "ada"}


def submission(number: int, **line: str | None) -> dict[str, str | None]:
    """A line of the list of jobs."""
    return {"job_id": str(number), "name": f"x-cpu.{number}", "pool": "cpu", "at": "2026-11-29T12:00:00+0000", **line}


def write_lines(root: Path, *lines: dict[str, str | None]) -> None:
    (root / RECORD).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_list_of_jobs(tmp_path: Path) -> None:
    """Those before an orderly end are no longer ours: queues use their numbers again. A torn line is none."""
    assert read_submissions(tmp_path) == []
    write_lines(tmp_path, submission(1, **SLURM), {"closed": "yes", **SLURM}, submission(2, **SLURM))
    with (tmp_path / RECORD).open("a") as lines:
        lines.write('{"job_id": "3')
    assert [job.job_id for job in read_submissions(tmp_path)] == ["2"]
    append_line(tmp_path, seen="x-cpu.2")
    assert [(job.job_id, job.seen, job.user) for job in read_submissions(tmp_path)] == [("2", True, "ada")]


def test_the_end_of_a_driver_closes_the_jobs_of_its_own_cluster_only(tmp_path: Path) -> None:
    jobs = [submission(1, **SLURM), submission(2, **SLURM | {"cluster_name": "b"}), submission(3, **{"class": "PBS"})]
    write_lines(tmp_path, *jobs, {"closed": "yes", **SLURM})
    assert [job.job_id for job in read_submissions(tmp_path)] == ["2", "3"]


def test_lists_of_jobs_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They name neither user nor cluster; ``closed`` was written by the driver that submitted the job before it."""
    old = {"class": "SLURM"}
    write_lines(
        tmp_path, submission(1, **{"class": "PBS"}), submission(2, **old), {"closed": "yes"}, submission(3, **old)
    )
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


def messages(events: list[Event]) -> str:
    """What was said, on one line."""
    return " ".join(event.message for event in events if isinstance(event, Notice))


def test_numbers_in_a_greeting_are_no_ids(queue: Queue, keep: Callable[..., JobScaler], tmp_path: Path) -> None:
    (tmp_path / "greeting").write_text("Welcome to Stampede3\n2 nodes free\n")
    ours = keep(cpu={"jobs": 2})
    ours.request_workers(CPU, 2)
    settled(queue, 2)
    assert [job.job_id for job in read_submissions(tmp_path / "run")] == ["1", "2"]


def test_a_job_whose_id_is_not_told_is_found_by_its_name(
    queue: Queue, keep: Callable[..., JobScaler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_commands, "NAME_PAUSE", 0.05)
    queue.say("mute")
    ours = keep(cpu={"jobs": 2})
    ours.request_workers(CPU, 2)
    settled(queue, 2)
    assert [job.job_id for job in read_submissions(tmp_path / "run")] == ["1", "2"]


def test_a_job_whose_id_is_not_known_stops_the_run_and_is_found_later(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_commands, "NAME_PAUSE", 0.01)
    (tmp_path / "greeting").write_text("3 nodes of Stampede3 are free\n")
    queue.say("mute")
    queue.say("blind")
    run_dir, events = tmp_path / "run", list[Event]()
    run_dir.mkdir()
    site = Site.model_validate({"name": "here", "class": "SLURM", "pools": {"cpu": {"jobs": 3}}})
    with run_scheduler(LOOPBACK, None, None) as cluster, JobScaler(cluster, site, run_dir, None, events.append) as ours:
        ours.request_workers(CPU, 3)
        wait_until(lambda: ours.failure)
        with pytest.raises(
            ClusterError,
            match=r"sbatch printed no line with a job's id: 3 nodes of Stampede3 are free. squeue .* does not show its "
            r"job daskpipe-\w+-cpu.1 either",
        ):
            ours.request_workers(CPU, 3)
    assert queue.ever() == 1
    assert "the queue does not list jobs without a number, named daskpipe-" in messages(events)
    assert not (tmp_path / "cancelled").exists()
    queue.say("blind", on=False)
    assert cancel_leftover_jobs(site, run_dir).jobs == ["1"]
    assert queue.jobs() == set()


def test_a_list_that_hides_jobs_proves_nothing(queue: Queue, tmp_path: Path) -> None:
    """As under another user's name: none is replaced, all are cancelled by their numbers, the record stays open."""
    queue.say("blind")
    run_dir, events = tmp_path / "run", list[Event]()
    run_dir.mkdir()
    site = Site.model_validate({"name": "here", "class": "SLURM", "pools": {"cpu": {"jobs": 3}}})
    with run_scheduler(LOOPBACK, None, None) as cluster, JobScaler(cluster, site, run_dir, None, events.append) as ours:
        ours.request_workers(CPU, 3)
        settled(queue, 3)
        wait_until(lambda: ours._warned_unseen)
        ours.request_workers(CPU, 3)
    assert queue.ever() == 3
    assert queue.jobs() == set()
    assert sorted((tmp_path / "cancelled").read_text().split()) == ["1", "2", "3"]
    assert "job 1 was submitted 0 s ago, and the queue of here does not list it" in messages(events)
    assert "does not list jobs 1, 2, 3 of this run, and may still hold them" in messages(events)
    assert "type: scancel 1 2 3" in messages(events)
    assert len(read_submissions(run_dir)) == 3
    # The next driver, to which they are not shown either, does not take them for gone.
    (doubt,) = cancel_leftover_jobs(site, run_dir).doubts
    assert "does not list jobs 1, 2, 3 of this run" in doubt


def test_a_job_that_a_list_without_others_never_shows_has_begun_once_its_log_says_so(
    queue: Queue, keep: Callable[..., JobScaler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_scaler, "START_SECONDS", 0.5)
    queue.say("blind")
    events: list[Event] = []
    ours = keep(events, cpu={})
    ours.request_workers(CPU, 1)
    settled(queue, 1)
    (job,) = read_submissions(tmp_path / "run")
    (tmp_path / "run" / "jobs" / f"{job.name}-1.log").write_text("daskpipe: on host n1\nno such program\n")
    wait_until(lambda: "1" not in queue.jobs())
    ours.request_workers(CPU, 1)
    assert "job 1 of pool cpu has run for 0 s without a worker" in messages(events)


def test_a_job_of_another_name_is_left_alone(queue: Queue, tmp_path: Path) -> None:
    """The cluster was set up anew, or this is another one: its job 1 is somebody's."""
    run_dir, events = tmp_path / "run", list[Event]()
    run_dir.mkdir()
    site = Site.model_validate({"name": "here", "class": "SLURM", "pools": {"cpu": {}}})
    with run_scheduler(LOOPBACK, None, None) as cluster, JobScaler(cluster, site, run_dir, None, events.append) as ours:
        ours.request_workers(CPU, 1)
        settled(queue, 1)
        queue.say("down")
    queue.say("down", on=False)
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
    assert queue.jobs() == {"1"}


def test_a_copy_of_a_run_directory_has_none_of_its_jobs(
    queue: Queue, keep: Callable[..., JobScaler], tmp_path: Path
) -> None:
    ours = keep(cpu={"jobs": 2})
    ours.request_workers(CPU, 2)
    settled(queue, 2)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    left = cancel_leftover_jobs(ours.site, tmp_path / "copy")
    assert (left.jobs, left.doubts) == ([], [])
    assert "jobs 1, 2 were submitted by a run in another directory, of which this is a copy" in left.notes[0]
    assert "If it was moved here, type: scancel 1 2" in left.notes[0]
    assert queue.jobs() == {"1", "2"}
    assert cancel_leftover_jobs(ours.site, tmp_path / "link").jobs == ["1", "2"]


def test_what_a_list_proves() -> None:
    """One that lacks a job proves its end only if it has shown it, or has shown others for a minute."""
    state = JobState("running", name="x-cpu.1")
    job = Submission(job_id="1", name="x-cpu.1", kind="SLURM", cluster_name="a", user="ada", at=format_time_now())
    old = replace(job, job_id="2", name="x-cpu.2", at="2026-11-29T12:00:00+0000")

    def fate(job: Submission, jobs: dict[str, JobState] | None = None, *others: Submission, **asked: Any) -> str:
        listing = Listing(**{"kind": "SLURM", "cluster_name": "a", "user": "ada", "jobs": jobs or {}, **asked})
        return next(fate for fate, those in listing.sort_by_fate([job, *others]).items() if job in those)

    assert fate(job, {"1": state}) == "queued"
    assert fate(job, {"1": replace(state, state="over")}) == "gone"
    assert fate(job) == fate(old) == "unknown"
    assert fate(replace(job, seen=True)) == "gone"
    assert fate(replace(job, seen=True), user="bob") == "unknown"
    assert fate(replace(job, seen=True), cluster_name="b") == fate(job, {"1": state}, cluster_name="b") == "elsewhere"
    assert fate(old, {"1": state}, job) == "gone"
    assert fate(replace(job, job_id="3"), {"2": replace(state, name="x-cpu.2")}, old) == "unknown"  # too young
    assert fate(job, {"1": replace(state, name="thesis")}) == "gone"
    assert fate(replace(job, cluster_name=None), {"1": replace(state, name="thesis")}) == "elsewhere"
    nameless = replace(job, job_id=None)
    assert fate(nameless, {"1": state}) == "queued"
    assert fate(nameless) == "unknown"
