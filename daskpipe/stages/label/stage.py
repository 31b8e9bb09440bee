"""Wire a teacher into a Dask bag: each partition of picked frames becomes one payload of labelled frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from daskpipe.core.errors import Rejection
from daskpipe.core.structures import from_atoms, spin_multiplicity, structure_id, to_atoms
from daskpipe.engine.rows import UnitRows, dataset_to_arrays, read_rows
from daskpipe.engine.units import Payload
from daskpipe.stages.label.checks.limits import find_label_fault
from daskpipe.stages.label.settings import LabelChecks

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms
    from dask.bag import Bag

    from daskpipe.potentials import Potential
    from daskpipe.stages.label.cache import LabelCache

VERSION = 2


def label_frames(
    frames: Bag, build: Callable[[], Potential], method: str, checks: LabelChecks, cache: LabelCache | None = None
) -> Bag:
    """Label frames lazily.

    Parameters
    ----------
    frames
        Bag of `ase.Atoms`; a partition is a batch.
    build
        Builds the teacher on the worker, or returns the one that its process has built before.
    method
        Name of the teacher, stored as ``label_method``.
    checks
        Limits that a label must satisfy.
    cache
        Where results are kept and looked for; ``None`` for none.

    Returns
    -------
    dask.bag.Bag
        One `daskpipe.engine.units.Payload` a partition.
    """
    return frames.map_partitions(label_partition, build, method, checks, cache)


def label_partition(
    frames: list[Atoms],
    build: Callable[[], Potential],
    method: str,
    checks: LabelChecks,
    cache: LabelCache | None = None,
) -> list[Payload]:
    """Label one partition of frames, in their order."""
    from ase.calculators.singlepoint import SinglePointCalculator

    from daskpipe.potentials import Failure
    from daskpipe.stages.label.cache import evaluate_cached

    labelled, rejected = [], []
    potential = build()
    for atoms, label in zip(frames, evaluate_cached(potential, frames, cache), strict=True):
        if isinstance(label, Failure):
            rejected.append(_reject_frame(atoms, label.reason, label.evidence))
        elif fault := find_label_fault(label.energy, label.forces, label.stress, bool(atoms.pbc.all()), checks):
            rejected.append(_reject_frame(atoms, *fault))
        else:
            frame = atoms.copy()
            frame.info |= {"label_method": method, "label_status": "ok"}
            if potential.knows_charge:
                frame.info["spin_multiplicity"] = spin_multiplicity(atoms)  # what the label was computed for
            names = ("energy", "forces", "stress", "magmoms")
            results = {name: value for name in names if (value := getattr(label, name)) is not None}
            frame.calc = SinglePointCalculator(frame, **results)
            labelled.append(frame)
    arrays = dataset_to_arrays(from_atoms(labelled))
    return [Payload(arrays=arrays, n_out=len(labelled), rejected=rejected)]


def load_frames(root: Path, pieces: list[UnitRows], picks: UnitRows | None) -> list[Atoms]:
    """Read frames from the run directory; picked ones with their features, stratum and reason.

    Parameters
    ----------
    root
        Run directory.
    pieces
        Rows of the units of frames, in the order of the picks.
    picks
        Rows of the unit that selection has committed, one for each frame; ``None`` if they were not picked.
    """
    from daskpipe.engine.run_directory import RunDirectory

    ds = read_rows(root, pieces)
    if picks is None:
        return [to_atoms(ds, row) for row in range(ds.sizes["structure"])]
    columns = RunDirectory(root).load_arrays(picks.stage, picks.key, ["features", "cluster", "selection_reason"])
    frames = []
    for index, row in enumerate(picks.rows):
        atoms = to_atoms(ds, index)
        atoms.info["features"] = columns["features"][row]
        atoms.info["cluster"] = int(columns["cluster"][row])
        atoms.info["selection_reason"] = str(columns["selection_reason"][row])
        frames.append(atoms)
    return frames


def name_frames(root: Path, pieces: list[UnitRows]) -> list[str]:
    """Return the names of the frames of a partition in the quarantine: their ids in hex."""
    return [structure.hex() for structure in read_rows(root, pieces)["structure_id"].values.tolist()]


def _reject_frame(atoms: Atoms, reason: str, evidence: str) -> Rejection:
    return Rejection(stage="label", structure=structure_id(atoms).hex(), reason=reason, evidence=evidence)
