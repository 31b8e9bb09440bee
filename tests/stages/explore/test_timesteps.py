"""Time steps by the lightest atom, each structure its own."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, molecule
from explore_samples import bits, cluster, crystal, run_trajectories, seed, settings

from daskpipe.config.load import load_config
from daskpipe.potentials import build_potential
from daskpipe.stages.explore.settings import Dynamics, Exploration, Guards
from daskpipe.stages.explore.stage import explore_partition
from daskpipe.stages.explore.timesteps import masses_of, timestep_of, timestep_warning

HEAVY_WATER = np.array([2.014, 2.014, 15.999])


@pytest.mark.parametrize(
    ("masses", "step"),
    [
        (molecule("CH4").get_masses(), 0.5),
        (HEAVY_WATER, 0.5),
        (masses_of(["Li"]), 1.0),
        (molecule("CO2").get_masses(), 1.0),
        (masses_of(["U", "O"]), 1.0),
        (masses_of(["Na", "Cl"]), 2.0),
        (masses_of(["Al"]), 2.0),
        (masses_of(["Ca"]), 4.0),
        (masses_of(["Cu", "Au"]), 4.0),
    ],
)
def test_the_lightest_atom_decides(masses, step):
    assert timestep_of("auto", masses) == step
    assert timestep_of(3.3, masses) == 3.3


def test_a_step_that_is_too_long_is_told():
    assert timestep_warning("auto", HEAVY_WATER) is None
    assert timestep_warning(0.75, masses_of(["H"])) is None
    assert timestep_warning(5.0, masses_of(["Cu"])) is None
    assert timestep_warning(4.0, masses_of(["C", "H"])) == (
        "explore.dynamics.timestep=4 fs is long for atoms of 1.01 amu, whose bonds vibrate within 8 to 20 fs: "
        "trajectories may break; give timestep=auto (0.5 fs for such structures)"
    )


@pytest.mark.parametrize("ensemble", ["auto", "nve", "nvt_nose_hoover", "nvt_rescale"])
def test_structures_of_one_batch_have_their_own_steps(ensemble):
    light = bulk("Al", cubic=True)
    seeds = [seed(light), seed(crystal("Cu")), seed(cluster("Au"))]
    chosen = settings(ensemble=ensemble, timestep="auto")
    together = run_trajectories(seeds, chosen)
    assert [trajectory.timestep_in(chosen.dynamics) for trajectory in together] == [2.0, 4.0, 4.0]
    for atoms, trajectory, step in zip(seeds, together, (2.0, 4.0, 4.0), strict=True):
        (alone,) = run_trajectories([atoms], chosen)
        (given,) = run_trajectories([atoms], settings(ensemble=ensemble, timestep=step))
        assert bits(trajectory) == bits(alone) == bits(given)
        times = [frame.info["time"] for frame in trajectory.output_frames(chosen.dynamics)]
        assert times == [step * number for number in (5, 10, 15, 20)]


def xtb():
    return build_potential("xtb", {}, "cpu", "float64")


def test_molecules_that_inherit_quickstart_do_not_break():
    """At 900 K and 4 fs CH4 and H2O broke within two steps."""
    inherited = load_config("quickstart", ["explore=mace"]).explore
    assert inherited.dynamics.timestep == "auto"
    changes = {"steps": 20, "equilibration": 0, "stride": 10}
    seeds = [seed(molecule(name), temperature=900.0, system_type="molecule") for name in ("CH4", "H2O")]

    def run(**more: object) -> list[str]:
        dynamics = inherited.dynamics.model_copy(update={**changes, **more})
        (payload,) = explore_partition(seeds, xtb, Exploration(dynamics=dynamics, guards=Guards()), run_seed=3)
        return [stop.reason for stop in payload.rejected]

    assert run() == []
    assert len(run(timestep=4.0)) == 2


def test_default_and_presets_are_auto():
    assert Dynamics.model_fields["timestep"].default == "auto"
    for preset in ("quickstart", "molecules", "emt_alloy"):
        assert load_config(preset).explore.dynamics.timestep == "auto"
