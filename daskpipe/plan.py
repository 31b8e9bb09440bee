"""What a config would do, counted before anything runs."""

from __future__ import annotations

import math
from typing import Any

from daskpipe.config import Config
from daskpipe.explore.stage import conditions
from daskpipe.generate.stage import requests


def plan(config: Config) -> dict[str, Any]:
    """Count inputs, outputs and units of each stage.

    Parameters
    ----------
    config
        A validated config.

    Returns
    -------
    dict
        Per stage ``inputs``, ``outputs`` (at most) and ``units``; JSON types. A file counts as one structure,
        since it is not read, and each structure is counted under each pressure: ``exact`` is false and ``doubts``
        says so if there are files, or several pressures.

    Raises
    ------
    InputError
        If a path of the config does not exist.
    """
    seeds = requests(config.generate.sources, config.generate.paths, config.generate.base_dir)
    dynamics = config.explore.dynamics
    # As if all were bulk: without a barostat a seed is explored once for all pressures.
    n_trajectories = len(seeds) * len(conditions(dynamics))
    n_explore = math.ceil(n_trajectories / config.explore.batch_size)
    n_frames = n_trajectories * dynamics.n_frames
    n_picks = min(config.select.n, n_frames)

    doubts = []
    if any(request.generator == "files" for request in seeds):
        doubts.append("files are not read by plan: each counts as one structure")
    if len(dynamics.pressures) > 1:
        doubts.append(
            "each structure is counted under each pressure: without a barostat there is one trajectory for all"
        )

    def row(inputs: int, outputs: int, units: int) -> dict[str, int]:
        return {"inputs": inputs, "outputs": outputs, "units": units}

    return {
        "name": config.name,
        "exact": not doubts,
        "doubts": doubts,
        "stages": {
            "generate": row(len(seeds), len(seeds), math.ceil(len(seeds) / config.generate.partition_size)),
            "explore": row(n_trajectories, n_frames, n_explore),
            "describe": row(n_frames, n_frames, n_explore + 1),
            "select": row(n_frames, n_picks, 1),
            "label": row(n_picks, n_picks, math.ceil(n_picks / config.label.batch_size)),
            "store": row(n_picks, n_picks, 1),
        },
        "md_steps": n_trajectories * dynamics.n_steps,
    }
