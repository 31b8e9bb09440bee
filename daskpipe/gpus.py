"""GPUs that a job may use, by what its queue tells it."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from contextlib import suppress

from daskpipe.errors import ClusterError

VARIABLES = ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "GPU_DEVICE_ORDINAL")
"""Variables in which queues name the GPUs of a job; the first one that is set counts."""


def visible_gpus(variable: str) -> list[str]:
    """Return the GPUs that a value of CUDA_VISIBLE_DEVICES names, as CUDA reads it: those before the first wrong name.

    Slurm sets ``NoDevFiles`` for a job that has none.
    """
    gpus = []
    for name in (item.strip() for item in variable.split(",")):
        if not re.fullmatch(r"\d+|(GPU|MIG)-[0-9A-Za-z/-]+", name):
            break
        gpus.append(name)
    return gpus


def gpus_of_job(n_gpus: int, environment: Mapping[str, str]) -> list[str]:
    """Return the GPUs of the job in which this runs, one for each of its workers.

    Parameters
    ----------
    n_gpus
        As many as the job has asked for.
    environment
        Variables of the job.

    Raises
    ------
    ClusterError
        If the queue names fewer, or names none on a machine that has more, some of which are other jobs'.
    """
    if name := next((name for name in VARIABLES if environment.get(name) is not None), None):
        gpus = visible_gpus(environment[name].replace(" ", ","))  # as in Grid Engine's SGE_HGR_gpu
        if len(gpus) < n_gpus:
            raise ClusterError(
                f"this job has asked for {n_gpus} GPUs, and received {len(gpus)}: {name}={environment[name]}. Correct "
                "gpus, directives or environment of the pool in the site's file"
            )
        return gpus[:n_gpus]
    if (n_here := count_devices()) > n_gpus:
        raise ClusterError(
            f"this job has asked for {n_gpus} of the {n_here} GPUs of its machine, and none of {', '.join(VARIABLES)} "
            "tells which. Add to environment of the pool in the site's file: export CUDA_VISIBLE_DEVICES=$NAME, where "
            "NAME is the variable in which the queue names them; or ask for all GPUs of a machine"
        )
    return [str(index) for index in range(n_gpus)]


def count_devices() -> int:
    """Return the number of NVIDIA GPUs that this process may open: a queue may keep those of other jobs closed."""
    n_devices = 0
    for path in glob.glob("/dev/nvidia[0-9]*"):
        with suppress(OSError):
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            n_devices += 1
    return n_devices
