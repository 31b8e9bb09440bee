"""Relaxation: ASE's FIRE in batches, before dynamics or alone, the same bits in any company and after any kill."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from explore_samples import (
    HOT,
    RUN_SEED,
    Wells,
    Wrapped,
    alloy,
    bits,
    cluster,
    crystal,
    emt,
    lj,
    make_trajectories,
    mixed,
    seed,
    settings,
    slab,
)
from test_runner import Memory

from daskpipe.core import constants
from daskpipe.core.structures import round_positions, structure_id
from daskpipe.engine.units import Payload
from daskpipe.potentials import batched_model
from daskpipe.stages.explore.capacity import BatchCapacity
from daskpipe.stages.explore.fire import FireState, fire_step
from daskpipe.stages.explore.guards import finite_guard
from daskpipe.stages.explore.relaxation import RelaxationBatch, RelaxationTrajectory, add_relaxations
from daskpipe.stages.explore.runner import BatchRunner
from daskpipe.stages.explore.settings import Dynamics, Exploration, Guards
from daskpipe.stages.explore.settings import Relaxation as Relax
from daskpipe.stages.explore.stage import explore_partition, list_conditions
from daskpipe.stages.explore.trajectory import Condition, Trajectory

PLENTY = 10**6
TIGHT = 1e-3
"""eV/Å; energies are then within 1e-6 eV of the minimum's."""


def rattled(atoms: Atoms, width: float = 0.1, number: int = 0) -> Atoms:
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(number).normal(scale=width, size=atoms.positions.shape)
    return atoms


def alone(**relax: Any) -> Exploration:
    return Exploration(relax=Relax(**{"fmax": TIGHT, **relax}))


def first_condition(atoms: Atoms, **condition: Any) -> Atoms:
    found = seed(atoms)
    found.info["condition"] = Condition(**{"temperature": HOT, "relaxation": True, **condition})
    return found


def relax(
    structures: list[Atoms], chosen: Exploration, *, model: Any = None, capacity: float = PLENTY, **options: Any
) -> tuple[list[Trajectory], list[RelaxationTrajectory]]:
    """Run trajectories after the relaxations of their seeds."""
    found = make_trajectories(structures, chosen)
    first = add_relaxations(found, chosen)
    BatchRunner(
        [*first, *found], model or batched_model(emt(), stress=True), chosen, BatchCapacity(len, capacity), **options
    ).run()
    return found, first


def shaken() -> list[Atoms]:
    """Bulk, clusters and a slab, out of equilibrium."""
    return [first_condition(rattled(atoms, 0.15, number)) for number, atoms in enumerate(mixed()[2:])]


# --- the minimum ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "atoms", [rattled(alloy()), rattled(cluster()), rattled(slab())], ids=["bulk", "cluster", "slab"]
)
def test_steps_are_those_of_ases_fire(atoms):
    n_steps = 40
    atoms = round_positions(atoms)
    chosen = alone(steps=n_steps, fmax=1e-9)
    batch = RelaxationBatch(
        [RelaxationTrajectory(seed=first_condition(atoms), run_seed=0)], batched_model(emt(), stress=True), chosen
    )
    slow = atoms.copy()
    slow.calc = EMT()
    optimizer = FIRE(slow, logfile=None)
    for _ in range(n_steps):
        batch.run_steps(1, [finite_guard()], lambda: True)
        optimizer.step()
        np.testing.assert_allclose(batch.state.positions.numpy(), slow.positions, atol=1e-8)
    assert np.abs(slow.positions - atoms.positions).max() > 0.05, "the atoms must have moved"


@pytest.mark.parametrize(
    ("pressure", "cell"),
    [pytest.param(0.0, "triclinic", marks=pytest.mark.slow), (5.0, "triclinic"), (5.0, "isotropic")],
)
def test_cell_relaxes_to_the_minimum_that_ase_finds_under_the_same_pressure(pressure, cell):
    structures = [rattled(alloy(), 0.1), rattled(crystal(), 0.05)]
    found, first = relax([first_condition(atoms, pressure=pressure) for atoms in structures], alone(cell=cell))
    for trajectory, relaxation, atoms in zip(found, first, structures, strict=True):
        assert relaxation.tallies == {"relaxations_converged": 1}
        ours = relaxation.relaxed_atoms
        ours.calc = EMT()
        slow = atoms.copy()
        slow.calc = EMT()
        FIRE(
            FrechetCellFilter(slow, hydrostatic_strain=cell == "isotropic", scalar_pressure=pressure * constants.GPA),
            logfile=None,
        ).run(fmax=TIGHT, steps=500)
        enthalpies = [
            (each.get_potential_energy() + pressure * constants.GPA * each.get_volume()) / len(each)
            for each in (ours, slow)
        ]
        assert enthalpies[0] == pytest.approx(enthalpies[1], abs=1e-4)
        assert trajectory.output_frames(alone().dynamics)[-1].info["pressure"] == pressure
        if cell == "triclinic":
            stress = ours.get_stress() / constants.GPA
            within = (
                TIGHT * len(ours) / ours.get_volume() / constants.GPA
            )  # GPa; what fmax leaves of the virial an atom
            np.testing.assert_allclose(stress, [-pressure] * 3 + [0] * 3, atol=within)
        else:
            shape = [each.cell.array / each.get_volume() ** (1 / 3) for each in (ours, atoms)]
            np.testing.assert_allclose(shape[0], shape[1], atol=1e-12)


def test_plane_of_a_slab_relaxes_and_the_vacuum_stays():
    start = slab()
    start.set_cell(start.cell.array * [[1.04], [1.04], [1]], scale_atoms=True)
    _, (relaxation,) = relax([first_condition(start)], alone(cell="plane"))
    cell = relaxation.relaxed_atoms.cell.array
    np.testing.assert_array_equal(cell[2], start.cell.array[2])
    assert 0.93 < np.linalg.norm(cell[0]) / np.linalg.norm(start.cell.array[0]) < 0.98
    ours = relaxation.relaxed_atoms
    ours.calc = EMT()
    assert np.abs(ours.get_forces()).max() < TIGHT


def test_auto_strains_bulk_only():
    kinds = [first_condition(atoms) for atoms in (crystal(), slab(), cluster())]
    for relax_plane, of_slab in ((False, "fixed"), (True, "plane")):
        chosen = settings(relax=Relax(cell="auto"), relax_plane=relax_plane)
        assert [each.cell for each in add_relaxations(make_trajectories(kinds, chosen), chosen)] == [
            "triclinic",
            of_slab,
            "fixed",
        ]


def test_long_displacements_are_cut_for_the_system_as_a_whole():
    centres = np.zeros((4, 3))
    atoms = first_condition(Atoms("Cu4", positions=np.arange(12.0).reshape(4, 3)))
    batch = RelaxationBatch([RelaxationTrajectory(seed=atoms, run_seed=0)], Wells(centres, 5.0), alone(max_step=0.3))
    for _ in range(10):
        before = batch.state
        batch.state = fire_step(before, batch.systems, batch.external, 0.3, batch.forces_of)
        assert float((batch.state.positions - before.positions).norm()) <= 0.3 + 1e-12
    assert isinstance(batch.state, FireState)


# --- company and kills ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("potential", "cell"), [(emt, "fixed"), (emt, "auto"), (lj, "auto")])
def test_relaxation_and_its_dynamics_are_the_same_bits_alone_in_any_order_and_in_small_batches(potential, cell):
    model = batched_model(potential(), stress=True)
    chosen = settings(Guards(evaporation=None), relax=Relax(cell=cell, steps=60, stride=7, fmax=0.02), steps=10)
    seeds = shaken()
    together, first = relax(seeds, chosen, model=model)
    backwards, last = relax(seeds[::-1], chosen, model=model)
    packed, tight = relax(seeds, chosen, model=model, capacity=9)
    assert len(first) == len(seeds), "no two seeds are the same"
    for number, atoms in enumerate(seeds):
        (trajectory,), (relaxation,) = relax([atoms], chosen, model=model)
        assert trajectory.stops == []
        assert len(relaxation.frames) > 1
        for others, company in ((together, first), (backwards[::-1], last[::-1]), (packed, tight)):
            assert bits(company[number]) == bits(relaxation)
            assert bits(others[number]) == bits(trajectory)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["fixed", "auto"])
def test_killed_at_any_checkpoint_and_resumed_is_the_same_bits(cell):
    model = batched_model(emt(), stress=True)
    chosen = settings(relax=Relax(cell=cell, steps=40, stride=7, fmax=0.02), steps=6, stride=3)
    seeds = [*shaken()[:4], first_condition(Atoms("Pt2", positions=[[0, 0, 0], [0, 0, 1.5]]))]
    straight, first = relax(seeds, chosen, model=model, capacity=12)
    memory = Memory()
    ticks = itertools.count(step=1000)
    relax(seeds, chosen, model=model, capacity=12, checkpoints=memory, clock=lambda: next(ticks))
    assert len(memory.written) > 40, "one each step, of each batch"
    for content in memory.written[::25]:
        resumed, relaxed = relax(seeds, chosen, model=model, checkpoints=Memory(content))
        assert [bits(trajectory) for trajectory in (*resumed, *relaxed)] == [
            bits(trajectory) for trajectory in (*straight, *first)
        ]
        assert [trajectory.stops for trajectory in resumed] == [trajectory.stops for trajectory in straight]
        assert [trajectory.tallies for trajectory in relaxed] == [trajectory.tallies for trajectory in first]


def test_memory_that_runs_out_halves_the_batch_and_changes_no_bit():
    def before(state: Any) -> None:
        if len(state.positions) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")

    chosen = settings(relax=Relax(steps=30), steps=5)
    expected, _ = relax(shaken(), chosen)
    found, _ = relax(shaken(), chosen, model=Wrapped(batched_model(emt(), stress=True), before))
    assert [bits(trajectory) for trajectory in found] == [bits(trajectory) for trajectory in expected]


# --- what comes out ---------------------------------------------------------------------------------------


def run(seeds: list[Atoms], chosen: Exploration) -> Payload:
    (payload,) = explore_partition(seeds, emt, chosen, RUN_SEED)
    return payload


def test_relaxation_alone_gives_its_path_and_its_end():
    start = first_condition(rattled(crystal(), 0.2))
    payload = run([start], Exploration(relax=Relax(stride=5, fmax=0.01)))
    arrays = payload.arrays
    steps = arrays["step"].tolist()
    assert steps[:-1] == list(range(5, steps[-1], 5))
    assert steps[-1] < Relax().steps
    assert payload.tallies == {"relaxations_converged": 1}
    assert payload.rejected == []
    assert set(arrays["ensemble"]) == {"relaxation"}
    for name in ("temperature", "time", "pressure"):
        assert np.isnan(arrays[name]).all(), name
    assert {item.tobytes() for item in arrays["parent_id"]} == {structure_id(start)}
    last = crystal()
    last.positions = arrays["positions"].reshape(-1, 4, 3)[-1]
    last.calc = EMT()
    assert np.abs(last.get_forces()).max() < 0.011  # eV/Å; positions are rounded to float32


def test_only_the_last_frame_is_kept_without_a_stride_and_it_always_is():
    for stride in (None, 1000):
        payload = run([first_condition(rattled(crystal(), 0.2))], alone(stride=stride))
        assert payload.n_out == 1
    relaxed = run([first_condition(crystal())], Exploration(relax=Relax(fmax=5.0)))
    assert relaxed.arrays["step"].tolist() == [0], "a seed that is relaxed is its own relaxed structure"


def test_steps_run_out():
    payload = run([first_condition(rattled(crystal(), 0.2))], alone(steps=7, stride=5))
    assert payload.arrays["step"].tolist() == [5, 7]
    assert payload.tallies == {"relaxations_unconverged": 1}


def test_dynamics_starts_where_the_relaxation_ended_and_one_trajectory_has_its_frames():
    chosen = settings(relax=Relax(fmax=TIGHT, stride=None), steps=1, stride=1, timestep=1e-6, replicas=2)
    start = seed(rattled(crystal(), 0.2))
    seeds = []
    for condition in list_conditions(chosen.dynamics, chosen.relax):
        seeds.append(start.copy())
        seeds[-1].info["condition"] = condition
    evaluations = itertools.count()
    model = Wrapped(batched_model(emt(), stress=True), lambda _: next(evaluations))
    _, first = relax(seeds, chosen, model=model)
    (relaxation,) = first
    assert next(evaluations) == relaxation.step + 1 + 2, "seeds that are the same are relaxed once, in one batch"
    payload = run(seeds, chosen)
    assert payload.arrays["ensemble"].tolist() == ["relaxation", "npt_anisotropic", "npt_anisotropic"]
    frames = payload.arrays["positions"].reshape(3, 4, 3)
    np.testing.assert_allclose(frames[1], frames[0], atol=1e-5)
    assert np.abs(frames[0] - start.positions).max() > 0.05
    assert payload.arrays["replica"].tolist() == [0, 0, 1]


def test_the_result_is_built_once_for_each_state():
    """Each frame of the trajectories that start from it looks at it."""
    atoms = rattled(crystal(), 0.05)
    relaxation = RelaxationTrajectory(seed=first_condition(atoms), run_seed=0, cell="triclinic")
    assert relaxation.relaxed_atoms is relaxation.seed
    seen = []
    for stretch in (1.0, 1.1):
        relaxation.state = {"positions": stretch * atoms.positions, "cell": stretch * atoms.cell.array}
        seen.append(relaxation.relaxed_atoms)
        assert relaxation.relaxed_atoms is seen[-1]
        np.testing.assert_allclose(seen[-1].cell.array, stretch * atoms.cell.array)
        np.testing.assert_allclose(seen[-1].positions, stretch * atoms.positions)
    assert seen[0] is not seen[1]


def test_frames_of_a_relaxation_belong_to_one_trajectory_a_pressure():
    grid = Dynamics(temperatures=[300.0, 600.0], pressures=[0.0, 2.0], replicas=2, steps=10, stride=5)

    def flags(relax: Relax | None) -> list[bool]:
        return [condition.relaxation for condition in list_conditions(grid, relax)]

    assert flags(None) == [False] * 8
    assert flags(Relax()) == [True] + [False] * 7
    assert flags(Relax(cell="auto")) == [True, False, True, False] + [False] * 4


def test_relaxation_that_breaks_is_named_with_each_of_its_trajectories():
    chosen = settings(relax=Relax())
    atoms = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.2]])
    pair = [first_condition(atoms, temperature=300.0), first_condition(atoms, temperature=300.0, replica=1)]

    class Nan(Wells):
        def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
            found = super().forward(state)
            return {**found, "energy": found["energy"] * (torch.nan if next(calls) == 3 else 1)}

    calls = itertools.count()
    found, first = relax(pair, chosen, model=Nan(np.zeros((2, 3)), 1.0))
    assert len(first) == 1
    assert [stop.reason for trajectory in found for stop in trajectory.stops] == ["not_finite", "not_finite"]
    assert [trajectory.stops[0].structure for trajectory in found] == [trajectory.name for trajectory in found]
    assert all(
        trajectory.finished and trajectory.stops[0].evidence.startswith("relaxation, at step 3:")
        for trajectory in found
    )


def test_what_still_has_wild_forces_at_the_end_is_no_structure():
    pair = first_condition(Atoms("Pt2", positions=[[0, 0, 0], [0, 0, 1.5]]))
    strict = Guards(max_force=10)
    payload = run([pair], Exploration(relax=Relax(steps=1, stride=1), guards=strict))
    (stop,) = payload.rejected
    assert (stop.reason, payload.n_out) == ("force", 0)
    assert "relaxation, at step 1: a force of" in stop.evidence
    longer = run([pair], Exploration(relax=Relax(steps=200, stride=1), guards=strict))
    assert longer.rejected == []
    assert longer.arrays["step"][0] > 1, "the first geometries are not kept either"


def test_cells_that_cannot_relax_as_asked_are_refused():
    payload = run([first_condition(cluster()), first_condition(crystal())], alone(cell="triclinic"))
    (stop,) = payload.rejected
    assert stop.reason == "ensemble"
    assert "explore.relax.cell=triclinic: triclinic strains the whole cell, but" in stop.evidence
    assert "give fixed, or auto" in stop.evidence
    assert payload.n_out > 0


def test_committee_that_disagrees_ends_the_relaxation_with_a_candidate_and_no_dynamics_follow():
    class Quarrel(Wells):
        def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
            disagreement = torch.full((state.cell.shape[0],), 0.1 * next(calls), dtype=torch.float64)
            return {**super().forward(state), "force_disagreement": disagreement}

    calls = itertools.count()
    chosen = settings(Guards(max_disagreement=0.35), relax=Relax(stride=None))
    (trajectory,), _ = relax([first_condition(cluster())], chosen, model=Quarrel(np.zeros((4, 3)), 1.0))
    (frame,) = trajectory.output_frames(chosen.dynamics)
    assert (frame.info["step"], frame.info["candidate"]) == (4, True)
    assert trajectory.stops == []


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {},
            r"nothing to do: give dynamics, e.g. dynamics=\{temperatures: \[300\], steps: 1000, stride: 50\}, or relax",
        ),
        ({"dynamics": {"steps": 0}}, "nothing to do"),
        ({"relax": {"cell": "cubic"}}, "'fixed', 'auto', 'isotropic'"),
        ({"relax": {"fmax": 0}}, "greater than 0"),
        ({"relax": {"steps": 0}}, "greater than 0"),
        ({"relax": {"max_step": 2}}, "less than or equal to 1"),
        ({"relax": {"smax": 0.1}}, "not permitted"),
        ({"relax": {}, "dynamics": {"steps": 10, "stride": 5}}, "temperatures\n.*required"),
    ],
)
def test_wrong_settings_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        Exploration(**content)


def test_without_dynamics_there_is_one_trajectory_a_pressure():
    assert Exploration(relax=Relax(), dynamics=None).dynamics == Exploration(relax=Relax()).dynamics
    pressed = Exploration(relax=Relax(cell="auto"), dynamics={"steps": 0, "pressures": [0, 5]})
    found = list_conditions(pressed.dynamics, pressed.relax)
    assert [(condition.pressure, condition.relaxation) for condition in found] == [(0, True), (5, True)]
    assert (pressed.dynamics.n_frames, pressed.dynamics.n_steps, pressed.n_steps) == (0, 0, 500)
    assert (Relax(steps=25, stride=10).n_frames, Relax(steps=25, stride=None).n_frames) == (3, 1)


def test_molecules_relax_too():
    _, (relaxation,) = relax([first_condition(molecule("H2"))], alone(), model=batched_model(lj()))
    assert np.isfinite(relaxation.relaxed_atoms.positions).all()


def test_hcp_and_fcc_stay_what_they_are():
    cells = [bulk("Cu", "hcp", a=2.6, c=4.1), bulk("Cu", "fcc", a=3.8)]
    _, first = relax([first_condition(atoms) for atoms in cells], alone(cell="triclinic"))
    volumes = [each.relaxed_atoms.get_volume() / len(each.seed) for each in first]
    assert volumes == pytest.approx([11.6, 11.6], abs=0.3)
