"""Monte Carlo trial moves of the systems of a batch: one evaluation serves one trial of each system."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict

import numpy as np
import torch

from daskpipe.core import constants
from daskpipe.stages.explore.batch import Batch, make_evaluator, split_systems
from daskpipe.stages.explore.capacity import is_out_of_memory
from daskpipe.stages.explore.moves import SegmentResult, Swaps, Trial, redraw_momentum, swaps_allowed, trial_segment
from daskpipe.stages.explore.oxidation import oxidation_states
from daskpipe.stages.explore.random_numbers import Purpose
from daskpipe.stages.explore.settings import MonteCarlo
from daskpipe.stages.explore.trajectory import PossibleMoves, Trajectory
from daskpipe.stages.explore.vacancies import hop_sites, like_distances


def run_trial_moves(batch: Batch, due: Sequence[int], settings: MonteCarlo) -> None:
    """Make one segment of trial moves in each of some systems.

    The cells stay as they are. Atoms that have moved get new velocities.

    Parameters
    ----------
    batch
        Updated in place: positions, momenta, forces, energy and stress are those after the moves.
    due
        Systems of the batch.
    settings
        Kinds and numbers of moves.
    """
    batch.export_states()
    trajectories = {system: batch.trajectories[system] for system in due}
    streams = {
        system: trajectory.random_numbers.stream_at(Purpose.MOVES, trajectory.step)
        for system, trajectory in trajectories.items()
    }
    results = _run_segments(batch, {system: _start_segment(batch, system, settings, streams[system]) for system in due})
    moved = [system for system in due if len(results[system].moved)]
    rows = _evaluate_positions(batch, {system: results[system].positions for system in moved}) if moved else []
    # Nothing is changed before this line, so that the segment can be repeated after an out-of-memory error.
    for system, row in zip(moved, rows, strict=True):
        trajectory = trajectories[system]
        assert trajectory.state is not None
        momenta = trajectory.state["momenta"]
        temperature = trajectory.temperature_at(batch.dynamics, trajectory.step)
        for atom in results[system].moved.tolist():
            normal = streams[system].standard_normal(3)
            drawn = redraw_momentum(momenta, trajectory.masses, atom, normal, temperature)
            rests = trajectory.free.all(axis=0)
            if not rests.all():
                # Along axes on which something is fixed no other atom makes up for the momentum of this one.
                drawn[:, ~rests] = momenta[:, ~rests]
                drawn[atom, ~rests] = (np.sqrt(constants.KB * temperature * trajectory.masses[atom]) * normal)[~rests]
            momenta = drawn
        trajectory.state |= {**row, "positions": results[system].positions, "momenta": momenta}
    if moved:
        batch.load_states()
    for system, trajectory in trajectories.items():
        trajectory.moved_at = trajectory.step
        for kind in ("swaps", "hops"):
            for what, count in asdict(getattr(results[system], kind)).items():
                name = f"{kind}_{what}"
                trajectory.tallies[name] = trajectory.tallies.get(name, 0) + count


def _start_segment(
    batch: Batch, system: int, settings: MonteCarlo, rng: np.random.Generator
) -> Generator[Trial, float, SegmentResult]:
    trajectory = batch.trajectories[system]
    assert trajectory.state is not None
    if trajectory.moves is None:
        trajectory.moves = _find_possible_moves(trajectory, settings)
    swaps, sites, length = trajectory.moves
    return trial_segment(
        trajectory.state["positions"],
        float(trajectory.state["energy"]),
        numbers=trajectory.seed.numbers,
        cell=trajectory.state["cell"],
        pbc=trajectory.seed.pbc,
        temperature=trajectory.temperature_at(batch.dynamics, trajectory.step),
        swaps=swaps,
        n_swaps=settings.swaps,
        n_hops=settings.hops,
        hop_length=length,
        min_distance=settings.min_distance,
        rng=rng,
        sites=sites,
        movable=np.flatnonzero(trajectory.free.all(axis=1)),
    )


def _find_possible_moves(trajectory: Trajectory, settings: MonteCarlo) -> PossibleMoves:
    movable = trajectory.free.all(axis=1)
    if not movable.any():
        nothing = np.zeros(0, dtype=np.int64)
        return Swaps(order=nothing, begin=nothing, end=nothing, n_species=0), None, np.zeros(len(movable))
    states = oxidation_states(trajectory.seed, settings.oxidation_states)
    swaps = swaps_allowed(trajectory.seed.numbers[movable], states[movable], settings.charge_tolerance)
    if not settings.hops:
        return swaps, None, np.zeros(len(states))
    length = like_distances(trajectory.start_atoms, states, settings.charge_tolerance)
    return swaps, hop_sites(trajectory.start_atoms, length, movable), length


def _run_segments(
    batch: Batch, segments: dict[int, Generator[Trial, float, SegmentResult]]
) -> dict[int, SegmentResult]:
    """Run the segments to their ends, with one evaluation for one trial of each."""
    results: dict[int, SegmentResult] = {}
    answers: dict[int, float | None] = dict.fromkeys(segments)
    while answers:
        trials: dict[int, Trial] = {}
        for system, energy in answers.items():
            try:
                # A coroutine is started by sending None.
                trials[system] = segments[system].send(energy)  # type: ignore[arg-type]
            except StopIteration as end:
                results[system] = end.value
        rows = (
            _evaluate_positions(batch, {system: trial.positions for system, trial in trials.items()}) if trials else []
        )
        answers = {system: float(row["energy"]) for system, row in zip(trials, rows, strict=True)}
    return results


def _evaluate_positions(batch: Batch, positions: dict[int, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Evaluate some systems of a batch with other positions, in parts if the device cannot hold them all."""
    try:
        return _evaluate_at_once(batch, positions)
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(positions) == 1:
            raise
    half = len(positions) // 2
    parts = (dict(list(positions.items())[:half]), dict(list(positions.items())[half:]))
    return [row for part in parts for row in _evaluate_positions(batch, part)]


def _evaluate_at_once(batch: Batch, positions: dict[int, np.ndarray]) -> list[dict[str, np.ndarray]]:
    trajectories = [batch.trajectories[system] for system in positions]
    cells = batch.state.cell[list(positions)]
    places = torch.as_tensor(np.concatenate(list(positions.values())), device=batch.model.device)
    return split_systems(
        make_evaluator(trajectories, batch.model)(places, cells), [len(trajectory.seed) for trajectory in trajectories]
    )
