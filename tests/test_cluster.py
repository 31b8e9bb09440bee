"""Clusters: local workers, their listeners and threads; joining a scheduler; descriptions of sites."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
from dask.system import CPU_COUNT
from distributed import Client

from daskpipe.cluster import LOOPBACK, SUBMIT_COMMANDS, check, connect, count_gpus, read_site
from daskpipe.config import Cluster, load, package_folder
from daskpipe.errors import ClusterError, ConfigError

SITES = sorted(path.stem for path in package_folder("jobqueue").glob("*.yaml"))


def test_local_listeners_are_on_loopback_only(client: Client) -> None:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    assert set(client.run(os.getpid).values()) <= {process.pid for process in processes}
    listening = [
        connection.laddr
        for process in processes
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    # The scheduler and its dashboard; each worker, its nanny and its HTTP server.
    assert len(listening) >= 2 + 2 * 2
    assert {address.ip for address in listening} == {LOOPBACK}
    assert client.dashboard_link.startswith(f"http://{LOOPBACK}:")
    assert int(client.dashboard_link.split(":")[2].split("/")[0]) in {address.port for address in listening}


def test_a_worker_has_one_thread_everywhere(client: Client) -> None:
    def threads() -> tuple[int, int, set[str]]:
        import torch
        from threadpoolctl import threadpool_info

        pools = {item["num_threads"] for item in threadpool_info()}
        return (
            torch.get_num_threads(),
            max(pools, default=1),
            {os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]},
        )

    assert set(client.nthreads().values()) == {1}
    assert list(client.run(threads).values()) == [(1, 1, {"1"})] * 2


def test_only_the_gpu_worker_sees_a_gpu(client: Client) -> None:
    visible = client.run(
        lambda dask_worker: (os.environ["CUDA_VISIBLE_DEVICES"], dict(dask_worker.state.total_resources))
    )
    assert sorted(visible.values(), key=str) == [("", {}), ("0", {"GPU": 1})]


def test_lost_workers_are_reported_at_once(client: Client) -> None:
    assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.allowed_failures) == 0


def test_what_workers_print_goes_to_the_log(client: Client, workers_log: Path) -> None:
    client.run(lambda: os.write(1, b"said by a C library\n"))
    assert workers_log.read_text().count("said by a C library") == 2


def test_joining_leaves_the_cluster_as_it_was(client: Client) -> None:
    with connect(Cluster(address=client.scheduler.address)) as workers:
        joined = workers.client
        assert joined.scheduler.address == client.scheduler.address
        assert joined.run(os.getpid) == client.run(os.getpid)
    assert len(client.scheduler_info(n_workers=-1)["workers"]) == 2


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x", "tcp://"])
def test_no_scheduler_there(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskpipe.cluster.CONNECT_SECONDS", 1)
    with (
        pytest.raises(ClusterError, match=f"no scheduler answers at {address}.*Start one: dask scheduler"),
        connect(Cluster(address=address)),
    ):
        pass


def test_workers_and_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load("emt_alloy").cluster.workers is None
    assert CPU_COUNT >= 1
    for visible, n_gpus in (("", 0), ("0,1", 2), ("-1", 0), ("GPU-1a2b", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert count_gpus() == n_gpus


# --- sites ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SITES)
def test_every_site_is_read_and_writes_a_job_script(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import dask_jobqueue

    site = read_site(name)
    job_class = getattr(dask_jobqueue, site["class"]).job_cls
    script = job_class(scheduler="tls://127.0.0.1:1", name="worker", **site["job"]).job_script()
    assert job_class.submit_command.split()[0] == SUBMIT_COMMANDS[site["class"]]
    assert "distributed.cli.dask_worker tls://127.0.0.1:1" in script


def test_there_is_a_choice_for_every_site() -> None:
    choices = {path.stem for path in (package_folder("configs") / "cluster").glob("*.yaml")}
    assert choices == {"local", *SITES}


SITE = "class: SLURMCluster\nworkers: 1\njob: {cores: 1, memory: 1GB}\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (SITE.replace("SLURM", "SLRM"), r"unknown class 'SLRMCluster'. Did you mean 'SLURMCluster'\?"),
        (SITE.replace("SLURMCluster", "Security"), r"unknown class 'Security'"),
        (
            SITE.replace("1GB", "'1GB; rm -rf ~'"),
            r"job.memory must not hold shell characters, received '1GB; rm -rf ~'",
        ),
        (SITE.replace("1GB", "'$(id)'"), r"job.memory must not hold shell characters"),
        ("workers: 1", r"must hold class: \(a word\), workers: \(a number\) and job:"),
        ("[1]", r"must hold class: \(a word\)"),
        ("class: !!python/name:os.system x", r"is not YAML: could not determine a constructor"),
        ("a: [", r"is not YAML"),
    ],
)
def test_sites_that_are_wrong_are_explained(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        read_site(str(file))


def test_a_site_of_ones_own_is_named_by_path(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(SITE)
    assert read_site(str(file))["class"] == "SLURMCluster"
    with pytest.raises(ConfigError, match=r"unknown cluster 'slrm'. Did you mean 'slurm'\? Known: local, slurm"):
        read_site("slrm")


def test_a_site_is_checked_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"cluster slurm needs sbatch, and there is none on the PATH"):
        check(Cluster(name="slurm"))
    (tmp_path / "sbatch").touch(mode=0o755)
    check(Cluster(name="slurm"))
    check(Cluster(name="local"))
    check(Cluster(name="slurm", address="tcp://127.0.0.1:1"))


@pytest.mark.timeout(120)
def test_a_site_that_refuses_jobs_is_a_cluster_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sbatch"
    program.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with (
        pytest.raises(ClusterError, match=r"(?s)cluster slurm takes no jobs.*invalid partition"),
        connect(Cluster(name="slurm"), tmp_path / "workers.log"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["sbatch"]  # no key is left behind
