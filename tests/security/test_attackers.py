"""Attack a site's cluster without its keys: every attacker is refused, and nothing that they send runs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from distributed import Client, Security
from intruder import of_another_authority, order, without_certificate
from waiting import PATIENCE

from daskpipe.cluster import scheduler as jobs
from daskpipe.cluster import tls
from daskpipe.cluster.connect import LOOPBACK, check_cluster, connect
from daskpipe.cluster.job_script import build_job
from daskpipe.cluster.settings import Cluster
from daskpipe.cluster.sites import Site
from daskpipe.config.load import load_config
from daskpipe.core.errors import ClusterError


@dataclass(frozen=True)
class Ours:
    """A site's cluster: its scheduler and a worker as a job starts it."""

    scheduler: str
    worker: str
    keys: Path
    security: Security


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ours]:
    root = tmp_path_factory.mktemp("run")
    site = Site.model_validate({"name": "here", "class": "SLURM", "pools": {"cpu": {"memory": "1GB"}}})
    security = Security.temporary()
    with ExitStack() as started:
        keys = started.enter_context(tls.write_keys(root, security))
        cluster = started.enter_context(
            jobs.run_scheduler(jobs.find_scheduler_address(site), security, f"{LOOPBACK}:0")
        )
        address = cluster.scheduler_address
        script = build_job(
            site, site.pools["cpu"], scheduler=address, name="daskpipe-1", keys=keys, log_directory=root
        ).job_script()
        with (root / "log.txt").open("wb") as log:
            program = subprocess.Popen(["bash", "-c", script], stdout=log, stderr=log, start_new_session=True)
        started.callback(_end, program)
        client = started.enter_context(Client(cluster, set_as_default=False))
        client.wait_for_workers(1, timeout=PATIENCE)
        (worker,) = client.scheduler_info(n_workers=-1)["workers"]
        yield Ours(address, worker, keys, security)


def _end(program: subprocess.Popen[bytes]) -> None:
    processes = [psutil.Process(program.pid), *psutil.Process(program.pid).children(recursive=True)]
    for process in processes:
        process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=30)
    for process in alive:
        process.kill()
    program.wait()


OPERATIONS = [("scheduler", "run_function"), ("worker", "run")]


@pytest.mark.parametrize(("which", "operation"), OPERATIONS)
def test_who_has_the_keys_is_heard(which: str, operation: str, ours: Ours, tmp_path: Path) -> None:
    """Without this the other tests would show nothing."""
    answer = order(getattr(ours, which), operation, tmp_path / "canary", **ours.security.get_connection_args("client"))
    assert answer["status"] == "OK"
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(("which", "operation"), OPERATIONS)
@pytest.mark.parametrize("attacker", ["plain", "without_certificate", "of_another_authority"])
def test_who_has_not_is_refused(attacker: str, which: str, operation: str, ours: Ours, tmp_path: Path) -> None:
    address = getattr(ours, which)
    assert address.startswith("tls://")
    connection: dict[str, Any] = {}
    match attacker:
        case "plain":
            address = address.replace("tls://", "tcp://")
        case "without_certificate":
            connection = without_certificate()
        case "of_another_authority":
            connection = of_another_authority()
    with pytest.raises(OSError):  # noqa: PT011 - a refusal has many faces, and is always of this kind
        order(address, operation, tmp_path / "canary", **connection)
    time.sleep(0.5)
    assert not (tmp_path / "canary").exists()
    # The refused attacker has done no harm either.
    with Client(ours.scheduler, security=ours.security, set_as_default=False) as client:
        assert client.submit(sum, [1, 2], pure=False).result(timeout=PATIENCE) == 3


def test_the_keys_are_the_owners_alone(ours: Ours) -> None:
    assert ours.keys.stat().st_mode & 0o777 == 0o700
    assert {file.name: file.stat().st_mode & 0o777 for file in ours.keys.iterdir()} == dict.fromkeys(
        tls.KEY_FILES, 0o600
    )
    names = [word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or []]
    assert not [word for word in names if "PRIVATE KEY" in word]  # every user sees the arguments of programs


def test_a_scheduler_elsewhere_is_joined_with_keys_only(ours: Ours, tmp_path: Path) -> None:
    with connect(Cluster(address=ours.scheduler, tls=str(ours.keys))) as workers:
        assert workers.client.submit(sum, [1, 2], pure=False).result(timeout=PATIENCE) == 3
    with (
        dask.config.set({"distributed.comm.tls.client.cert": None}),
        pytest.raises(ClusterError, match=r"needs keys: give cluster.tls=FOLDER with ca.pem, cert.pem and key.pem"),
        connect(Cluster(address=ours.scheduler)),
    ):
        pass
    (tmp_path / "ca.pem").touch()
    with (
        pytest.raises(ClusterError, match=r"cluster.tls=.* holds no cert.pem, key.pem"),
        connect(Cluster(address=ours.scheduler, tls=str(tmp_path))),
    ):
        pass


def test_plain_tcp_off_this_machine_is_refused_unless_one_insists(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("daskpipe.cluster.local.CONNECT_SECONDS", 1)
    address = "tcp://198.51.100.77:1"  # set aside for documentation: nobody is there
    with pytest.raises(ClusterError, match=f"{address} is not on this machine, .* cluster.insecure=true"):
        check_cluster(Cluster(address=address))
    with pytest.raises(ClusterError, match="is not on this machine"), connect(Cluster(address=address)):
        pass
    assert "WARNING" not in capfd.readouterr().err
    # The same machine by its other address, where no packet leaves it and nobody listens.
    site = Site.model_validate({"name": "here", "class": "SLURM", "pools": {"cpu": {}}})
    if jobs.find_scheduler_address(site) == LOOPBACK:
        pytest.skip("this machine has no network")
    address = f"tcp://{jobs.find_scheduler_address(site)}:1"
    insists = Cluster(address=address, insecure=True)
    check_cluster(insists)
    with pytest.raises(ClusterError, match="no scheduler answers"), connect(insists):
        pass
    assert f"WARNING: no TLS at {address}. Whoever reaches it" in capfd.readouterr().err
    for on_this_machine in ("tcp://127.0.0.1:1", "tcp://localhost:1", "tcp://[::1]:1", "tls://198.51.100.77:1"):
        check_cluster(Cluster(address=on_this_machine))


def test_a_local_cluster_listens_on_loopback_only(tmp_path: Path) -> None:
    """In a process of its own, so that no other test's listeners are counted."""
    program = (
        "import psutil\nfrom daskpipe.cluster.connect import connect\nfrom daskpipe.config.models import Cluster\n"
        "if __name__ == '__main__':\n"
        "  with connect(Cluster(workers=1, gpus=0)):\n"
        "    family = [psutil.Process(), *psutil.Process().children(recursive=True)]\n"
        "    listeners = [c for p in family for c in p.net_connections('inet') if c.status == psutil.CONN_LISTEN]\n"
        "    print(len(listeners), *sorted({c.laddr.ip for c in listeners}))\n"
    )
    file = tmp_path / "program.py"
    file.write_text(program)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=True)
    n, *addresses = done.stdout.split()
    assert int(n) >= 4  # scheduler, its dashboard, a worker and its nanny
    assert addresses == [LOOPBACK]


def test_insecure_is_never_the_default() -> None:
    assert load_config("emt_alloy").cluster.insecure is False
    assert Cluster().insecure is False
