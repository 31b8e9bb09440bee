"""The flight of a unit's walkers: who is in the batch, and what happens between segments of dynamics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from daskpipe.potentials.evaluate import mixes_periodicity
from daskpipe.stages.explore.batch import Batch
from daskpipe.stages.explore.capacity import Room, is_out_of_memory
from daskpipe.stages.explore.checkpoint import pack, unpack
from daskpipe.stages.explore.guards import CANDIDATE, FINISHED, Fault, check_geometry, of_batch
from daskpipe.stages.explore.monte_carlo import trial_moves
from daskpipe.stages.explore.random_numbers import BLOCK
from daskpipe.stages.explore.relaxation import RelaxationBatch
from daskpipe.stages.explore.settings import Exploration
from daskpipe.stages.explore.trajectory import Frame, Walker

if TYPE_CHECKING:
    from ase import Atoms
    from torch_sim.models.interface import ModelInterface

    from daskpipe.engine.checkpoints import Checkpoints

_log = logging.getLogger(__name__)

type Fingerprint = Callable[[list[Atoms]], np.ndarray]
"""From structures to descriptors, shape (structure, feature)."""


class Flight:
    """Brings walkers to their ends, as many at a time as there is room for.

    Parameters
    ----------
    walkers
        All of a unit, in its order.
    model
        Batched model.
    settings
        How they are run.
    room
        How many fit.
    fingerprint
        Descriptor by whose change frames are kept; needed if ``dynamics.change`` is set.
    checkpoints
        Where to leave what was reached, for whoever goes on; ``None`` to leave nothing.
    clock
        Seconds; for tests.
    """

    def __init__(
        self,
        walkers: Sequence[Walker],
        model: ModelInterface,
        settings: Exploration,
        room: Room,
        fingerprint: Fingerprint | None = None,
        checkpoints: Checkpoints | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.walkers, self.model, self.settings, self.room = list(walkers), model, settings, room
        self.fingerprint, self.checkpoints, self.clock = fingerprint, checkpoints, clock
        self.mixes = mixes_periodicity(model)
        self.guards = of_batch(settings.guards)
        self.weight = {walker: room.weigh(walker.seed) for walker in self.walkers}
        self.flying: list[Walker] = []
        self.waiting = [walker for walker in self.walkers if not walker.finished]
        self.saved_at = clock()

    def run(self) -> None:
        """Run until all walkers are finished.

        Raises
        ------
        Yielded
            If the worker ends soon. What was reached is in the checkpoint.
        """
        self._take_up()
        while self._board():
            try:
                batch = self._batch()
            except RuntimeError as error:
                self._too_many(error)
            else:
                self._fly(batch)

    def _batch(self) -> Batch:
        if self.flying[0].is_relaxation:
            return RelaxationBatch(self.flying, self.model, self.settings)
        return Batch(self.flying, self.model, self.settings.dynamics)

    def _board(self) -> bool:
        """Fill the batch from those that wait, the first first; say whether anybody flies."""
        for walker in list(self.waiting):
            if self.flying and walker.is_relaxation != self.flying[0].is_relaxation:
                continue
            if walker.relaxation is not None:
                if not walker.relaxation.finished:
                    continue
                walker.settle(walker.n_steps(self.settings))
                if walker.finished:
                    self.waiting.remove(walker)
                    continue
            if not self.mixes and self.flying and (walker.seed.pbc != self.flying[0].seed.pbc).any():
                continue
            if not self.room.fits(self._weights(), self.weight[walker]):
                break
            self.waiting.remove(walker)
            self.flying.append(walker)
        return bool(self.flying)

    def _weights(self) -> list[float]:
        return [self.weight[walker] for walker in self.flying]

    def _too_many(self, error: RuntimeError) -> None:
        """Take the later half of a batch out that does not fit; they go on when there is room again."""
        if not is_out_of_memory(error):
            raise error
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(self.flying) == 1:
            (walker,) = self.flying
            self._stopped(walker, ("out_of_memory", f"{len(walker.seed)} atoms alone: {error}"), walker.seed)
            return
        self.room.halve(self._weights())
        _log.info("out of memory with %d systems; at most a weight of %g now", len(self.flying), self.room.capacity)
        left: list[Walker] = []
        while len(self.flying) > 1 and sum(self._weights()) > self.room.capacity:
            left.insert(0, self.flying.pop())
        self.waiting = left + self.waiting

    def _fly(self, batch: Batch) -> None:
        """Advance a batch until somebody leaves it."""
        faults = batch.check(self.guards)  # newcomers may be broken, or candidates, from the start
        ending = [system for system, fault in faults.items() if fault in (CANDIDATE, FINISHED)]
        faults |= self._keep(batch, ending, faults)
        while not faults:
            if self._is_time_to_save():
                batch.export()
                self._save()
            try:
                self._trial_moves(batch)
                faults = batch.advance(self._steps_to_event(), self.guards, lambda: not self._is_time_to_save())
            except RuntimeError as error:
                batch.export()
                self._too_many(error)
                return
            faults |= self._frames(batch, faults)
        batch.export()
        for system, fault in faults.items():
            walker = batch.walkers[system]
            if fault in (FINISHED, CANDIDATE):
                walker.finished = True
                self.flying.remove(walker)
            else:
                self._stopped(walker, fault, batch.geometry(system))

    def _stopped(self, walker: Walker, fault: Fault, crashed: Atoms) -> None:
        """Take a walker out that is broken; if it is tried again, it queues up."""
        walker.stop(*fault, crashed, self.settings.guards.on_stop)
        self.flying.remove(walker)
        if not walker.finished:
            self.waiting.append(walker)

    def _steps_to_event(self) -> int:
        """Count the steps until a frame, a trial move or the end of some walker."""
        monte_carlo = self.settings.monte_carlo
        steps = [BLOCK]
        for walker in self.flying:
            steps.append(walker.steps_to_frame(self.settings))
            if monte_carlo and not walker.is_relaxation:
                steps.append(monte_carlo.every - walker.step % monte_carlo.every)
        return min(steps)

    def _frames(self, batch: Batch, faults: dict[int, Fault]) -> dict[int, Fault]:
        """Keep frames of those that are due, and of candidates; return who leaves thereby."""
        due = []
        for system, walker in enumerate(batch.walkers):
            if (system not in faults and walker.is_due(self.settings)) or faults.get(system) in (CANDIDATE, FINISHED):
                due.append(system)
        return self._keep(batch, due, faults)

    def _keep(self, batch: Batch, due: Sequence[int], faults: dict[int, Fault]) -> dict[int, Fault]:
        """Keep a frame of each of some systems, unless it is broken; return who leaves."""
        dynamics = self.settings.dynamics
        leaving: dict[int, Fault] = {}
        geometries = {system: batch.geometry(system) for system in due if batch.is_worth_a_frame(system)}
        changed = self._changed(batch, geometries)
        kinetic = batch.kinetic_temperature() if geometries else np.zeros(0)
        for system, atoms in geometries.items():
            walker = batch.walkers[system]
            is_candidate = faults.get(system) == CANDIDATE
            if fault := check_geometry(atoms, walker.start, self.settings.guards):
                leaving[system] = fault
                continue
            if system in changed or is_candidate or faults.get(system) == FINISHED:
                walker.frames.append(
                    Frame(
                        positions=atoms.positions.astype(np.float32),
                        cell=batch.cell(system),
                        step=walker.step,
                        temperature=walker.temperature(dynamics, walker.step),
                        kinetic_temperature=float(kinetic[system]),
                        pressure=walker.pressure(dynamics, walker.step),
                        force_disagreement=float(batch.state.disagreement[system]),
                        candidate=is_candidate,
                    )
                )
            if walker.step >= walker.n_steps(self.settings) and not is_candidate:
                leaving[system] = FINISHED
        return leaving

    def _changed(self, batch: Batch, geometries: dict[int, Atoms]) -> set[int]:
        """Return the systems that look other than their last frame; all, if that is not asked for."""
        least = self.settings.dynamics.change
        if least is None or not geometries:
            return set(geometries)
        assert self.fingerprint is not None
        found = self.fingerprint(list(geometries.values()))
        changed = set()
        for system, fingerprint in zip(geometries, found, strict=True):
            walker = batch.walkers[system]
            last = walker.fingerprint
            if last is None or np.linalg.norm(fingerprint - last) >= least:
                walker.fingerprint = fingerprint
                changed.add(system)
        return changed

    def _trial_moves(self, batch: Batch) -> None:
        """Make the trial moves that are due, those too for which there was no memory in a larger batch."""
        settings = self.settings.monte_carlo
        if settings is None or batch.walkers[0].is_relaxation:
            return
        due = [
            system
            for system, walker in enumerate(batch.walkers)
            if walker.step % settings.every == 0 and walker.moved_at != walker.step
        ]
        if due:
            trial_moves(batch, due, settings)

    # --- checkpoints ---

    def _is_time_to_save(self) -> bool:
        return self.checkpoints is not None and (
            self.clock() - self.saved_at >= self.settings.checkpoint or self.checkpoints.ends_soon()
        )

    def _save(self) -> None:
        """Leave a checkpoint; hand the unit on if the worker ends soon."""
        assert self.checkpoints is not None
        order = [self.walkers.index(walker) for walker in (*self.flying, *self.waiting)]
        self.checkpoints.save(pack(self.walkers, order, len(self.flying), self.room.capacity))
        self.saved_at = self.clock()
        self.checkpoints.yield_if_ending()

    def _take_up(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        data = self.checkpoints.read_newest() if self.checkpoints else None
        if data is None:
            return
        order, n_flying, self.room.capacity = unpack(data, self.walkers)
        self.flying = [self.walkers[index] for index in order[:n_flying]]
        self.waiting = [self.walkers[index] for index in order[n_flying:]]
