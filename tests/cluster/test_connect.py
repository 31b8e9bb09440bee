"""Connect to clusters: local workers with their listeners and threads, schedulers to join, and missing sites."""

from __future__ import annotations

import os
import socket
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from dask.system import CPU_COUNT
from distributed import Client, Nanny

from daskpipe.cli.progress import suggest_tunnel
from daskpipe.cluster.connect import LOOPBACK, connect
from daskpipe.cluster.gpus import OwnGpu, count_gpus, gpu_of_worker
from daskpipe.cluster.local import WORKER_BYTES, choose_worker_count
from daskpipe.cluster.queues import list_job_id_variables
from daskpipe.cluster.scheduler import run_scheduler
from daskpipe.cluster.settings import Cluster
from daskpipe.config.load import load_config
from daskpipe.core.errors import ClusterError


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
    client.run(lambda: os.write(1, b"printed by a C library\n"))
    assert workers_log.read_text().count("printed by a C library") == 2


SCRIPT = """
import os, signal, time
from daskpipe.cluster.connect import connect
from daskpipe.config.models import Cluster

print("begun", flush=True)

def process():
    return os.getpid()

with connect(Cluster(workers=1, gpus=0)) as workers:
    client = workers.client
    (first,) = client.run(process).values()
    (address,) = client.scheduler_info()["workers"]
    os.kill(first, signal.SIGKILL)
    while address in client.scheduler_info()["workers"]:
        time.sleep(0.1)
    client.wait_for_workers(1)  # its nanny starts another
    second = client.submit(process).result()
    print(len({first, second, os.getpid()}), "processes")
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["file", "standard input"])
def test_a_script_needs_no_main_guard(form: str, tmp_path: Path) -> None:
    """Workers do not run it again, nor do those that a nanny starts later; its functions reach them by value."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words, standard_input = ([script], None) if form == "file" else (["-"], SCRIPT)
    done = subprocess.run([sys.executable, *words], input=standard_input, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["begun", "3 processes"]


def test_joining_leaves_the_cluster_as_it_was(client: Client) -> None:
    with connect(Cluster(address=client.scheduler.address)) as workers:
        joined = workers.client
        assert joined.scheduler.address == client.scheduler.address
        assert joined.run(os.getpid) == client.run(os.getpid)
    assert len(client.scheduler_info(n_workers=-1)["workers"]) == 2


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x", "tcp://"])
def test_no_scheduler_there(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskpipe.cluster.local.CONNECT_SECONDS", 1)
    with (
        pytest.raises(ClusterError, match=f"no scheduler answers at {address}.*Start one: dask scheduler"),
        connect(Cluster(address=address)),
    ):
        pass


class Speaks(socketserver.BaseRequestHandler):
    """A server that answers without being asked."""

    def handle(self) -> None:
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


class Waits(socketserver.BaseRequestHandler):
    """A server that waits for a question of its own language, as web servers do, and keeps the connection."""

    def handle(self) -> None:
        self.request.recv(2**20)


@pytest.mark.parametrize("handler", [Speaks, Waits])
def test_something_else_answers_there(
    handler: type[socketserver.BaseRequestHandler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a web server says, or does not say, is no message of Dask."""
    monkeypatch.setattr("daskpipe.cluster.local.CONNECT_SECONDS", 1)
    with socketserver.ThreadingTCPServer((LOOPBACK, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"tcp://{LOOPBACK}:{server.server_address[1]}"
        try:
            with (
                pytest.raises(ClusterError, match=f"no scheduler answers at {address}"),
                connect(Cluster(address=address)),
            ):
                pass
        finally:
            server.shutdown()


def test_the_dashboard_is_no_scheduler(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its port is the one that people have on the screen."""
    monkeypatch.setattr("daskpipe.cluster.local.CONNECT_SECONDS", 1)
    address = f"tcp://{LOOPBACK}:{client.dashboard_link.split(':')[2].split('/')[0]}"
    with (
        pytest.raises(ClusterError, match=f"no scheduler answers at {address}"),
        connect(Cluster(address=address)),
    ):
        pass


def test_workers_and_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config("emt_alloy").cluster.workers is None
    assert CPU_COUNT >= 1
    cases = (("", 0), ("0,1", 2), ("-1", 0), ("GPU-1a2b", 1), ("NoDevFiles", 0), ("0,-1,1", 1), ("MIG-GPU-1a2b/1/0", 1))
    for visible, n_gpus in cases:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert count_gpus() == n_gpus


@pytest.mark.parametrize(
    ("cores", "memory", "n_workers"),
    [(4, 16e9, 4), (64, 256e9, 8), (8, 8e9, 3), (2, 1e9, 1)],
    ids=["as many as cores", "no more than eight", "a laptop of little memory", "at least one"],
)
def test_local_workers_are_as_many_as_cores_and_memory_allow(
    cores: int, memory: float, n_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dask.system.CPU_COUNT", cores)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", int(memory))
    assert choose_worker_count() == n_workers
    assert n_workers == 1 or memory / n_workers > WORKER_BYTES


@pytest.mark.parametrize(
    ("name", "visible", "gpu"),
    [
        ("daskpipe-1a2b-gpu.7", "3", "3"),  # alone in its job
        ("daskpipe-1a2b-gpu.7", "", ""),
        ("daskpipe-1a2b-gpu.7", "NoDevFiles", ""),
        ("daskpipe-1a2b-gpu.7-1", "4,6", "6"),  # the second of two
        ("daskpipe-1a2b-gpu.7-1", "4", ""),
        ("daskpipe-1a2b-a100-2.7", "GPU-1a2b,GPU-3c4d", "GPU-1a2b"),  # a pool called a100-2
        ("daskpipe-1a2b-a100-2.7-1", "GPU-1a2b,GPU-3c4d", "GPU-3c4d"),
    ],
)
def test_each_worker_of_a_job_has_its_own_gpu(name: str, visible: str, gpu: str) -> None:
    assert gpu_of_worker(name, visible) == gpu


def test_a_worker_learns_its_gpu_before_its_first_unit() -> None:
    """A job with two GPUs has two processes; in a CPU pool no process sees a GPU."""
    for resources, expected in (({"GPU": 1}, ["4", "6"]), ({"CPU": 1}, ["", ""])):
        workers = {
            f"daskpipe-x-pool.1-{number}": {
                "cls": Nanny,
                "options": {
                    "nthreads": 1,
                    "host": LOOPBACK,
                    "dashboard": False,
                    "name": f"daskpipe-x-pool.1-{number}",
                    "resources": resources,
                    "env": {"CUDA_VISIBLE_DEVICES": "4,6"},
                },
            }
            for number in range(2)
        }
        with run_scheduler(LOOPBACK, None, None) as cluster, Client(cluster, set_as_default=False) as client:
            client.register_plugin(OwnGpu())
            cluster.worker_spec.update(workers)
            cluster.sync(cluster._correct_state)
            client.wait_for_workers(2, timeout=120)
            assert sorted(client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"]).values()) == expected
            imported = client.run(lambda: "torch" in sys.modules)
            assert not any(imported.values())


def test_the_dashboard_is_seen_through_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSH_CONNECTION", *list_job_id_variables()):
        monkeypatch.delenv(name, raising=False)
    assert suggest_tunnel("http://127.0.0.1:8787/status") is None
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.9 50000 192.0.2.2 22")
    assert suggest_tunnel("http://127.0.0.1:9999/status") == f"ssh -L 9999:127.0.0.1:9999 {socket.gethostname()}"
    monkeypatch.delenv("SSH_CONNECTION")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert suggest_tunnel("http://127.0.0.1:8787/status") is not None
