"""GPUs that a job may use, by what its queue tells it."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin

from daskpipe.cluster.queues import list_gpu_variables
from daskpipe.core.errors import ClusterError
from daskpipe.engine.dask_pool import GPU


def parse_visible_gpus(variable: str) -> list[str]:
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
    variables = ["CUDA_VISIBLE_DEVICES", *list_gpu_variables()]
    if name := next((name for name in variables if environment.get(name) is not None), None):
        gpus = parse_visible_gpus(environment[name].replace(" ", ","))  # as in Grid Engine's SGE_HGR_gpu
        if len(gpus) < n_gpus:
            raise ClusterError(
                f"this job has asked for {n_gpus} GPUs, and received {len(gpus)}: {name}={environment[name]}. Correct "
                "gpus, directives or environment of the pool in the site's file"
            )
        return gpus[:n_gpus]
    if (n_here := count_devices()) > n_gpus:
        raise ClusterError(
            f"this job has asked for {n_gpus} of the {n_here} GPUs of its machine, and none of {', '.join(variables)} "
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


def count_gpus() -> int:
    """Return the number of NVIDIA GPUs that this process may use; asks the driver, does not import torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len(parse_visible_gpus(visible))
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def visible_gpu(number: int) -> str:
    """Return the name of a GPU of this machine for CUDA_VISIBLE_DEVICES, by its number among those seen here."""
    names = parse_visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return names[number] if number < len(names) else str(number)


class OwnGpu(WorkerPlugin):
    """Worker plugin: each process of a job with several GPUs sees one of them; one of a CPU pool sees none.

    Torch looks at the variable when it is imported, which the first unit does, after this.
    """

    def setup(self, worker: Any) -> None:
        """Set CUDA_VISIBLE_DEVICES by the number at the end of the worker's name."""
        has_gpu = GPU in worker.state.total_resources
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")  # set by `daskpipe.cluster.worker`
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of_worker(str(worker.name), visible) if has_gpu else ""


def gpu_of_worker(name: str, visible: str) -> str:
    """Return the GPU of a worker of a GPU job, given its name and the job's CUDA_VISIBLE_DEVICES; empty if it has none.

    Workers of a job are ``JOB.7-0``, ``JOB.7-1``, ...; one that is alone in its job bears the job's name, ``JOB.7``.
    """
    numbered = re.search(r"\.\d+-(\d+)$", name)
    index = int(numbered[1]) if numbered else 0
    return dict(enumerate(parse_visible_gpus(visible))).get(index, "")
