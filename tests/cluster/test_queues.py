"""Read listings, ids and names of jobs and clusters of every queue system, and add one from another package."""

from __future__ import annotations

import asyncio
import os
import pwd
import sys
from pathlib import Path

import pytest
from queue_samples import KINDS, SAMPLES, make_site

from daskpipe.cluster.job_commands import list_jobs, list_jobs_async, name_cluster
from daskpipe.cluster.job_script import own_jobs_command
from daskpipe.cluster.queues import REGISTRY, all_queue_systems, find_job_id, get_queue_system
from daskpipe.core.errors import ClusterError, ConfigError


def test_each_queue_system_of_the_table_has_samples() -> None:
    assert set(SAMPLES) == set(REGISTRY.table)


def test_jobs_are_submitted_and_cancelled_as_dask_jobqueue_does() -> None:
    for kind in KINDS:
        queue_system = get_queue_system(kind)
        if queue_system.job_class is not None:  # dask-jobqueue does not know this queue system
            continue
        job_class = queue_system.load_job_class()
        assert (queue_system.name, queue_system.submit_command) == (kind, job_class.submit_command)
        assert queue_system.cancel_command == job_class.cancel_command


PLUGIN = """
from dataclasses import replace
from daskpipe.cluster.queues.slurm import SLURM

MINE = replace(SLURM, name="Mine", title="Mine", submit_command="submit_mine", job_id_variable="MINE_JOB_ID")
"""


def test_another_package_adds_a_queue_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_of_mine.py").write_text(PLUGIN)
    folder = tmp_path / "plugin_of_mine-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-mine\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[daskpipe.queues]\nMine = plugin_of_mine:MINE\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert make_site("Mine").queue_system.submit_command == "submit_mine"
    assert [queue.name for queue in all_queue_systems()] == [*REGISTRY.table, "Mine"]
    assert find_job_id({"MINE_JOB_ID": "7"}) == "7"
    monkeypatch.setattr(sys.modules["plugin_of_mine"], "MINE", "no queue system")
    with pytest.raises(ConfigError, match="entry point Mine of daskpipe.queues must be a QueueSystem, received 'no"):
        get_queue_system("Mine")


def test_a_process_is_in_the_job_that_its_queue_names() -> None:
    assert find_job_id({}) is None
    assert find_job_id({"SLURM_JOB_ID": ""}) is None
    # Another program may have set JOB_ID, which is Grid Engine's.
    assert find_job_id({"JOB_ID": "1", "SLURM_JOB_ID": "2"}) == "2"


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_of_a_queue_is_read(kind: str) -> None:
    assert get_queue_system(kind).read_listing(SAMPLES[kind].listing) == SAMPLES[kind].jobs
    assert get_queue_system(kind).read_listing("") == {}


GREETING = """
-----------------------------------------------------------------
          Welcome to the Stampede3 Supercomputer, rev. 3.2
-----------------------------------------------------------------
2 nodes free; job 7 of yours has 40 hours left. Your project: 12345 Submitted batch job 9
--> Verifying valid submit host (login1)...OK
"""


@pytest.mark.parametrize(
    ("kind", "answer", "job_id", "cluster"), [(kind, *answer) for kind in KINDS for answer in SAMPLES[kind].answers]
)
def test_a_job_is_listed_by_the_id_that_it_got(kind: str, answer: str, job_id: str, cluster: str | None) -> None:
    assert get_queue_system(kind).read_job_id(answer) == (job_id, cluster)
    assert get_queue_system(kind).read_job_id(f"{GREETING}{answer}4 GB of your quota are left\n") == (job_id, cluster)
    assert job_id in SAMPLES[kind].jobs


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_without_an_id_is_quoted(kind: str) -> None:
    command = get_queue_system(kind).submit_command
    with pytest.raises(
        ValueError, match=rf"{command} printed no line with a job's id: .*Stampede3.* / 2 nodes free; job 7"
    ):
        get_queue_system(kind).read_job_id(GREETING)
    with pytest.raises(ValueError, match=rf"{command} printed no line with a job's id: nothing"):
        get_queue_system(kind).read_job_id("")


def test_an_answer_with_two_ids_is_none() -> None:
    with pytest.raises(ValueError, match=r"sbatch printed several ids \(17, 3\): 3 / 17"):
        get_queue_system("SLURM").read_job_id("3\n17\n")


def test_a_name_is_compared_as_far_as_the_queue_shows_it() -> None:
    name = "daskpipe-1a2b3c4d-gpu.12"
    for kind in KINDS:
        matches = get_queue_system(kind).matches_name
        assert matches(name, name)
        assert matches(name[:15], name) == matches(f"{name[:14]}*", name) == (kind == "PBS")
        for other in ("daskpipe-1a2b3c4d-gpu.1", "daskpipe-5e6f7", "daskpipe-5e6f7a", "d", "", "*", name[:10]):
            assert not matches(other, name)


def test_a_queue_without_jobs_is_not_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LSF's list of no jobs is an error, on the standard error, with exit code 255."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program = tmp_path / "bjobs"
    for complaint in ("No unfinished job found", "No job found"):
        program.write_text(f"#!/bin/sh\necho '{complaint}' >&2\nexit 255\n")
        program.chmod(0o755)
        assert list_jobs(make_site("LSF")).jobs == {}
        assert asyncio.run(list_jobs_async(make_site("LSF"), None)).jobs == {}
    program.write_text("#!/bin/sh\necho 'LSF is down. Please wait ...' >&2\nexit 255\n")
    with pytest.raises(ClusterError, match=r"bjobs -a -u \w+ .*: LSF is down"):
        list_jobs(make_site("LSF"))
    with pytest.raises(RuntimeError, match="LSF is down"):
        asyncio.run(list_jobs_async(make_site("LSF"), None))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if SAMPLES[kind].cluster_answer])
def test_a_queue_tells_its_cluster(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SAMPLES[kind].cluster_answer is not None
    program, answer = SAMPLES[kind].cluster_answer
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / program).write_text(f"#!/bin/sh\necho '{answer}'\n")
    (tmp_path / program).chmod(0o755)
    assert asyncio.run(name_cluster(make_site(kind))) == "north"
    (tmp_path / program).write_text("#!/bin/sh\nexit 1\n")
    assert asyncio.run(name_cluster(make_site(kind))) is None


def test_a_queue_is_asked_for_ones_own_jobs_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    me = pwd.getpwuid(os.geteuid()).pw_name
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, "ada")
    for kind in KINDS:
        assert own_jobs_command(make_site(kind)) == get_queue_system(kind).list_command(me)
        assert any(me in word for word in own_jobs_command(make_site(kind)))
