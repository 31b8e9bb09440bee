"""Relaxation in runs: planned, probed, from end to end, and killed as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.emt import EMT
from explore_samples import RUN_SEED, emt
from test_relaxation import shaken

import daskpipe
from daskpipe.config.load import load_config
from daskpipe.engine.checkpoints import Checkpoints
from daskpipe.engine.units import Unit
from daskpipe.runs.fsck import check_run
from daskpipe.runs.plan import plan_run
from daskpipe.stages.explore.settings import Exploration, Relaxation
from daskpipe.stages.explore.stage import explore_partition

RELAX_ONLY = [
    "generate.sources.alloys.n=2",
    "generate.sources.clusters.n=2",
    "explore.device=cpu",
    "explore.relax={cell: auto, steps: 40, stride: 10}",
    "explore.dynamics=null",
    "describe.dims=4",
    "describe.sample=6",
    "select.n=6",
]


def test_plan_counts_relaxations():
    found = plan_run(load_config("emt_alloy", RELAX_ONLY))["stages"]["explore"]
    n_seeds, at_most = 4, 4
    assert (found["inputs"], found["outputs"]) == (n_seeds, n_seeds * at_most)
    both = plan_run(
        load_config("emt_alloy", [*RELAX_ONLY[:-4], "explore.dynamics.temperatures=[300,600]", *RELAX_ONLY[-3:]])
    )
    n_frames = load_config("emt_alloy").explore.dynamics.n_frames
    assert both["stages"]["explore"]["inputs"] == 2 * n_seeds
    assert both["stages"]["explore"]["outputs"] == n_seeds * (2 * n_frames + at_most)


def test_group_relax_is_a_relaxation_alone():
    explore = load_config("quickstart", ["explore=relax"]).explore
    assert explore.relax == Relaxation(cell="auto", fmax=0.02)
    assert explore.dynamics.n_steps == 0


@pytest.mark.slow
def test_a_run_of_relaxations_alone_makes_a_dataset(tmp_path, client):
    result = daskpipe.run("emt_alloy", RELAX_ONLY, run_dir=tmp_path / "run", client=client)
    assert result.stages["explore"]["rejected"] == 0
    assert sum(result.stages["explore"]["tallies"].values()) == 4
    assert check_run(tmp_path / "run").findings == []
    ds = daskpipe.open_dataset(result.dataset)
    assert ds.sizes["structure"] == 6
    atoms = daskpipe.to_atoms(ds, 0)
    assert atoms.info["ensemble"] == "relaxation"
    energy = atoms.get_potential_energy()
    atoms.calc = EMT()
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-4)


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
from test_relaxation_runs import relaxed
relaxed({root!r}, die_at={step})
"""


def relaxed(root: str, die_at: int = 0) -> dict[str, np.ndarray]:
    """Relax a unit; kill this process at an evaluation if that is asked for."""
    from daskpipe.stages.explore import relaxation

    steps = 0
    step = relaxation.fire_step

    def counted(*arguments):
        nonlocal steps
        steps += 1
        if steps == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*arguments)

    relaxation.fire_step = counted
    Path(root).mkdir(exist_ok=True)
    try:
        unit = Unit(stage="explore", index=0, key="ab" * 16, n_inputs=1)
        chosen = Exploration(relax=Relaxation(cell="auto", stride=5, fmax=0.01), batch_atoms=20, checkpoint=1e-9)
        handle = Checkpoints(root=Path(root), unit=unit)
        (payload,) = explore_partition(shaken(), emt, chosen, RUN_SEED, checkpoints=handle)
    finally:
        relaxation.fire_step = step
    return dict(payload.arrays)


@pytest.mark.slow
def test_a_process_that_is_killed_twice_goes_on_to_the_same_bytes(tmp_path):
    expected = relaxed(str(tmp_path / "whole"))
    here = str(Path(__file__).parent)
    for step in (9, 15):
        code = KILLED.format(tests=here, root=str(tmp_path / "killed"), step=step)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, str(Path(here).parent), *sys.path])}
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, check=False)
        assert done.returncode == -signal.SIGKILL
    found = relaxed(str(tmp_path / "killed"))
    assert found.keys() == expected.keys()
    assert len(found["structure_id"]) > 10
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.slow
def test_probe_measures_relaxations(tmp_path, client):
    from daskpipe.runs.probe import probe_run

    measured = probe_run(load_config("emt_alloy", RELAX_ONLY), tmp_path / "run", client=client)
    assert measured.rates["explore"].seconds(40) > 0
    assert any("relaxations end when they have converged" in doubt for doubt in measured.doubts)
