"""Runner of the trajectories of one unit in batches that fit the device."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from daskpipe.potentials.evaluate import mixes_periodicity
from daskpipe.stages.explore.batch import Batch
from daskpipe.stages.explore.capacity import BatchCapacity, is_out_of_memory
from daskpipe.stages.explore.checkpoint import pack_trajectories, unpack_trajectories
from daskpipe.stages.explore.guards import CANDIDATE, FINISHED, Fault, batch_guards, check_geometry
from daskpipe.stages.explore.monte_carlo import run_trial_moves
from daskpipe.stages.explore.random_numbers import BLOCK
from daskpipe.stages.explore.relaxation import RelaxationBatch
from daskpipe.stages.explore.settings import Exploration
from daskpipe.stages.explore.trajectory import Frame, Trajectory

if TYPE_CHECKING:
    from ase import Atoms

    from daskpipe.core.torch_sim import ModelInterface
    from daskpipe.engine.checkpoints import Checkpoints

_log = logging.getLogger(__name__)

type Fingerprint = Callable[[list[Atoms]], np.ndarray]
"""From structures to descriptors, shape (structure, feature)."""


class BatchRunner:
    """Run the trajectories of one unit in batches that fit the device.

    Parameters
    ----------
    trajectories
        All of a unit, in its order.
    model
        Batched model.
    settings
        Parameters of the exploration.
    room
        Largest batch that fits.
    fingerprint
        Descriptor by whose change frames are kept; needed if ``dynamics.change`` is set.
    checkpoints
        Where checkpoints are written and read; ``None`` for no checkpoints.
    clock
        Clock in seconds; replaced in tests.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        model: ModelInterface,
        settings: Exploration,
        room: BatchCapacity,
        fingerprint: Fingerprint | None = None,
        checkpoints: Checkpoints | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.trajectories, self.model, self.settings, self.room = list(trajectories), model, settings, room
        self.fingerprint, self.checkpoints, self.clock = fingerprint, checkpoints, clock
        self.mixes_periodicity = mixes_periodicity(model)
        self.guards = batch_guards(settings.guards)
        self.weight = {trajectory: room.weigh(trajectory.seed) for trajectory in self.trajectories}
        self.active: list[Trajectory] = []
        self.waiting = [trajectory for trajectory in self.trajectories if not trajectory.finished]
        self.saved_at = clock()

    def run(self) -> None:
        """Run until all trajectories are finished.

        Raises
        ------
        Yielded
            If the worker ends soon. The state is in the checkpoint.
        """
        self._resume_from_checkpoint()
        while self._fill_batch():
            try:
                batch = self._make_batch()
            except RuntimeError as error:
                self._shrink_batch(error)
            else:
                self._run_batch(batch)

    def _make_batch(self) -> Batch:
        if self.active[0].is_relaxation:
            return RelaxationBatch(self.active, self.model, self.settings)
        return Batch(self.active, self.model, self.settings.dynamics)

    def _fill_batch(self) -> bool:
        """Fill the batch from the waiting trajectories, in their order; return False if the batch is empty."""
        for trajectory in list(self.waiting):
            if self.active and trajectory.is_relaxation != self.active[0].is_relaxation:
                continue
            if trajectory.relaxation is not None:
                if not trajectory.relaxation.finished:
                    continue
                trajectory.end_with_relaxation(trajectory.n_steps(self.settings))
                if trajectory.finished:
                    self.waiting.remove(trajectory)
                    continue
            if not self.mixes_periodicity and self.active and (trajectory.seed.pbc != self.active[0].seed.pbc).any():
                continue
            if not self.room.can_join(self._active_weights(), self.weight[trajectory]):
                break
            self.waiting.remove(trajectory)
            self.active.append(trajectory)
        return bool(self.active)

    def _active_weights(self) -> list[float]:
        return [self.weight[trajectory] for trajectory in self.active]

    def _shrink_batch(self, error: RuntimeError) -> None:
        """Move the later half of a batch that ran out of memory back to the waiting trajectories."""
        if not is_out_of_memory(error):
            raise error
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(self.active) == 1:
            (trajectory,) = self.active
            self._stop_trajectory(
                trajectory, ("out_of_memory", f"{len(trajectory.seed)} atoms alone: {error}"), trajectory.seed
            )
            return
        self.room.halve_limit(self._active_weights())
        _log.info("out of memory with %d systems; at most a weight of %g now", len(self.active), self.room.capacity)
        left: list[Trajectory] = []
        while len(self.active) > 1 and sum(self._active_weights()) > self.room.capacity:
            left.insert(0, self.active.pop())
        self.waiting = left + self.waiting

    def _run_batch(self, batch: Batch) -> None:
        """Run a batch until at least one trajectory leaves it."""
        faults = batch.check_systems(self.guards)  # newcomers may be broken, or candidates, from the start
        ending = [system for system, fault in faults.items() if fault in (CANDIDATE, FINISHED)]
        faults |= self._keep_frames(batch, ending, faults)
        while not faults:
            if self._is_time_to_save():
                batch.export_states()
                self._save_checkpoint()
            try:
                self._run_due_moves(batch)
                faults = batch.run_steps(self._steps_to_event(), self.guards, lambda: not self._is_time_to_save())
            except RuntimeError as error:
                batch.export_states()
                self._shrink_batch(error)
                return
            faults |= self._keep_due_frames(batch, faults)
        batch.export_states()
        for system, fault in faults.items():
            trajectory = batch.trajectories[system]
            if fault in (FINISHED, CANDIDATE):
                trajectory.finished = True
                self.active.remove(trajectory)
            else:
                self._stop_trajectory(trajectory, fault, batch.geometry_of(system))

    def _stop_trajectory(self, trajectory: Trajectory, fault: Fault, crashed: Atoms) -> None:
        """Remove a broken trajectory from the batch; if it is retried, it waits for its turn."""
        trajectory.stop_attempt(*fault, crashed, self.settings.guards.on_stop)
        self.active.remove(trajectory)
        if not trajectory.finished:
            self.waiting.append(trajectory)

    def _steps_to_event(self) -> int:
        """Count the steps until the next frame, trial move or end of any trajectory."""
        monte_carlo = self.settings.monte_carlo
        steps = [BLOCK]
        for trajectory in self.active:
            steps.append(trajectory.steps_to_frame(self.settings))
            if monte_carlo and not trajectory.is_relaxation:
                steps.append(monte_carlo.every - trajectory.step % monte_carlo.every)
        return min(steps)

    def _keep_due_frames(self, batch: Batch, faults: dict[int, Fault]) -> dict[int, Fault]:
        """Keep the frames that are due, and those of candidates; return the systems that leave, with faults."""
        due = []
        for system, trajectory in enumerate(batch.trajectories):
            if (system not in faults and trajectory.is_frame_due(self.settings)) or faults.get(system) in (
                CANDIDATE,
                FINISHED,
            ):
                due.append(system)
        return self._keep_frames(batch, due, faults)

    def _keep_frames(self, batch: Batch, due: Sequence[int], faults: dict[int, Fault]) -> dict[int, Fault]:
        """Keep a frame of each of some systems, unless it is broken; return the systems that leave, with faults."""
        dynamics = self.settings.dynamics
        leaving: dict[int, Fault] = {}
        geometries = {system: batch.geometry_of(system) for system in due if batch.is_worth_a_frame(system)}
        changed = self._changed_systems(batch, geometries)
        kinetic = batch.kinetic_temperature() if geometries else np.zeros(0)
        for system, atoms in geometries.items():
            trajectory = batch.trajectories[system]
            is_candidate = faults.get(system) == CANDIDATE
            if fault := check_geometry(atoms, trajectory.start_atoms, self.settings.guards):
                leaving[system] = fault
                continue
            if system in changed or is_candidate or faults.get(system) == FINISHED:
                trajectory.frames.append(
                    Frame(
                        positions=atoms.positions.astype(np.float32),
                        cell=batch.cell_of(system),
                        step=trajectory.step,
                        temperature=trajectory.temperature_at(dynamics, trajectory.step),
                        kinetic_temperature=float(kinetic[system]),
                        pressure=trajectory.pressure_at(dynamics, trajectory.step),
                        force_disagreement=float(batch.state.disagreement[system]),
                        energy=float(batch.state.energy[system]) if self.settings.relax is not None else np.nan,
                        candidate=is_candidate,
                    )
                )
            if trajectory.step >= trajectory.n_steps(self.settings) and not is_candidate:
                leaving[system] = FINISHED
        return leaving

    def _changed_systems(self, batch: Batch, geometries: dict[int, Atoms]) -> set[int]:
        """Return the systems whose descriptor has changed since their last frame; all if ``change`` is not set."""
        least = self.settings.dynamics.change
        if least is None or not geometries:
            return set(geometries)
        assert self.fingerprint is not None
        fingerprints = self.fingerprint(list(geometries.values()))
        changed = set()
        for system, fingerprint in zip(geometries, fingerprints, strict=True):
            trajectory = batch.trajectories[system]
            last = trajectory.fingerprint
            if last is None or np.linalg.norm(fingerprint - last) >= least:
                trajectory.fingerprint = fingerprint
                changed.add(system)
        return changed

    def _run_due_moves(self, batch: Batch) -> None:
        """Make the trial moves that are due, also those that ran out of memory in a larger batch."""
        settings = self.settings.monte_carlo
        if settings is None or batch.trajectories[0].is_relaxation:
            return
        due = [
            system
            for system, trajectory in enumerate(batch.trajectories)
            if trajectory.step % settings.every == 0 and trajectory.moved_at != trajectory.step
        ]
        if due:
            run_trial_moves(batch, due, settings)

    # --- checkpoints ---

    def _is_time_to_save(self) -> bool:
        return self.checkpoints is not None and (
            self.clock() - self.saved_at >= self.settings.checkpoint or self.checkpoints.ends_soon()
        )

    def _save_checkpoint(self) -> None:
        """Write a checkpoint; yield the unit if the worker ends soon."""
        assert self.checkpoints is not None
        order = [self.trajectories.index(trajectory) for trajectory in (*self.active, *self.waiting)]
        self.checkpoints.save(pack_trajectories(self.trajectories, order, len(self.active), self.room.capacity))
        self.saved_at = self.clock()
        self.checkpoints.yield_if_ending()

    def _resume_from_checkpoint(self) -> None:
        """Restore the trajectories from the newest checkpoint, if there is one."""
        data = self.checkpoints.read_newest() if self.checkpoints else None
        if data is None:
            return
        order, n_flying, self.room.capacity = unpack_trajectories(data, self.trajectories)
        self.active = [self.trajectories[index] for index in order[:n_flying]]
        self.waiting = [self.trajectories[index] for index in order[n_flying:]]
