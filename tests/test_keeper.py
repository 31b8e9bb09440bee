"""What the keeper submits and gives back, with programs in place of a queue's: no job of theirs ever runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from daskpipe import keeper
from daskpipe.addresses import LOOPBACK
from daskpipe.errors import ClusterError
from daskpipe.events import Event, Notice
from daskpipe.jobs import KEY_FILES, key_files, remove_keys, scheduler
from daskpipe.keeper import Keeper
from daskpipe.placement import CPU, GPU
from daskpipe.sites import Site
from daskpipe.submissions import RECORD, cancel_left, record, recorded

PROGRAMS = {
    "sbatch": """
        [ -e $HERE/full ] && { echo "sbatch: error: no more jobs" >&2; exit 1; }
        n=$(( $(ls $HERE/ever | wc -l) + 1 ))
        cp "$1" $HERE/ever/$n
        echo "PENDING||Resources" >$HERE/queue/$n
        echo "Submitted batch job $n"
    """,
    "squeue": 'cd $HERE/queue; for n in *; do [ -e $n ] && echo "$n|$(cat $n)"; done; true',
    "scancel": "for n in $*; do rm $HERE/queue/$n; done",
}
"""Programs of a queue that is a folder, with a file a job."""

SECONDS = 30.0
"""Until the keeper must have done something, on a machine that does other work."""


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
        """Let it be ``down``, or ``full``."""
        (self.folder / word).touch() if on else (self.folder / word).unlink()


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    for name, seconds in {"TICK": 0.05, "QUEUE": 0.2, "CLOSE": 2.0}.items():
        monkeypatch.setattr(keeper, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(keeper, "FIRST_PAUSE", 0.05)
    return Queue(tmp_path)


@pytest.fixture
def keep(queue: Queue, tmp_path: Path) -> Iterator[Callable[..., Keeper]]:
    """Start a keeper of a site with these pools; its run directory is ``run``."""
    with ExitStack() as started:

        def keep(events: list[Event] | None = None, **pools: dict[str, Any]) -> Keeper:
            (tmp_path / "run").mkdir(exist_ok=True)
            site = Site.model_validate({"name": "here", "class": "SLURM", "pools": pools})
            cluster = started.enter_context(scheduler(LOOPBACK, None, None))
            emit = (lambda event: None) if events is None else events.append
            return started.enter_context(Keeper(cluster, site, tmp_path / "run", None, emit))

        yield keep


def wait_until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def settled(queue: Queue, n: int) -> None:
    """Wait until there are so many jobs, and see that it stays at that."""
    wait_until(lambda: len(queue.jobs()) == n)
    time.sleep(0.5)
    assert len(queue.jobs()) == n


def test_as_many_jobs_as_units_need_up_to_the_limit(queue: Queue, keep: Callable[..., Keeper]) -> None:
    ours = keep(cpu={"jobs": 3, "cores": 4}, gpu={"jobs": 2, "gpus": 1})
    assert ours.resources == {CPU, GPU}
    settled(queue, 0)
    ours.want(CPU, 5)  # four of them in a job
    settled(queue, 2)
    ours.want(CPU, 1000)
    settled(queue, 3)
    ours.want(GPU, 1)
    settled(queue, 4)


def test_pools_of_one_resource_are_filled_in_their_order(
    queue: Queue, keep: Callable[..., Keeper], tmp_path: Path
) -> None:
    ours = keep(first={"jobs": 1, "cores": 2}, second={"jobs": 5, "cores": 1, "keep": 1})
    settled(queue, 1)  # one is kept though nothing waits
    ours.want(CPU, 4)
    settled(queue, 3)
    assert sorted(line["pool"] for line in recorded(tmp_path / "run")) == ["first", "second", "second"]


def test_what_is_not_wanted_any_more_is_given_back_and_some_are_kept(queue: Queue, keep: Callable[..., Keeper]) -> None:
    ours = keep(cpu={"jobs": 4, "keep": 1, "idle": 1})
    ours.want(CPU, 4)
    settled(queue, 4)
    ours.want(CPU, 0)
    assert len(queue.jobs()) == 4  # the next stage may want them in a moment
    ours.want(CPU, 4)
    settled(queue, 4)
    assert queue.ever() == 4
    ours.want(CPU, 0)
    settled(queue, 1)


def test_lost_jobs_are_replaced(queue: Queue, keep: Callable[..., Keeper]) -> None:
    events: list[Event] = []
    ours = keep(events, cpu={"jobs": 2})
    ours.want(CPU, 2)
    settled(queue, 2)
    queue.lose("1")
    wait_until(lambda: queue.jobs() == {"2", "3"})
    ours.want(CPU, 2)
    (notice,) = [event.message for event in events if isinstance(event, Notice)]
    assert notice.startswith("pool cpu: job 1 ended before a worker of it registered")


def test_a_queue_that_does_not_answer_has_lost_nothing(queue: Queue, keep: Callable[..., Keeper]) -> None:
    events: list[Event] = []
    ours = keep(events, cpu={"jobs": 2})
    ours.want(CPU, 1)
    settled(queue, 1)
    queue.say("down")
    ours.want(CPU, 2)
    time.sleep(1.0)
    assert queue.ever() == 1
    queue.say("down", on=False)
    settled(queue, 2)
    assert queue.ever() == 2
    ours.want(CPU, 2)
    said = [event.message for event in events if isinstance(event, Notice)]
    assert sum("the queue of here does not answer: cannot reach it" in line for line in said) == 1


def test_a_queue_that_never_answered_is_an_error(queue: Queue, keep: Callable[..., Keeper]) -> None:
    queue.say("down")
    ours = keep(cpu={})
    ours.want(CPU, 1)
    wait_until(lambda: ours.failure)
    with pytest.raises(
        ClusterError, match="here takes no jobs, and its queue does not answer: cannot reach it. Try again"
    ):
        ours.want(CPU, 1)


def test_refusals_are_waited_out_for_a_while(
    queue: Queue, keep: Callable[..., Keeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "FAILURE_LIMIT", 4)
    ours = keep(cpu={"jobs": 2})
    ours.want(CPU, 1)
    settled(queue, 1)
    queue.say("full")
    ours.want(CPU, 2)
    wait_until(lambda: ours.failure)
    with pytest.raises(
        ClusterError,
        match=r"4 jobs in a row of pool cpu of here came to nothing; the last job was refused: sbatch: error: no more",
    ):
        ours.want(CPU, 2)


def test_jobs_that_wait_are_cancelled_at_the_end(queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    site = Site.model_validate({"name": "here", "class": "SLURM", "pools": {"cpu": {}}})
    events: list[Event] = []
    for queue_is_down in (False, True):
        with (
            scheduler(LOOPBACK, None, None) as cluster,
            Keeper(cluster, site, tmp_path / "run", None, events.append) as ours,
        ):
            ours.want(CPU, 2)
            settled(queue, 2)
            if queue_is_down:
                queue.say("down")
        if not queue_is_down:
            assert queue.jobs() == set()
            assert recorded(tmp_path / "run") == []
    # It could not be told: so a person is told what to type, and the next driver cancels them.
    assert queue.jobs() == {"3", "4"}
    last = [event.message for event in events if isinstance(event, Notice)][-1]
    assert "may still hold jobs of this run. Type: scancel 3 4" in last
    with pytest.raises(ClusterError, match="squeue .*cannot reach it. Try again when it answers"):
        cancel_left(site, tmp_path / "run")
    queue.say("down", on=False)
    queue.lose("3")
    assert cancel_left(site, tmp_path / "run") == ["4"]
    assert queue.jobs() == set()


def test_the_list_of_jobs(tmp_path: Path) -> None:
    """Those before an orderly end are no longer ours: queues use their numbers again. A torn line is none."""
    assert recorded(tmp_path) == []
    lines = [{"job_id": "1"}, {"closed": "then"}, {"job_id": "2"}]
    (tmp_path / RECORD).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"job_id": "3')
    assert recorded(tmp_path) == [{"job_id": "2"}]
    record(tmp_path, job_id="4")
    assert [line["job_id"] for line in recorded(tmp_path)] == ["2", "4"]


def test_keys_of_dead_drivers_go(tmp_path: Path) -> None:
    from distributed import Security

    with key_files(tmp_path, Security.temporary()) as folder:
        assert {file.name for file in folder.iterdir()} == set(KEY_FILES)
    assert not folder.exists()
    (tmp_path / "keys-of-a-dead-driver").mkdir()
    remove_keys(tmp_path)
    assert list(tmp_path.iterdir()) == []
