"""A scheduler that others started dies during a run: the run ends with what to do, and goes on elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from distributed import Client
from small_runs import SMALL, committed, files_of
from waiting import PATIENCE, wait_until

import daskpipe
from daskpipe.cluster.connect import connect
from daskpipe.cluster.settings import Cluster
from daskpipe.config.load import load_config
from daskpipe.core.errors import ClusterError
from daskpipe.core.events import Event, UnitCommitted
from daskpipe.runs.run import Result


@pytest.mark.slow
def test_scheduler_killed(reference: Result, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Scheduler and worker as people start them; the worker gives up soon after the scheduler is gone.
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    scheduler = subprocess.Popen(
        [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)],
        stderr=subprocess.DEVNULL,
    )
    wait_until(file.exists)
    address = json.loads(file.read_text())["address"]
    with pytest.raises(ClusterError, match=f"scheduler at {address} has no workers. Start one: dask worker {address}"):
        daskpipe.run("emt_alloy", [*SMALL, f"cluster.address={address}"], run_dir=tmp_path / "none")
    worker = subprocess.Popen(
        [*dask, "worker", address, "--nthreads", "1", "--host", "127.0.0.1", "--death-timeout", "5", "--no-dashboard"],
        stderr=subprocess.DEVNULL,
    )

    def kill(event: Event) -> None:
        if isinstance(event, UnitCommitted) and event.stage == "generate":
            os.kill(scheduler.pid, signal.SIGKILL)

    monkeypatch.setattr("daskpipe.engine.dispatcher.NO_WORKER_SECONDS", 2.0)
    run_dir = tmp_path / "run"
    try:
        with Client(address, set_as_default=False) as watching:
            watching.wait_for_workers(1, timeout=PATIENCE)
        with (
            connect(Cluster(address=address)) as theirs,
            pytest.raises(ClusterError, match="no worker has lived for 2 s; start workers, then resume the run"),
        ):
            daskpipe.run(load_config("emt_alloy", SMALL), run_dir=run_dir, client=theirs.client, subscribers=[kill])
    finally:
        for process in (scheduler, worker):
            process.terminate()
            process.wait(30)
    before = committed(run_dir)
    assert before
    result = daskpipe.resume(run_dir, client=client)
    now = committed(run_dir)
    assert {key: now[key] for key in before} == before
    assert files_of(result.dataset) == files_of(reference.dataset)
