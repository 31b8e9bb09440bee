"""Run the stages of a run: turn units into Dask tasks, dispatch them, watch over them, and collect their receipts."""

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

from daskpipe.core.deadline import stale_deadlines, yield_if_ending
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
from daskpipe.core.notices import deliver_notices
from daskpipe.core.shared_disk import call_patiently, explain_disk_errors, is_transient
from daskpipe.engine.attempts import Mark, Silence, mark_attempt, read_marks, write_note
from daskpipe.engine.checkpoints import Checkpoints
from daskpipe.engine.commit import commit
from daskpipe.engine.dask_pool import NOTICES, DaskPool, retire_worker
from daskpipe.engine.dispatcher import UnitCall, UnitTask, WorkerLost, dispatch_tasks
from daskpipe.engine.isolation import InputLimits, IsolatedInputs, compute_isolated
from daskpipe.engine.manifests import read_units
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.settings import Faults
from daskpipe.engine.units import Payload, Receipt, Unit

SHARE_OF_MEMORY = 0.95
"""Share of the memory limit of a worker at which its nanny ends it."""

LazyPayload = Callable[[], Any]
"""A function that returns the lazy payload of a unit, or of one of its inputs; called when the unit is submitted."""


class PlannedUnit(NamedTuple):
    """Hold a unit and the functions that make its payload.

    Parameters
    ----------
    unit, make_lazy
        The unit, and the function that makes its lazy payload.
    make_lazy_inputs
        Functions that make the lazy payload of one input each; empty if the unit has no separate inputs.
    input_names
        Returns the names of the inputs; called on a worker.
    checkpoint_seconds
        Seconds between the checkpoints of the unit; infinite if it has none.
    """

    unit: Unit
    make_lazy: LazyPayload
    make_lazy_inputs: Sequence[LazyPayload] = ()
    input_names: Callable[[], list[str]] = list
    checkpoint_seconds: float = math.inf


@dataclass
class Driver:
    """Run the stages of a run, one after the other, in one run directory and on one pool of workers.

    Parameters
    ----------
    directory, pool
        Where units are committed, and where they run.
    emit
        Called with each event.
    faults
        Limits of the faults that the run tolerates.
    """

    directory: RunDirectory
    pool: DaskPool
    emit: Emit
    faults: Faults
    check_stop: Callable[[], None] = lambda: None
    """Raises the error that must stop the run, such as another driver; called every second."""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    _longest: float = 0.0
    """Seconds of the longest unit of the current stage."""
    _lost: dict[str, float] = field(default_factory=dict)
    """Seconds that processes which are gone worked on each unit, by key."""
    _hung: dict[Path, str] = field(default_factory=dict)
    """Evidence against the processes that were ended because they hung, by the file of their mark."""
    _silences: dict[str, dict[Path, Silence]] = field(default_factory=dict)
    """How long the marks of each unit have been silent, by key and file."""

    def run_stage(self, stage: str, plan: Sequence[PlannedUnit | tuple[Unit, LazyPayload]], what: str) -> list[Receipt]:
        """Run all units of a stage that are not committed.

        Parameters
        ----------
        stage
            Name of the stage.
        plan
            All of its units, in order.
        what
            Name of its inputs, in the plural, for the progress bar.

        Returns
        -------
        list of Receipt
            Those of all units, in order.

        Raises
        ------
        DaskpipeError
            If a unit fails for good, or the run must stop.
        """
        started = time.perf_counter()
        planned = [PlannedUnit(*item) for item in plan]
        receipts = [self.directory.read_receipt(item.unit) for item in planned]
        missing = [item for item, receipt in zip(planned, receipts, strict=True) if receipt is None]
        if len(missing) == len(planned):
            self._report_superseded(stage)
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
        tasks = [self._make_task(item) for item in missing]
        dispatch_tasks(tasks, self.pool, self, self._handle_event, attempts=self.faults.attempts)
        committed = []
        for item, before in zip(planned, receipts, strict=True):
            receipt = before or self.directory.wait_for_receipt(item.unit, self.check_run)
            if receipt is None:
                raise DaskpipeError(
                    f"{item.unit} gave a receipt and is not on disk; is {self.directory.root} shared by all workers?"
                )
            if receipt.n_rejected:
                rejections = self.directory.read_rejections(receipt.stage, receipt.key)
                call_patiently(partial(self.directory.write_quarantine, rejections), self.check_stop)
            committed.append(receipt)
        self._finish_stage(stage, committed, len(missing), time.perf_counter() - started)
        return committed

    def _handle_event(self, event: Event) -> None:
        """Pass an event of the dispatcher on, after adding what only the driver knows."""
        if isinstance(event, UnitCommitted):
            self._longest = max(self._longest, event.seconds)
            self._silences.pop(event.key, None)
        if isinstance(event, UnitLost):
            event = replace(event, seconds=round(event.seconds + self._lost.pop(event.key, 0.0), 3))
        self.emit(event)

    def _make_task(self, item: PlannedUnit) -> UnitTask:
        root, unit, faults = self.directory.root, item.unit, self.faults

        def make_call() -> UnitCall:
            compute = partial(_compute_lazy, item.make_lazy())
            return _make_unit_call(root, unit, compute, needed=self._seconds_needed(item))

        def make_isolated_call() -> UnitCall:
            compute_each = [partial(_compute_lazy, make_lazy()) for make_lazy in item.make_lazy_inputs]
            inputs = IsolatedInputs(names=item.input_names, compute=compute_each)
            compute = partial(_compute_on_worker, root, unit, inputs, faults.hang, faults.attempts)
            return _make_unit_call(root, unit, compute, needed=self._seconds_needed(item))

        isolated = make_isolated_call if item.make_lazy_inputs else None
        return UnitTask(unit=unit, make_call=make_call, make_isolated_call=isolated)

    def _seconds_needed(self, item: PlannedUnit) -> float:
        """Return the seconds that a worker must have left to start a unit: to its next checkpoint, or to its end."""
        return min(self._longest, item.checkpoint_seconds)

    # --- questions of the dispatcher ----------------------------------------------------------------------

    def read_progress(self, unit: Unit) -> int:
        """Return the time of the newest checkpoint of a unit, ns; 0 if there is none."""
        return call_patiently(Checkpoints(root=self.directory.root, unit=unit).newest_time, self.check_stop)

    def find_evidence(self, unit: Unit, lost: WorkerLost) -> str:
        """Return the evidence that the process died because of this unit; empty if there is none."""
        evidence = ""
        for mark in call_patiently(partial(read_marks, self.directory.root, unit), self.check_stop):
            if mark.worker != lost.worker:
                continue
            if hung := self._hung.pop(mark.path, ""):
                evidence = hung
            elif self.pool.has_died(mark):
                evidence = mark.note or f"the process that computed it at {mark.worker} died"
            seconds = call_patiently(partial(_remove_mark, mark), self.check_stop)
            self._lost[unit.key] = self._lost.get(unit.key, 0.0) + seconds
        return evidence

    def end_if_hanging(self, unit: Unit) -> None:
        """End the process that computes a unit if it has given no sign of life for too long."""
        try:
            saved_at = Checkpoints(root=self.directory.root, unit=unit).newest_time()
            signs = {mark: (mark.touched_ns, saved_at) for mark in read_marks(self.directory.root, unit)}
        except OSError as error:
            if is_transient(error):  # the next check will tell
                return
            raise
        limit, before = self.faults.hang, self._silences.get(unit.key, {})
        silences = {mark.path: before.get(mark.path, Silence()) for mark in signs}
        self._silences[unit.key] = silences
        for mark, signs_of_life in signs.items():
            silent = silences[mark.path].measure_seconds(signs_of_life)
            if silent > limit and mark.path not in self._hung:
                self._hung[mark.path] = f"it gave no sign of life for {silent:.0f} s (faults.hang is {limit:g} s)"
                self.pool.end_process(mark)

    def check_run(self) -> None:
        """Raise the error that must stop the run, if any: another driver, a full disk. Pass on what workers tell."""
        self._emit_notices()
        self.check_stop()
        check_disk(self.directory.root, self.faults.disk_bytes)

    def _emit_notices(self) -> None:
        for message in self.pool.take_notices():
            self.emit(Notice(message=message))

    def _report_superseded(self, stage: str) -> None:
        """Emit an event for each committed unit of a stage whose planned units all have other keys.

        An earlier version of the stage made these units, since the config of a run directory does not change. They are
        kept: they may have cost hours, and that version of daskpipe could continue with them.
        """
        for _, manifest in read_units(self.directory, stage):
            self.emit(UnitSuperseded(stage=stage, key=manifest.unit.key))

    def _finish_stage(self, stage: str, receipts: list[Receipt], n_computed: int, seconds: float) -> None:
        """Keep the summary of a stage, and emit its event."""
        self._emit_notices()
        row = summarise_stage(receipts, n_computed, seconds)
        self.stages[stage] = row
        self.emit(
            StageFinished(
                stage=stage, seconds=seconds, n_out=row["out"], n_rejected=row["rejected"], counts=row["counts"]
            )
        )


def report_stale_deadlines(emit: Emit) -> None:
    """Emit a notice for each environment variable that is ignored because the job that set it has ended."""
    for name, end in stale_deadlines().items():
        ended = time.strftime("%Y-%m-%d %H:%M", time.localtime(end))
        emit(Notice(message=f"{name} is ignored: the job that it was set for ended at {ended}. Type: unset {name}"))


def _remove_mark(mark: Mark) -> float:
    """Remove the mark of a process that is gone; return the seconds from the start of its attempt until now."""
    with suppress(FileNotFoundError):
        os.utime(mark.path)  # now, by the clock of the file system
    seconds = mark.seconds_at_work()
    mark.path.unlink(missing_ok=True)
    return seconds


def check_disk(root: Path, reserve: int) -> None:
    """Check that the disk of a run directory has room and inodes left.

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


def _make_unit_call(root: Path, unit: Unit, compute: Callable[..., Payload], *, needed: float) -> UnitCall:
    """Return one Dask task, named after its stage, that computes a payload where it runs and returns the receipt.

    The scheduler sees one task a unit: no intermediate data moves between workers or stays on one, and there is no
    graph whose fusion could lose the resources of the unit.
    """
    commit_unit = partial(_compute_and_commit, root, unit, compute, needed)
    return UnitCall(f"{unit.stage}-{unit.key}", commit_unit, partial(RunDirectory(root).read_receipt, unit))


def _compute_lazy(lazy: Any, **_: Any) -> Payload:
    """Compute a lazy payload in this process; the partition of a bag is a list of one payload."""
    (payload,) = dask.compute(lazy, scheduler="synchronous")
    if isinstance(payload, list):
        (payload,) = payload
    return payload


def _compute_on_worker(
    root: Path, unit: Unit, inputs: IsolatedInputs, hang: float, attempts: int, *, mark: Path
) -> Payload:
    """Compute a unit in isolation; each input may use the memory of this worker, which is idle meanwhile."""
    from distributed import get_worker

    memory = int(SHARE_OF_MEMORY * (get_worker().memory_manager.memory_limit or 0))
    limits = InputLimits(hang=hang, memory=memory, attempts=attempts)
    return compute_isolated(root, unit, inputs, limits, mark)


def _compute_and_commit(root: Path, unit: Unit, compute: Callable[..., Payload], needed: float) -> Receipt:
    """Compute and commit a unit, if the worker lives long enough.

    A disk that is full or does not answer is no fault of the unit, whatever the unit reads or writes.
    """
    with explain_disk_errors(root, permissions=False):
        return _commit_marked(root, unit, compute, needed)


def _commit_marked(root: Path, unit: Unit, compute: Callable[..., Payload], needed: float) -> Receipt:
    from distributed import get_worker

    try:
        yield_if_ending(needed)
    except Yielded:
        retire_worker()
        raise
    worker = get_worker()
    with (
        mark_attempt(root, unit, worker=worker.address, nanny=worker.nanny or "") as mark,
        deliver_notices(partial(worker.log_event, NOTICES)),
    ):
        started = time.perf_counter()
        try:
            payload = compute(mark=mark)
            return commit(root, unit, payload, seconds=time.perf_counter() - started)
        except DaskpipeError as error:
            error.seconds = time.perf_counter() - started
            if isinstance(error, Yielded):
                retire_worker()
            raise
        except MemoryError as error:
            suspect = Suspect(f"memory ran out: {error}")
            suspect.seconds = time.perf_counter() - started
            raise suspect from error
        except RuntimeError as error:
            if "CUDA" not in str(error):
                raise
            # After an error of the device all calls of this process to it fail.
            traceback.print_exc()
            write_note(mark, f"{type(error).__name__}: {error}")
            os._exit(1)


def cut_batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Cut a sequence into batches of `size`; the last one may be shorter.

    Examples
    --------
    >>> cut_batches("abcde", 2)
    ['ab', 'cd', 'e']
    """
    return [items[start : start + size] for start in range(0, len(items), size)]


def summarise_stage(receipts: Sequence[Receipt], n_computed: int, seconds: float) -> dict[str, Any]:
    """Return the sums over the units of a stage, as JSON types."""
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
