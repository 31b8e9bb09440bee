"""How a stage comes to its end: its units become Dask tasks, are driven through the window, and leave receipts."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask

from daskpipe.checkpoints import Checkpoints
from daskpipe.config import Config
from daskpipe.errors import DaskpipeError, Yielded
from daskpipe.events import Emit, StageFinished, StageStarted
from daskpipe.placement import DaskPool, retire
from daskpipe.window import Task, drive
from daskpipe.work import Receipt, Tree, Unit, commit

if TYPE_CHECKING:
    from daskpipe.potentials import Identity


@dataclass
class Run:
    """What all stages of a run share, and how each is brought to its end."""

    config: Config
    tree: Tree
    pool: DaskPool
    emit: Emit
    identities: Mapping[str, Identity]
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.seed

    def drive(self, stage: str, plan: Sequence[tuple[Unit, Callable[[], Any]]], what: str) -> list[Receipt]:
        """Bring all units of a stage to be committed; return their receipts in order.

        `plan` pairs each unit with a function that makes its lazy payload; it is called only where needed.
        """
        started = time.perf_counter()
        missing = [(unit, lazy) for unit, lazy in plan if self.tree.receipt(unit) is None]
        self.emit(
            StageStarted(
                stage=stage,
                n_units=len(plan),
                n_committed=len(plan) - len(missing),
                n_inputs=sum(unit.n_inputs for unit, _ in plan),
                what=what,
            )
        )
        tasks = [Task(unit=unit, work=_committed(self.tree.root, unit, lazy())) for unit, lazy in missing]
        if tasks:
            drive(tasks, self.pool, self.emit, reached=self._reached)
        receipts = []
        for unit, _ in plan:
            receipt = self.tree.receipt(unit)
            if receipt is None:
                raise DaskpipeError(
                    f"{unit} gave a receipt and is not on disk; is {self.tree.root} shared by all workers?"
                )
            if receipt.n_rejected:
                self.tree.quarantine(self.tree.rejected(unit.stage, unit.key))
            receipts.append(receipt)
        self._finished(stage, receipts, len(tasks), time.perf_counter() - started)
        return receipts

    def _reached(self, unit: Unit) -> int:
        """Tell how far a unit has come: the time of its newest checkpoint, ns."""
        files = Checkpoints(root=self.tree.root, unit=unit).files()
        return files[0].stat().st_mtime_ns if files else 0

    def _finished(self, stage: str, receipts: list[Receipt], n_computed: int, seconds: float) -> None:
        counts, tallies = (
            dict(sum((Counter(getattr(receipt, name)) for receipt in receipts), Counter()))
            for name in ("counts", "tallies")
        )
        row: dict[str, Any] = {
            "units": len(receipts),
            "computed": n_computed,
            "inputs": sum(receipt.n_inputs for receipt in receipts),
            "out": sum(receipt.n_out for receipt in receipts),
            "rejected": sum(receipt.n_rejected for receipt in receipts),
            "seconds": round(seconds, 2),
            "counts": counts,
            "tallies": tallies,
        }
        self.stages[stage] = row
        self.emit(
            StageFinished(stage=stage, seconds=seconds, n_out=row["out"], n_rejected=row["rejected"], counts=counts)
        )


def _committed(root: Path, unit: Unit, lazy: Any) -> Any:
    """One Dask task, named after its room, that computes a lazy payload where it runs and returns the receipt.

    The scheduler sees one task a unit: no intermediate data moves between workers or stays on one, and there is
    nothing that fusion could take the unit's resources from. The task's name holds the run directory too: on a
    scheduler that others use, or that still holds a unit of the same key, another run's receipt must not be ours.
    """
    compute = partial(dask.compute, lazy, scheduler="synchronous")
    name = f"{unit.stage}-{unit.key}-{hashlib.blake2b(str(root).encode(), digest_size=8).hexdigest()}"
    return dask.delayed(_commit, pure=False)(root, unit, compute, dask_key_name=name)


def _commit(root: Path, unit: Unit, compute: Callable[[], tuple[Any]]) -> Receipt:
    """Compute and commit the payload of a partition; a bag's partition is a list of one."""
    try:
        (payload,) = compute()
    except Yielded:
        retire()
        raise
    if isinstance(payload, list):
        (payload,) = payload
    return commit(root, unit, payload)


def batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Cut a sequence into stretches of `size`."""
    return [items[start : start + size] for start in range(0, len(items), size)]
