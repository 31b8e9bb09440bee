"""Many trajectories in batches: each is on its own, whatever runs beside it and however often it is interrupted."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT
from explore_samples import (
    HOT,
    PLENTY,
    RUN_SEED,
    Wells,
    Wrapped,
    alloy,
    bits,
    cluster,
    compressed,
    crystal,
    dynamics,
    emt,
    lj,
    make_trajectories,
    mixed,
    positions,
    run_trajectories,
    seed,
    settings,
)
from reference.baoab import run_baoab
from scipy.spatial.distance import pdist

from daskpipe.core.errors import Yielded
from daskpipe.core.structures import structure_id
from daskpipe.engine.checkpoints import Checkpoints
from daskpipe.engine.units import Unit
from daskpipe.potentials import Potential, batched_model
from daskpipe.stages.explore.batch import Batch
from daskpipe.stages.explore.capacity import BatchCapacity
from daskpipe.stages.explore.integrate import CHAIN_LENGTH
from daskpipe.stages.explore.random_numbers import BLOCK, Purpose
from daskpipe.stages.explore.runner import BatchRunner
from daskpipe.stages.explore.settings import Guards, MonteCarlo, Ramp
from daskpipe.stages.explore.trajectory import Trajectory

ENSEMBLES = ["auto", "nve", "nvt_nose_hoover", "nvt_rescale"]
MOVES = MonteCarlo(every=10, swaps=3, hops=5)


# --- alone, among others, interrupted ----------------------------------------------------------------


@pytest.mark.parametrize("potential", [emt, lj], ids=["emt", "lj"])
@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_trajectory_is_the_same_bits_alone_among_others_and_in_another_order(ensemble, potential):
    model = batched_model(potential(), stress=True)
    chosen = settings(ensemble=ensemble, monte_carlo=None if ensemble == "nve" else MOVES)
    seeds = mixed()
    together = run_trajectories(seeds, chosen, model=model)
    backwards = run_trajectories(seeds[::-1], chosen, model=model)[::-1]
    for atoms, one, other in zip(seeds, together, backwards, strict=True):
        (alone,) = run_trajectories([atoms], chosen, model=model)
        assert alone.stops == []
        assert np.ptp(positions(alone), axis=0).max() > 0.01, "the atoms did not move"
        assert bits(one) == bits(alone)
        assert bits(other) == bits(alone)


@pytest.mark.parametrize("capacity", [1, 9, 20])
def test_how_many_fly_at_once_does_not_matter(capacity):
    chosen = settings(monte_carlo=MOVES)
    for one, other in zip(
        run_trajectories(mixed(), chosen), run_trajectories(mixed(), chosen, capacity=capacity), strict=True
    ):
        assert bits(one) == bits(other)


class Memory:
    """Checkpoints that are kept in memory: all that were written, and the one to go on from."""

    def __init__(self, start: bytes | None = None) -> None:
        self.start = start
        self.written: list[bytes] = []

    def read_newest(self) -> bytes | None:
        return self.start

    def save(self, content: bytes) -> None:
        self.written.append(content)

    def ends_soon(self) -> bool:
        return False

    def yield_if_ending(self) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("potential", [emt, lj], ids=["emt", "lj"])
@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_straight_through_or_resumed_at_any_checkpoint_is_the_same_bits(ensemble, potential):
    model = batched_model(potential(), stress=True)
    chosen = settings(ensemble=ensemble, monte_carlo=None if ensemble == "nve" else MOVES, steps=BLOCK + 8, stride=10)
    seeds = [*mixed()[:4], seed(alloy(), temperature=Ramp(start=300, end=900)), seed(compressed())]
    straight = run_trajectories(seeds, chosen, model=model, capacity=12)
    memory = Memory()
    ticks = itertools.count(step=1000)
    watched = run_trajectories(seeds, chosen, model=model, capacity=12, checkpoints=memory, clock=lambda: next(ticks))
    assert [bits(trajectory) for trajectory in watched] == [bits(trajectory) for trajectory in straight]
    assert len(memory.written) > 2 * (BLOCK + 8), "one each step, of each batch"
    for content in memory.written[::40]:
        resumed = run_trajectories(seeds, chosen, model=model, capacity=PLENTY, checkpoints=Memory(content))
        assert [bits(trajectory) for trajectory in resumed] == [bits(trajectory) for trajectory in straight]
        assert [trajectory.stops for trajectory in resumed] == [trajectory.stops for trajectory in straight]


def test_trajectory_is_the_same_bits_when_a_neighbour_breaks():
    seeds = [seed(cluster("Cu")), seed(compressed()), seed(cluster("Au"))]
    first, broken, last = run_trajectories(seeds)
    (stop,) = broken.stops
    assert 0 < stop.details["step"] < dynamics().steps, "it must break under way"
    for atoms, beside in ((seeds[0], first), (seeds[2], last)):
        (alone,) = run_trajectories([atoms])
        assert beside.stops == []
        assert bits(beside) == bits(alone)


def test_charge_of_one_seed_does_not_depend_on_what_its_neighbours_say():
    class Charged(EMT):
        """Pushes charged structures along x, so that a charge that is lost on the way shows."""

        def calculate(self, atoms, properties, system_changes):
            super().calculate(atoms, properties, system_changes)
            self.results["forces"] = self.results["forces"] + [float(atoms.info.get("charge", 0)), 0, 0]

    model = batched_model(Potential(calculator=Charged()))
    ion, silent = seed(cluster()), seed(cluster("Au"))
    ion.info["charge"] = 1
    (alone,) = run_trajectories([ion], model=model)
    beside, _ = run_trajectories([ion, silent], model=model)
    (neutral,) = run_trajectories([seed(cluster())], model=model)
    assert bits(beside) == bits(alone)
    assert bits(alone) != bits(neutral)
    assert beside.output_frames(dynamics())[0].info["charge"] == 1


# --- memory -------------------------------------------------------------------------------------------


def too_small(most: int) -> Wrapped:
    """EMT on a device that holds so many atoms."""

    def before(state: Any) -> None:
        if len(state.positions) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return Wrapped(batched_model(emt(), stress=True), before)


@pytest.mark.parametrize("most", [8, 12, 31])
def test_out_of_memory_halves_the_batch_and_changes_no_bit(most):
    chosen = settings(monte_carlo=MOVES)
    expected = run_trajectories(mixed(), chosen)
    found = run_trajectories(mixed(), chosen, model=too_small(most))
    for one, other in zip(expected, found, strict=True):
        assert bits(one) == bits(other)


def test_memory_may_run_out_under_way():
    """The neighbours of a batch that grow denser: the same atoms suddenly do not fit."""
    calls = itertools.count()

    def before(state: Any) -> None:
        if next(calls) == 7 and len(state.positions) > 20:
            raise RuntimeError("Failed to allocate 123456 bytes on device 'cuda:0'")

    expected = run_trajectories(mixed())
    found = run_trajectories(mixed(), model=Wrapped(batched_model(emt(), stress=True), before))
    assert next(calls) > 7
    assert [bits(trajectory) for trajectory in found] == [bits(trajectory) for trajectory in expected]


def test_memory_may_run_out_in_trial_moves():
    """Each evaluation of a part of the batch fails once it is larger than ten atoms; those of all go through."""
    chosen = settings(monte_carlo=MOVES)
    n_atoms = sum(map(len, mixed()))
    refused = []

    def before(state: Any) -> None:
        if 10 < len(state.positions) < n_atoms:
            refused.append(len(state.positions))
            raise torch.OutOfMemoryError("CUDA out of memory")

    expected = run_trajectories(mixed(), chosen)
    found = run_trajectories(mixed(), chosen, model=Wrapped(batched_model(emt(), stress=True), before))
    assert refused
    assert [bits(trajectory) for trajectory in found] == [bits(trajectory) for trajectory in expected]


def test_trial_moves_for_which_there_is_no_memory_are_made_in_a_smaller_batch():
    """The first evaluations of a part of the batch fail, down to that of a single system."""
    chosen = settings(monte_carlo=MOVES)
    n_atoms, single = sum(map(len, mixed())), 6
    refused = []

    def before(state: Any) -> None:
        if len(state.positions) < n_atoms and (not refused or refused[-1] > single):
            refused.append(len(state.positions))
            raise torch.OutOfMemoryError("CUDA out of memory")

    expected = run_trajectories(mixed(), chosen)
    found = run_trajectories(mixed(), chosen, model=Wrapped(batched_model(emt(), stress=True), before))
    assert refused[-1] <= single, "no system was refused alone"
    assert [bits(trajectory) for trajectory in found] == [bits(trajectory) for trajectory in expected]
    assert [trajectory.tallies for trajectory in found] == [trajectory.tallies for trajectory in expected]


def test_what_does_not_fit_alone_is_rejected_and_the_others_go_on():
    small, large = run_trajectories([seed(cluster()), seed(alloy())], model=too_small(6))
    assert small.stops == []
    assert len(small.frames) == dynamics().n_frames
    (stop,) = large.stops
    assert stop.reason == "out_of_memory"
    assert "8 atoms alone: CUDA out of memory" in stop.evidence


def test_other_errors_of_the_machine_are_not_swallowed():
    def before(_: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        run_trajectories([seed(cluster())], model=Wrapped(batched_model(emt()), before))


# --- noise --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"run_seed": RUN_SEED + 1}, {"replica": 1}, {"temperature": HOT + 1}],
    ids=["run seed", "replica", "temperature"],
)
def test_noise_depends_on(change):
    conditions = {"replica": 0, "temperature": HOT, "run_seed": RUN_SEED}
    found = []
    for chosen in (conditions, conditions | change):
        run_seed = chosen.pop("run_seed")
        found += run_trajectories([seed(crystal(), **chosen)], settings(ensemble="nvt_langevin"), run_seed=run_seed)
    one, other = found
    assert np.abs(positions(one)[0] - positions(other)[0]).max() > 1e-3  # Å; thermal motion, not rounding


def test_langevin_step_is_that_of_a_slow_reference():
    atoms = seed(crystal(), temperature=300.0)
    chosen = settings(ensemble="nvt_langevin", temperatures=[300.0], timestep=3.0, friction=0.02, steps=20, stride=1)
    (trajectory,) = run_trajectories([atoms], chosen)
    (fresh,) = make_trajectories([atoms], chosen)
    normals = fresh.random_numbers.draw_steps(
        Purpose.THERMOSTAT, 0, 20, lambda generator, n: generator.standard_normal((n, len(atoms), 3))
    )
    first = fresh.random_numbers.stream_at(Purpose.VELOCITIES, 0).standard_normal((len(atoms), 3))
    slow = atoms.copy()
    slow.calc = EMT()
    expected = run_baoab(slow, first, normals, temperature=300.0, timestep=3.0, friction=0.02)
    rounding = 2e-6  # Å; frames are float32 and coordinates below 8 Å
    assert np.ptp(expected, axis=0).max() > 0.01, "the atoms did not move"
    np.testing.assert_allclose(positions(trajectory), expected, rtol=0, atol=rounding)


def test_first_momenta_are_maxwell_boltzmann_without_drift():
    from daskpipe.core import constants
    from daskpipe.stages.explore.batch import draw_thermal_momenta

    n_atoms = 2000
    atoms = seed(Atoms(f"Cu{n_atoms // 2}Au{n_atoms // 2}", positions=np.zeros((n_atoms, 3))))
    momenta = draw_thermal_momenta(Trajectory(seed=atoms, ensemble="nve", run_seed=RUN_SEED), HOT)
    np.testing.assert_allclose(momenta.sum(axis=0), 0, atol=1e-9 * np.abs(momenta).sum())
    scaled = momenta / np.sqrt(constants.KB * HOT * atoms.get_masses()[:, None])
    for half in (scaled[: n_atoms // 2], scaled[n_atoms // 2 :]):
        assert np.var(half) == pytest.approx(1, rel=5 * np.sqrt(2 / half.size))
    fourth_moment_of_a_normal = 3
    assert np.mean(scaled**4) == pytest.approx(fourth_moment_of_a_normal, rel=0.2)


# --- frames -------------------------------------------------------------------------------------------


def test_frames_steps_times_and_lineage():
    equilibration, stride, timestep = 7, 5, 2.0
    steps = equilibration + 3 * stride + 2  # the last two are not worth a frame, and are not run
    chosen = settings(steps=steps, stride=stride, equilibration=equilibration, timestep=timestep)
    atoms = seed(crystal(), replica=3, system_type="bulk", pressure=0.5)
    atoms.set_initial_magnetic_moments([1.0, -1.0, 2.0, 0.5])
    before, info = atoms.positions.copy(), dict(atoms.info)
    (trajectory,) = run_trajectories([atoms], chosen)
    expected = [equilibration + stride * number for number in (1, 2, 3)]
    assert trajectory.stops == []
    assert trajectory.step == expected[-1]
    frames = trajectory.output_frames(chosen.dynamics)
    assert [frame.info["step"] for frame in frames] == expected
    assert [frame.info["time"] for frame in frames] == [timestep * step for step in expected]
    for frame in frames:
        assert frame.info["parent_id"] == structure_id(atoms)
        assert frame.info["parent_id"] != structure_id(frame)
        assert (frame.info["system_type"], frame.info["generator"]) == ("bulk", "tests")
        assert (frame.info["temperature"], frame.info["pressure"], frame.info["replica"]) == (HOT, 0.5, 3)
        assert frame.info["ensemble"] == "npt_anisotropic"
        assert 0.2 * HOT < frame.info["kinetic_temperature"] < 4 * HOT
        assert "force_disagreement" not in frame.info
        np.testing.assert_array_equal(frame.positions, frame.positions.astype(np.float32))
        np.testing.assert_array_equal(frame.get_initial_magnetic_moments(), [1.0, -1.0, 2.0, 0.5])
        assert np.abs(frame.cell.array - atoms.cell.array).max() > 1e-4
    np.testing.assert_array_equal(atoms.positions, before)
    assert atoms.info == info


def test_without_a_barostat_the_cell_is_the_seeds_to_the_bit():
    atoms = seed(cluster())
    atoms.cell = [[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 3.0]]
    (trajectory,) = run_trajectories([atoms])
    (frame, *_) = trajectory.output_frames(dynamics())
    np.testing.assert_array_equal(frame.cell.array, atoms.cell.array)
    assert np.isnan(frame.info["pressure"])
    assert frame.info["ensemble"] == "nvt_langevin"


def test_equilibration_only_drops_frames():
    atoms = seed(crystal())
    (whole,) = run_trajectories([atoms], settings(steps=20, stride=5))
    (later,) = run_trajectories([atoms], settings(steps=20, stride=5, equilibration=10))
    np.testing.assert_array_equal(positions(later), positions(whole)[2:])


def test_ramps_and_cycles_set_the_thermostat_of_each_frame():
    there_and_back = Ramp(start=300, end=700, cycles=2)
    one_way = Ramp(start=300, end=700)
    chosen = settings(steps=50, stride=5, equilibration=10)
    squeezed = seed(crystal(), temperature=one_way, pressure=Ramp(start=0, end=0.8))
    one, two = run_trajectories([squeezed, seed(crystal(), temperature=there_and_back)], chosen)
    assert [frame.temperature for frame in one.frames] == [350, 400, 450, 500, 550, 600, 650, 700]
    assert [frame.pressure for frame in one.frames] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert [frame.temperature for frame in two.frames] == [500, 700, 500, 300, 500, 700, 500, 300]


def test_frames_are_kept_where_the_descriptor_has_changed():
    """A descriptor that is the number of the call: each frame is 1 from the one before."""
    calls = itertools.count()

    def fingerprint(structures: list[Atoms]) -> np.ndarray:
        return np.array([[float(next(calls))] for _ in structures])

    (trajectory,) = run_trajectories(
        [seed(crystal())], settings(steps=12, stride=1, change=2.5), fingerprint=fingerprint
    )
    assert [frame.step for frame in trajectory.frames] == [1, 4, 7, 10]


# --- guards -------------------------------------------------------------------------------------------


def test_all_systems_may_break_at_the_start():
    touching = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 0.3]])
    for trajectory in run_trajectories([seed(touching), seed(touching, replica=1)]):
        (stop,) = trajectory.stops
        assert trajectory.frames == []
        assert stop.reason == "force"
        assert stop.evidence.startswith("at step 0: a force of ")
        assert stop.evidence.endswith("; 0 frames before are kept")
        assert stop.details["step"] == 0
        assert stop.details["last_sane"]["symbols"] == ["Cu", "Cu"]


@pytest.mark.parametrize("stride", [1, 4, 5])
def test_sane_prefix_is_kept_with_the_last_sane_and_the_crashed_geometry(stride):
    (trajectory,) = run_trajectories([seed(compressed())], settings(steps=20, stride=stride))
    (stop,) = trajectory.stops
    step = stop.details["step"]
    assert stop.reason == "temperature"
    assert 0 < step < 20
    assert [frame.step for frame in trajectory.frames] == list(range(stride, step, stride))
    last = positions(trajectory)[-1] if trajectory.frames else compressed().positions
    np.testing.assert_allclose(stop.details["last_sane"]["positions"], last, atol=1e-4)
    crashed, sane = (np.ptp(stop.details[name]["positions"], axis=0)[2] for name in ("crashed", "last_sane"))
    assert crashed > sane > 0, "the pair flies apart"
    assert f"{len(trajectory.frames)} frames before are kept" in stop.evidence


def test_quarantine_drops_the_frames():
    (trajectory,) = run_trajectories([seed(compressed())], settings(Guards(on_stop="quarantine"), stride=1))
    (stop,) = trajectory.stops
    assert trajectory.frames == []
    assert trajectory.finished
    assert stop.evidence.endswith("none of its frames is kept")


def test_retries_are_cooler_and_other_and_at_most_two():
    beside = seed(cluster())
    chosen = settings(Guards(on_stop="retry"), stride=1)
    broken, sane = run_trajectories([seed(compressed()), beside], chosen)
    assert [stop.attempts for stop in broken.stops] == [1, 2, 3]
    assert len({stop.structure for stop in broken.stops}) == 3
    assert [stop.structure.rpartition("#")[2] for stop in broken.stops] == ["0", "0~1", "0~2"]
    assert "tried again at 0.90 of the temperature" in broken.stops[0].evidence
    assert "tried again at 0.81 of the temperature" in broken.stops[1].evidence
    assert "frames before are kept" in broken.stops[2].evidence
    assert {frame.temperature for frame in broken.frames} == {HOT * 0.9**2}
    crashes = [stop.details["crashed"]["positions"] for stop in broken.stops]
    assert crashes[0] != crashes[1] != crashes[2], "each try has noise of its own"
    assert sane.stops == []
    assert bits(sane) == bits(run_trajectories([beside], chosen)[0])


def test_a_retry_may_succeed():
    """Whoever is hotter than 560 K is too hot here: the first try at 600 K is, that at 540 K is not."""
    model = Wells(np.zeros((1, 3)), 0.0)
    atoms = seed(Atoms("Cu"))
    hot = [trajectory.temperature_at(dynamics(), 0) for trajectory in make_trajectories([atoms], settings())]
    assert hot == [HOT]

    class Touchy(Wells):
        def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
            found = super().forward(state)
            if next(calls) == 3:
                found["energy"] = found["energy"] * torch.nan
            return found

    calls = itertools.count()
    (trajectory,) = run_trajectories(
        [atoms], settings(Guards(on_stop="retry")), model=Touchy(model.centres.numpy(), 0.0)
    )
    (stop,) = trajectory.stops
    assert stop.reason == "not_finite"
    assert [frame.temperature for frame in trajectory.frames] == [HOT * 0.9] * dynamics().n_frames


def test_overlap_is_found_at_the_frame():
    from ase.data import covalent_radii

    atoms = seed(cluster())
    (free,) = run_trajectories([atoms], settings(Guards(min_distance=0), steps=100, stride=5))
    shortest = np.array([pdist(frame).min() for frame in positions(free)])
    # The first frame whose shortest distance falls below that of all frames before it; the limit lies between.
    n_sane = next(index for index in range(1, len(shortest)) if shortest[index] < shortest[:index].min())
    limit = (shortest[n_sane] + shortest[:n_sane].min()) / 2
    both_radii = 2 * covalent_radii[29]
    (trajectory,) = run_trajectories([atoms], settings(Guards(min_distance=limit / both_radii), steps=100, stride=5))
    (stop,) = trajectory.stops
    assert stop.reason == "overlap"
    assert f"{shortest[n_sane]:.3f} Å" in stop.evidence
    assert len(trajectory.frames) == n_sane
    np.testing.assert_array_equal(positions(trajectory), positions(free)[:n_sane])


def test_an_atom_that_leaves_is_noticed():
    far_wells = cluster().positions + np.array([[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 20, 0]])
    (trajectory,) = run_trajectories([seed(cluster())], settings(steps=800, stride=10), model=Wells(far_wells, 0.05))
    (stop,) = trajectory.stops
    assert stop.reason == "evaporated"
    assert "Cu (atom 3) is farther than 2.5 sums of covalent radii from what it was bonded to" in stop.evidence
    whatever = settings(Guards(evaporation=None), steps=800, stride=10)
    (kept,) = run_trajectories([seed(cluster())], whatever, model=Wells(far_wells, 0.05))
    assert [stop.reason for stop in kept.stops] != ["evaporated"]


def test_a_volume_that_runs_away_is_noticed():
    chosen = settings(Guards(max_volume_ratio=1.02), steps=400, stride=10)
    (trajectory,) = run_trajectories([seed(alloy(), pressure=-20.0)], chosen)
    (stop,) = trajectory.stops
    assert stop.reason == "volume"
    assert "its volume has changed by a factor of 1.0" in stop.evidence


class Fussy(EMT):
    """Gives up on gold, as an SCF that does not converge does."""

    def calculate(self, atoms, properties, system_changes):
        if "Au" in atoms.symbols:
            raise CalculationFailed("SCF not converged in 250 cycles")
        super().calculate(atoms, properties, system_changes)


def test_failure_of_the_potential_is_named():
    gold, copper = run_trajectories(
        [seed(cluster("Au")), seed(cluster())], model=batched_model(Potential(calculator=Fussy()))
    )
    (stop,) = gold.stops
    assert stop.reason == "potential_failed"
    assert stop.evidence.startswith("at step 0: unconverged: SCF not converged in 250 cycles")
    assert copper.stops == []
    assert len(copper.frames) == dynamics().n_frames


def test_failure_of_a_newcomer_is_laid_on_nobody_else():
    seeds = [seed(cluster(), replica=0), seed(cluster(), replica=1), seed(cluster("Au")), seed(cluster(), replica=2)]
    short = settings(steps=5, stride=5)
    found = run_trajectories(seeds, short, model=batched_model(Potential(calculator=Fussy())), capacity=8)
    assert [[stop.reason for stop in trajectory.stops] for trajectory in found] == [[], [], ["potential_failed"], []]


def test_failure_of_one_system_is_not_laid_on_the_next_one():
    class LateFussy(EMT):
        """Gives up on gold that has moved."""

        def calculate(self, atoms, properties, system_changes):
            if "Au" in atoms.symbols and not np.array_equal(atoms.positions, gold.positions):
                raise CalculationFailed("SCF not converged in 250 cycles")
            super().calculate(atoms, properties, system_changes)

    gold, copper = seed(cluster("Au")), seed(cluster())
    model = batched_model(Potential(calculator=LateFussy()))
    strict = settings(Guards(min_distance=0.98), stride=1)  # copper at 2.45 Å is 0.93 of the sum of radii
    found = run_trajectories([gold, copper], strict, model=model)
    assert [stop.reason for trajectory in found for stop in trajectory.stops] == ["potential_failed", "overlap"]
    assert [stop.details["step"] for trajectory in found for stop in trajectory.stops] == [1, 1]


def test_forces_that_become_nan_under_way_are_rejected():
    class Blows(Wells):
        def forward(self, state, **_):
            found = super().forward(state)
            away = (state.positions - self.centres).abs().amax()
            return {**found, "forces": torch.where(away > far, torch.nan, found["forces"])}

    far = 0.1  # Å; thermal motion in these wells has an amplitude of 0.16 Å
    atoms = seed(Atoms("Cu3", positions=[[5.0 * index, 0, 0] for index in range(3)]))
    (trajectory,) = run_trajectories([atoms], settings(steps=100), model=Blows(atoms.positions.copy(), 2.0))
    (stop,) = trajectory.stops
    assert stop.reason == "not_finite"
    assert stop.details["step"] > 0
    assert np.isfinite(stop.details["last_sane"]["positions"]).all()


# --- committee ----------------------------------------------------------------------------------------


class Quarrel(Wells):
    """Members that disagree by 0.01 eV/Å more each time they are asked."""

    calls = 0

    def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
        disagreement = torch.full((state.cell.shape[0],), 0.01 * self.calls, dtype=torch.float64)
        self.calls += 1
        return {**super().forward(state), "force_disagreement": disagreement}


def test_disagreement_is_stored_and_a_threshold_ends_the_trajectory_with_a_candidate():
    atoms = seed(cluster())
    (free,) = run_trajectories([atoms], model=Quarrel(atoms.positions, 2.0))
    assert [frame.force_disagreement for frame in free.frames] == pytest.approx([0.05, 0.10, 0.15, 0.20])
    assert not any(frame.candidate for frame in free.frames)
    (trajectory,) = run_trajectories(
        [atoms], settings(Guards(max_disagreement=0.115)), model=Quarrel(atoms.positions, 2.0)
    )
    assert trajectory.stops == []
    assert [(frame.step, frame.candidate) for frame in trajectory.frames] == [(5, False), (10, False), (12, True)]
    (at_once,) = run_trajectories([atoms], settings(Guards(max_disagreement=1e-9)), model=Quarrel(atoms.positions, 2.0))
    assert [(frame.step, frame.candidate) for frame in at_once.frames] == [(1, True)]
    started = Quarrel(atoms.positions, 2.0)
    started.calls = 1
    (seed_itself,) = run_trajectories([atoms], settings(Guards(max_disagreement=1e-9)), model=started)
    assert [(frame.step, frame.candidate) for frame in seed_itself.frames] == [(0, True)]
    last = trajectory.output_frames(dynamics())[-1].info
    assert (last["candidate"], last["force_disagreement"]) == (True, pytest.approx(0.12))


# --- checkpoints --------------------------------------------------------------------------------------


def checkpoints(folder: Any) -> Checkpoints:
    return Checkpoints(root=folder, unit=Unit(stage="explore", index=0, key="ab" * 16, n_inputs=1)).begin_attempt()


def test_checkpoints_come_by_the_clock(tmp_path):
    now = itertools.count()  # a second at each look
    chosen = settings(steps=100, stride=100, checkpoint=30.0)
    memory = Memory()
    run_trajectories([seed(crystal())], chosen, checkpoints=memory, clock=lambda: float(next(now)))
    assert 100 // 30 <= len(memory.written) <= next(now) / 30


def test_a_unit_yields_near_the_end_of_its_worker_and_goes_on_elsewhere(tmp_path, monkeypatch):
    (straight,) = run_trajectories([seed(crystal())])
    steps = itertools.count()

    def before(_: Any) -> None:
        if next(steps) == 7:
            monkeypatch.setenv("DASKPIPE_DEADLINE", str(time.time()))

    with pytest.raises(Yielded, match="the worker ends in 0 s"):
        run_trajectories(
            [seed(crystal())],
            model=Wrapped(batched_model(emt(), stress=True), before),
            checkpoints=checkpoints(tmp_path),
        )
    assert next(steps) == 8
    monkeypatch.delenv("DASKPIPE_DEADLINE")
    n_calls = itertools.count()
    model = Wrapped(batched_model(emt(), stress=True), lambda _: next(n_calls))
    (resumed,) = run_trajectories([seed(crystal())], model=model, checkpoints=checkpoints(tmp_path))
    assert bits(resumed) == bits(straight)
    assert next(n_calls) == dynamics().n_steps - 7, "no step is made again"


def test_a_damaged_checkpoint_is_not_used(tmp_path):
    chosen = settings(checkpoint=1e-9)
    (straight,) = run_trajectories([seed(crystal())], chosen)
    run_trajectories([seed(crystal())], chosen, checkpoints=checkpoints(tmp_path))
    (file,) = checkpoints(tmp_path).list_files()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert checkpoints(tmp_path).read_newest() is None
    (again,) = run_trajectories([seed(crystal())], chosen, checkpoints=checkpoints(tmp_path))
    assert bits(again) == bits(straight)


# --- trial moves --------------------------------------------------------------------------------------


def test_swaps_happen_and_what_belongs_to_an_atom_goes_with_it():
    atoms = seed(alloy(), temperature=3000.0)
    atoms.set_initial_magnetic_moments(np.arange(len(atoms)) + 1.0)
    chosen = settings(
        Guards(min_distance=0.2), ensemble="nvt_langevin", steps=10, stride=10,
        monte_carlo=MonteCarlo(every=5, swaps=20, min_distance=0.3),
    )  # fmt: skip
    (trajectory,) = run_trajectories([atoms], chosen)
    (frame,) = trajectory.output_frames(chosen.dynamics)
    np.testing.assert_array_equal(frame.numbers, atoms.numbers)
    np.testing.assert_array_equal(frame.get_initial_magnetic_moments(), np.arange(len(atoms)) + 1.0)
    moved = np.linalg.norm(frame.positions - atoms.positions, axis=1)
    assert (moved > 2.0).sum() >= 2, "at 3000 K some swap of 40 must be accepted"


def test_momentum_stays_zero_through_moves():
    chosen = settings(ensemble="nvt_langevin", steps=30, stride=10, monte_carlo=MonteCarlo(every=5, swaps=10, hops=20))
    for trajectory in run_trajectories([seed(alloy(), temperature=2000.0), seed(cluster())], chosen):
        assert trajectory.state is not None
        size = np.abs(trajectory.state["momenta"]).sum()
        np.testing.assert_allclose(trajectory.state["momenta"].sum(axis=0), 0, atol=1e-12 * size)


def test_chain_has_the_length_that_the_state_holds():
    chosen = settings(ensemble="nvt_nose_hoover")
    batch = Batch(make_trajectories([seed(crystal())], chosen), batched_model(emt()), chosen.dynamics)
    assert batch.state.chain.shape == (1, 2, CHAIN_LENGTH)
    assert BatchRunner(
        make_trajectories([seed(crystal())], chosen), batched_model(emt()), chosen, BatchCapacity(len, 1)
    ).mixes_periodicity
