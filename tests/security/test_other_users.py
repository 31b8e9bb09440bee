"""Try every port of a run as another user of the machine: nothing that is sent runs, and nothing is shown."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from intruder import OPERATIONS
from small_runs import SMALL

import daskpipe
from daskpipe.cluster.connect import LOOPBACK
from daskpipe.cluster.scheduler import find_scheduler_address
from daskpipe.cluster.sites import read_site
from daskpipe.core.events import Event, RunStarted, UnitCommitted
from daskpipe.store.reader import open_dataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user"),
]

NOTHING_SHOWN = {"""200 b'{"paths": ["/sitemap.json"]}'"""}
"""The one page of a worker's web server: it lists itself."""

STRANGER = Path(__file__).with_name("stranger.py")


class Stranger:
    """Subscriber that lets another user try all ports of a run when its first unit of exploration is committed.

    Parameters
    ----------
    run_dir
        Run directory of the run; processes of its jobs have it in their arguments.
    folder
        Folder in which orders that are obeyed leave files.
    """

    def __init__(self, run_dir: Path, folder: Path) -> None:
        self.run_dir, self.folder = run_dir, folder
        self.listening: set[str] = set()
        self.shown_by_ss: set[str] = set()
        self.answers: dict[str, dict[str, str]] = {}
        self.dashboard: str | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.dashboard = event.dashboard
        if isinstance(event, UnitCommitted) and event.stage == "explore" and not self.answers:
            self.listening = {address for process in self._find_processes() for address in _find_listeners(process)}
            self.shown_by_ss = _list_with_ss(self.listening)
            done = subprocess.run(
                [sys.executable, str(STRANGER), str(self.folder), *sorted(self.listening)],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            self.answers = json.loads(done.stdout)

    def _find_processes(self) -> list[psutil.Process]:
        """Return this process, the workers of the run's jobs, and the children of both; not Slurm's daemons."""
        jobs = [
            process
            for process in psutil.process_iter(["cmdline"])
            if "daskpipe.cluster.worker" in (words := process.info["cmdline"] or [])
            and str(self.run_dir) in " ".join(words)
        ]
        processes = [each for one in [psutil.Process(), *jobs] for each in (one, *one.children(recursive=True))]
        return [process for process in processes if not process.name().startswith(("slurm", "munge"))]

    def list_shown_pages(self) -> set[str]:
        """Return the beginnings of the pages that the other user was shown."""
        tries = [item for place in self.answers.values() for item in place.items()]
        return {
            answer
            for name, answer in tries
            if name.startswith("/") and not answer.startswith("404") and answer[:3].isdigit()
        }


def _find_listeners(process: psutil.Process) -> set[str]:
    return {
        f"{connection.laddr.ip}:{connection.laddr.port}"
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }


def _list_with_ss(addresses: set[str]) -> set[str]:
    """Return the local addresses that ``ss -ltn`` shows for the ports of some addresses."""
    if shutil.which("ss") is None:
        pytest.skip("no ss on the PATH: apt-get install iproute2")
    ports = {address.rpartition(":")[2] for address in addresses}
    rows = subprocess.run(["ss", "-H", "-ltn"], capture_output=True, text=True, check=True).stdout.splitlines()
    return {local for row in rows if (local := row.split()[3]).rpartition(":")[2] in ports}


@pytest.fixture
def obeyed(tmp_path: Path) -> Path:
    """Make the folder in which orders that are obeyed leave files."""
    folder = tmp_path / "obeyed"
    folder.mkdir()
    return folder


def run_with_stranger(run_dir: Path, obeyed: Path, *overrides: str) -> Stranger:
    """Run the small config while another user tries its ports."""
    stranger = Stranger(run_dir, obeyed)
    daskpipe.run("emt_alloy", [*SMALL, *overrides], run_dir=run_dir, subscribers=[stranger])
    assert stranger.answers
    assert open_dataset(run_dir / "dataset.zarr").sizes["structure"] == 6
    return stranger


LOCAL = ("cluster.workers=1", "cluster.gpus=0")


def test_the_tries_would_succeed_without_tls(tmp_path: Path, obeyed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without this the other tests would show nothing."""
    stranger = run_with_stranger(tmp_path / "run", obeyed, *LOCAL, "cluster.insecure=true")
    assert {file.name.partition("-")[0] for file in obeyed.iterdir()} == set(OPERATIONS)
    assert all(file.stat().st_uid == 0 for file in obeyed.iterdir())
    assert stranger.answers
    assert "WARNING: no TLS at tcp://127.0.0.1" in capfd.readouterr().err


def test_another_user_is_refused_by_a_local_run(tmp_path: Path, obeyed: Path) -> None:
    stranger = run_with_stranger(tmp_path / "run", obeyed, *LOCAL, "cluster.dashboard=true")
    assert list(obeyed.iterdir()) == []
    # The scheduler and its web server; a worker, its nanny and their web servers.
    assert len(stranger.answers) >= 5
    assert {address.rpartition(":")[0] for address in stranger.listening} == {LOOPBACK}
    assert stranger.shown_by_ss == stranger.listening
    # Only a user who knows the whole address of the dashboard can see it.
    assert stranger.list_shown_pages() <= NOTHING_SHOWN
    assert stranger.dashboard is not None


def test_another_user_is_refused_by_a_run_on_slurm(queue: Any, tmp_path: Path, obeyed: Path) -> None:
    site = tmp_path / "here.yaml"
    site.write_text('class: SLURM\npools:\n  cpu: {jobs: 1, cores: 1, memory: 2GB, walltime: "00:20:00"}\n')
    stranger = run_with_stranger(tmp_path / "run", obeyed, f"cluster.name={site}")
    assert list(obeyed.iterdir()) == []
    addresses = {address.rpartition(":")[0] for address in stranger.listening}
    assert addresses <= {LOOPBACK, find_scheduler_address(read_site(str(site)))}
    assert stranger.shown_by_ss == stranger.listening
    assert len(stranger.answers) >= 5
    assert stranger.list_shown_pages() <= NOTHING_SHOWN
