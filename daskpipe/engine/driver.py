"""How a stage comes to its end: its units become Dask tasks, are driven through the window, and leave receipts."""

from __future__ import annotations

import math
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import dask

from daskpipe.core.deadline import YIELD_SECONDS, seconds_left, stale_deadlines
from daskpipe.core.errors import DaskpipeError, DiskError, Suspect, Yielded
from daskpipe.core.events import (
    Emit,
    Event,
    Notice,
    StageFinished,
    StageStarted,
    UnitCommitted,
    UnitLost,
    UnitSuperseded,
)
from daskpipe.core.shared_disk import call_patiently, explained, is_transient
from daskpipe.engine.attempts import Mark, Silence, marked, marks, note
from daskpipe.engine.checkpoints import Checkpoints
from daskpipe.engine.commit import commit
from daskpipe.engine.dask_pool import DaskPool, retire
from daskpipe.engine.dispatcher import Call, Task, WorkerLost, drive
from daskpipe.engine.isolation import Apart, Bounds, compute_apart
from daskpipe.engine.manifests import units_of
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.settings import Faults
from daskpipe.engine.units import Payload, Receipt, Unit

SHARE_OF_MEMORY = 0.95
"""Of a worker's limit, from which on its nanny ends it."""

Lazy = Callable[[], Any]
"""Makes the lazy payload of a unit, or of one of its inputs; called only where it is computed."""


class Planned(NamedTuple):
    """A unit and the function that makes its payload.

    Parameters
    ----------
    unit, lazy
        The unit, and what makes its lazy payload.
    one
        Functions that make the lazy payload of one input each; empty if the unit cannot be taken apart.
    names
        Returns the names of the inputs, on a worker.
    checkpoint
        Seconds between the unit's checkpoints; infinite if it has none.
    """

    unit: Unit
    lazy: Lazy
    one: Sequence[Lazy] = ()
    names: Callable[[], list[str]] = list
    checkpoint: float = math.inf


@dataclass
class Driver:
    """Drive the stages of a run to their end, one after the other, in one run directory and on one pool of workers."""

    directory: RunDirectory
    pool: DaskPool
    emit: Emit
    faults: Faults
    go_on: Callable[[], None] = lambda: None
    """Raises what speaks against going on, such as another driver; called every second."""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    _longest: float = 0.0
    """Seconds of the longest unit of the present stage."""
    _lost: dict[str, float] = field(default_factory=dict)
    """Seconds that processes which are gone worked on units, by key."""
    _hung: dict[Path, str] = field(default_factory=dict)
    """What was said of marks whose processes were ended because they hung."""
    _silences: dict[str, dict[Path, Silence]] = field(default_factory=dict)
    """Of the marks of each unit that has been under way for a while, by its key."""

    def drive(self, stage: str, plan: Sequence[Planned | tuple[Unit, Lazy]], what: str) -> list[Receipt]:
        """Bring all units of a stage to be committed; return their receipts in order."""
        started = time.perf_counter()
        planned = [Planned(*item) for item in plan]
        receipts = [self.directory.receipt(item.unit) for item in planned]
        missing = [item for item, receipt in zip(planned, receipts, strict=True) if receipt is None]
        if len(missing) == len(planned):
            self._tell_superseded(stage)
        self.emit(
            StageStarted(
                stage=stage,
                n_units=len(planned),
                n_committed=len(planned) - len(missing),
                n_inputs=sum(item.unit.n_inputs for item in planned),
                what=what,
            )
        )
        self._longest = 0.0
        drive([self._task(item) for item in missing], self.pool, self, self._heard, attempts=self.faults.attempts)
        found = []
        for item, before in zip(planned, receipts, strict=True):
            receipt = before or self.directory.wait_for_receipt(item.unit, self.check)
            if receipt is None:
                raise DaskpipeError(
                    f"{item.unit} gave a receipt and is not on disk; is {self.directory.root} shared by all workers?"
                )
            if receipt.n_rejected:
                rejections = self.directory.rejected(receipt.stage, receipt.key)
                call_patiently(partial(self.directory.quarantine, rejections), self.go_on)
            found.append(receipt)
        self._finished(stage, found, len(missing), time.perf_counter() - started)
        return found

    def _heard(self, event: Event) -> None:
        if isinstance(event, UnitCommitted):
            self._longest = max(self._longest, event.seconds)
            self._silences.pop(event.key, None)
        if isinstance(event, UnitLost):
            event = replace(event, seconds=round(event.seconds + self._lost.pop(event.key, 0.0), 3))
        self.emit(event)

    def _task(self, item: Planned) -> Task:
        root, unit, bounds = self.directory.root, item.unit, self.faults

        def work() -> Call:
            return _committed(root, unit, partial(_compute, item.lazy()), needed=self._seconds_needed(item))

        def one_by_one() -> Call:
            apart = Apart(names=item.names, one=[partial(_compute, lazy()) for lazy in item.one])
            take_apart = partial(_compute_apart, root, unit, apart, bounds.hang, bounds.attempts)
            return _committed(root, unit, take_apart, needed=self._seconds_needed(item))

        return Task(unit=unit, work=work, one_by_one=one_by_one if item.one else None)

    def _seconds_needed(self, item: Planned) -> float:
        """Return the seconds that a worker must have left to start a unit: to its next checkpoint, or to its end."""
        return min(self._longest, item.checkpoint)

    # --- what the window asks -------------------------------------------------------------------------

    def reached(self, unit: Unit) -> int:
        """Tell how far a unit has come: the time of its newest checkpoint, ns."""
        return call_patiently(Checkpoints(root=self.directory.root, unit=unit).reached, self.go_on)

    def evidence(self, unit: Unit, lost: WorkerLost) -> str:
        """Say what speaks for the process having died under this unit; empty if nothing does."""
        said = ""
        for mark in call_patiently(partial(marks, self.directory.root, unit), self.go_on):
            if mark.worker != lost.worker:
                continue
            if hung := self._hung.pop(mark.path, ""):
                said = hung
            elif self.pool.died(mark):
                said = mark.note or f"the process that computed it at {mark.worker} died"
            seconds = call_patiently(partial(_remove_mark, mark), self.go_on)
            self._lost[unit.key] = self._lost.get(unit.key, 0.0) + seconds
        return said

    def end_hanging(self, unit: Unit) -> None:
        """End the process that computes a unit if it has given no sign of life for too long."""
        try:
            reached = Checkpoints(root=self.directory.root, unit=unit).reached()
            signs = {mark: (mark.touched, reached) for mark in marks(self.directory.root, unit)}
        except OSError as error:
            if is_transient(error):  # nothing can be seen now
                return
            raise
        limit, before = self.faults.hang, self._silences.get(unit.key, {})
        silences = {mark.path: before.get(mark.path, Silence()) for mark in signs}
        self._silences[unit.key] = silences
        for mark, signs_of_life in signs.items():
            silent = silences[mark.path].measure(signs_of_life)
            if silent > limit and mark.path not in self._hung:
                self._hung[mark.path] = f"it gave no sign of life for {silent:.0f} s (faults.hang is {limit:g} s)"
                self.pool.end(mark)

    def check(self) -> None:
        """Raise what speaks against going on: another driver, a full disk."""
        self.go_on()
        check_disk(self.directory.root, self.faults.disk_bytes)

    def _tell_superseded(self, stage: str) -> None:
        """Record that the units of a stage of which none is planned count no longer.

        An earlier version of the stage made them: the config of a run directory does not change. They are kept, for
        they may have cost hours, and that version of daskpipe would go on with them.
        """
        for _, manifest in units_of(self.directory, stage):
            self.emit(UnitSuperseded(stage=stage, key=manifest.unit.key))

    def _finished(self, stage: str, receipts: list[Receipt], n_computed: int, seconds: float) -> None:
        row = summarise(receipts, n_computed, seconds)
        self.stages[stage] = row
        self.emit(
            StageFinished(
                stage=stage, seconds=seconds, n_out=row["out"], n_rejected=row["rejected"], counts=row["counts"]
            )
        )


def tell_stale_deadlines(emit: Emit) -> None:
    """Tell which variables of the environment are ignored because they are left over from a job that has ended."""
    for name, end in stale_deadlines().items():
        ended = time.strftime("%Y-%m-%d %H:%M", time.localtime(end))
        emit(Notice(message=f"{name} is ignored: the job that it was set for ended at {ended}. Type: unset {name}"))


def _remove_mark(mark: Mark) -> float:
    """Remove the mark of a process that is gone; return the seconds that it was at work, until now."""
    with suppress(FileNotFoundError):
        os.utime(mark.path)  # now, by the clock of the file system
    seconds = mark.seconds_at_work()
    mark.path.unlink(missing_ok=True)
    return seconds


def check_disk(root: Path, reserve: int) -> None:
    """See that a run directory's disk has room and inodes left.

    Raises
    ------
    DiskError
        If there are less than `reserve` bytes, or no inodes.
    """
    try:
        disk = os.statvfs(root)
    except OSError as error:
        if is_transient(error):  # a disk that does not answer is not full
            return
        raise
    free = disk.f_bavail * disk.f_frsize
    if free < reserve:
        raise DiskError(
            f"{root} has {free / 1e9:.2f} GB left, less than faults.disk_reserve={reserve / 1e9:g}GB. "
            f"Make room, then: daskpipe resume {quote(str(root))}"
        )
    if disk.f_files and not disk.f_favail:
        raise DiskError(f"{root} has no inodes left. Remove files, then: daskpipe resume {quote(str(root))}")


def _committed(root: Path, unit: Unit, compute: Callable[..., Payload], *, needed: float) -> Call:
    """Return one Dask task, named after its room, that computes a payload where it runs and returns the receipt.

    The scheduler sees one task a unit: no intermediate data moves between workers or stays on one, and there is
    nothing that fusion could take the unit's resources from.
    """
    name = f"{unit.stage}-{unit.key}"
    return Call(name, partial(_commit, root, unit, compute, needed), partial(RunDirectory(root).receipt, unit))


def _compute(lazy: Any, **_: Any) -> Payload:
    """Compute a lazy payload here; a bag's partition is a list of one."""
    (payload,) = dask.compute(lazy, scheduler="synchronous")
    if isinstance(payload, list):
        (payload,) = payload
    return payload


def _compute_apart(root: Path, unit: Unit, apart: Apart, hang: float, attempts: int, *, mark: Path) -> Payload:
    """Compute a unit input by input; each may hold what the nanny lets this worker hold, which is idle meanwhile."""
    from distributed import get_worker

    memory = int(SHARE_OF_MEMORY * (get_worker().memory_manager.memory_limit or 0))
    return compute_apart(root, unit, apart, Bounds(hang=hang, memory=memory, attempts=attempts), mark)


def _commit(root: Path, unit: Unit, compute: Callable[..., Payload], needed: float) -> Receipt:
    """Compute and commit the payload of a partition, if the worker lives long enough.

    Whatever the unit reads or writes: a disk that is full or does not answer is no fault of the unit.
    """
    with explained(root, permissions=False):
        return _commit_marked(root, unit, compute, needed)


def _commit_marked(root: Path, unit: Unit, compute: Callable[..., Payload], needed: float) -> Receipt:
    from distributed import get_worker

    if seconds_left() < YIELD_SECONDS + needed:
        retire()
        raise Yielded(f"the worker ends in {max(0.0, seconds_left()):.0f} s, and the unit may need {needed:.0f} s")
    worker = get_worker()
    with marked(root, unit, worker=worker.address, nanny=worker.nanny or "") as mark:
        started = time.perf_counter()
        try:
            payload = compute(mark=mark)
            return commit(root, unit, payload, seconds=time.perf_counter() - started)
        except DaskpipeError as error:
            error.seconds = time.perf_counter() - started
            if isinstance(error, Yielded):
                retire()
            raise
        except MemoryError as error:
            suspect = Suspect(f"memory ran out: {error}")
            suspect.seconds = time.perf_counter() - started
            raise suspect from error
        except RuntimeError as error:
            if "CUDA" not in str(error):
                raise
            # A device that failed once fails everything that this process asks of it.
            traceback.print_exc()
            note(mark, f"{type(error).__name__}: {error}")
            os._exit(1)


def batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Cut a sequence into stretches of `size`."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def summarise(receipts: Sequence[Receipt], n_computed: int, seconds: float) -> dict[str, Any]:
    """Return what a stage made, as JSON types: sums over its units."""
    counts, tallies = (
        dict(sum((Counter(getattr(receipt, name)) for receipt in receipts), Counter()))
        for name in ("counts", "tallies")
    )
    return {
        "units": len(receipts),
        "computed": n_computed,
        "inputs": sum(receipt.n_inputs for receipt in receipts),
        "out": sum(receipt.n_out for receipt in receipts),
        "rejected": sum(receipt.n_rejected for receipt in receipts),
        "seconds": round(seconds, 2),
        "counts": counts,
        "tallies": tallies,
    }
