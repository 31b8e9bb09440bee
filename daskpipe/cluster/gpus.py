"""Find the GPUs that a job may use, from the variables that its queue sets."""

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

    Examples
    --------
    >>> parse_visible_gpus("0,GPU-1a2b"), parse_visible_gpus("NoDevFiles")
    (['0', 'GPU-1a2b'], [])
    """
    gpus = []
    for name in (item.strip() for item in variable.split(",")):
        if not re.fullmatch(r"\d+|(GPU|MIG)-[0-9A-Za-z/-]+", name):
            break
        gpus.append(name)
    return gpus


def gpus_of_job(n_gpus: int, environment: Mapping[str, str]) -> list[str]:
    """Return the GPUs of the job in which this process runs, one for each of its workers.

    Parameters
    ----------
    n_gpus
        Number of GPUs that the job has asked for.
    environment
        Environment variables of the job.

    Raises
    ------
    ClusterError
        If the queue names fewer; or if it names none and the machine has more, since some are other jobs'.
    """
    variables = ["CUDA_VISIBLE_DEVICES", *list_gpu_variables()]
    if name := next((name for name in variables if environment.get(name) is not None), None):
        gpus = parse_visible_gpus(environment[name].replace(" ", ","))  # Grid Engine's SGE_HGR_gpu has spaces
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
    """Return the number of NVIDIA GPUs that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len(parse_visible_gpus(visible))
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def name_visible_gpu(index: int) -> str:
    """Return the name, for CUDA_VISIBLE_DEVICES, of one of the GPUs that this process sees, by its index."""
    names = parse_visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return names[index] if index < len(names) else str(index)


class OwnGpu(WorkerPlugin):
    """Worker plugin that shows each process of a job one of the job's GPUs, and a process of a CPU pool none.

    Torch reads the variable when it is imported, which the first unit does, after this.
    """

    def setup(self, worker: Any) -> None:
        """Set CUDA_VISIBLE_DEVICES by the number at the end of the worker's name."""
        has_gpu = GPU in worker.state.total_resources
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")  # set by `daskpipe.cluster.worker`
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of_worker(str(worker.name), visible) if has_gpu else ""


def gpu_of_worker(name: str, visible: str) -> str:
    """Return the GPU of a worker; an empty string if there is none for it.

    Parameters
    ----------
    name
        Name of the worker: ``JOB.7-0``, ``JOB.7-1``, ... or, if it is alone in its job, the job's name ``JOB.7``.
    visible
        CUDA_VISIBLE_DEVICES of the job.

    Examples
    --------
    >>> gpu_of_worker("daskpipe-gpu.7-1", "4,6")
    '6'
    """
    numbered = re.search(r"\.\d+-(\d+)$", name)
    index = int(numbered[1]) if numbered else 0
    return dict(enumerate(parse_visible_gpus(visible))).get(index, "")
