"""Take the GPUs that a job's queue names, and never those of other jobs on the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from daskpipe.cluster import gpus
from daskpipe.cluster.gpus import count_devices, gpus_of_job
from daskpipe.cluster.queues import list_gpu_variables
from daskpipe.core.errors import ClusterError


@pytest.mark.parametrize(
    ("n_gpus", "environment", "expected"),
    [
        (2, {"CUDA_VISIBLE_DEVICES": "4,6"}, ["4", "6"]),
        (1, {"CUDA_VISIBLE_DEVICES": "GPU-1a2b", "SLURM_JOB_GPUS": "7"}, ["GPU-1a2b"]),
        (2, {"SLURM_JOB_GPUS": "1,3"}, ["1", "3"]),
        (2, {"CUDA_VISIBLE_DEVICES": "1 3"}, ["1", "3"]),  # export CUDA_VISIBLE_DEVICES=$SGE_HGR_gpu
        (1, {"SLURM_STEP_GPUS": "3", "SLURM_JOB_GPUS": "1,3"}, ["3"]),
        (1, {"GPU_DEVICE_ORDINAL": "2"}, ["2"]),
        (4, {}, ["0", "1", "2", "3"]),  # all that the machine has
    ],
)
def test_a_job_takes_the_gpus_that_its_queue_names(
    n_gpus: int, environment: dict[str, str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "count_devices", lambda: 4)
    assert gpus_of_job(n_gpus, environment) == expected


def test_a_job_that_is_not_told_its_gpus_does_not_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "count_devices", lambda: 4)
    with pytest.raises(
        ClusterError,
        match=r"asked for 2 of the 4 GPUs of its machine, and none of CUDA_VISIBLE_DEVICES, SLURM_STEP_GPUS.* tells "
        r"which. Add to environment of the pool in the site's file: export CUDA_VISIBLE_DEVICES=\$NAME",
    ):
        gpus_of_job(2, {})


@pytest.mark.parametrize("value", ["", "NoDevFiles", "-1", "0"])
def test_a_job_with_fewer_gpus_than_workers_does_not_begin(value: str) -> None:
    with pytest.raises(
        ClusterError, match=rf"asked for 2 GPUs, and received \d: CUDA_VISIBLE_DEVICES={value}. Correct"
    ):
        gpus_of_job(2, {"CUDA_VISIBLE_DEVICES": value})


def test_devices_that_cannot_be_opened_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that keeps the devices of other jobs closed leaves just those of this one."""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    (tmp_path / "nvidia2").symlink_to(tmp_path / "no-such-device")
    paths = [str(path) for path in tmp_path.glob("nvidia[0-9]*")]
    monkeypatch.setattr("glob.glob", lambda pattern: paths)
    assert count_devices() == 2


def test_the_program_of_a_job_ends_with_the_reason(tmp_path: Path) -> None:
    """The scaler quotes it from the job's log."""
    environment = {name: value for name, value in os.environ.items() if name not in list_gpu_variables()}
    words = ["tcp://127.0.0.1:1", "--nworkers", "2", "--nthreads", "1", "--resources", "GPU=1", "--death-timeout", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "daskpipe.cluster.worker", *words],
        env={**environment, "CUDA_VISIBLE_DEVICES": "NoDevFiles"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "error: this job has asked for 2 GPUs, and received 0: CUDA_VISIBLE_DEVICES=NoDevFiles" in done.stderr
