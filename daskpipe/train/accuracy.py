"""Measure the errors of a potential on the labels of a dataset, and those of a trivial predictor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.structures import to_atoms
from daskpipe.core.variables import SPLITS
from daskpipe.potentials import Evaluation, Potential, Results, evaluate
from daskpipe.store.reader import read_identity, read_rows

if TYPE_CHECKING:
    from ase import Atoms

BLOCK = 1_024
"""Structures in memory at once."""

MOST = 10_000
"""Most structures of a split that are evaluated: the first ones, which are a sample because datasets are shuffled."""

Errors = dict[str, Any]
"""Errors of a group of structures, see `measure_errors`."""

Case = tuple["Atoms", Evaluation]
"""A labelled structure, and its evaluation by the potential."""


def measure_accuracy(path: Path, potential: Potential, e0s: Mapping[str, float]) -> dict[str, dict[str, Errors]]:
    """Evaluate a potential on the splits of a dataset.

    Parameters
    ----------
    path
        Path of a ``dataset.zarr``.
    potential
        From `daskpipe.potentials.build_potential`.
    e0s
        Energy of an atom by symbol, eV; the mean predictor sums them.

    Returns
    -------
    dict
        Errors by split, then ``all`` or system type, see `measure_errors`, from at most `MOST` structures of a split.
    """
    cases: dict[str, dict[str, list[Case]]] = {split: {"all": []} for split in SPLITS}
    for structures in _iter_blocks(path):
        # A model without charges is measured on ions, too, as if they were neutral.
        given = structures if potential.knows_charge else [_without_charge(atoms) for atoms in structures]
        for atoms, evaluation in zip(structures, evaluate(potential, given), strict=True):
            groups = cases[atoms.info["split"]]
            groups["all"].append((atoms, evaluation))
            groups.setdefault(atoms.info.get("system_type", "unknown"), []).append((atoms, evaluation))
    return {
        split: {name: measure_errors(members, e0s) for name, members in sorted(groups.items())}
        for split, groups in cases.items()
        if groups["all"]
    }


def _without_charge(atoms: Atoms) -> Atoms:
    """Return a copy of a structure without its charge."""
    neutral = atoms.copy()
    neutral.info.pop("charge", None)
    return neutral


def _iter_blocks(path: Path) -> Iterator[list[Atoms]]:
    """Yield the structures of the splits with their labels, one block at a time."""
    n_taken = dict.fromkeys(SPLITS, 0)
    _, n_structures = read_identity(path)
    for start in range(0, n_structures, BLOCK):
        if min(n_taken.values()) >= MOST:
            return
        block = read_rows(path, start, min(start + BLOCK, n_structures))
        chosen = []
        for row, split in enumerate(block["split"].values.tolist()):
            if n_taken[split] < MOST:
                n_taken[split] += 1
                chosen.append(to_atoms(block, row))
        yield chosen


def measure_errors(cases: Sequence[Case], e0s: Mapping[str, float]) -> Errors:
    """Compare evaluations with labels.

    Parameters
    ----------
    cases
        Labelled structures, each with its evaluation.
    e0s
        As for `measure_accuracy`.

    Returns
    -------
    dict
        ``n_structures``, ``n_atoms``; ``failures``, counted by reason; and for ``energy`` (eV per atom), ``forces``
        (eV/Å, all components) and ``stress`` (eV/Å^3; None where no structure has one): ``mae``, ``rmse``,
        ``mean_predictor_mae`` and ``mean_predictor_rmse`` (of energies of single atoms, forces 0, stress 0), and
        ``times_better``, the ratio of the two RMSEs: None where either is 0.
    """
    failures: dict[str, int] = {}
    energy, mean_energy = [], []
    forces, no_forces = [np.zeros(0)], [np.zeros(0)]
    stress, no_stress = [np.zeros(0)], [np.zeros(0)]
    for atoms, evaluation in cases:
        if not isinstance(evaluation, Results):
            failures[evaluation.reason] = failures.get(evaluation.reason, 0) + 1
            continue
        labels = atoms.calc.results
        energy.append((evaluation.energy - labels["energy"]) / len(atoms))
        mean_energy.append((sum(e0s[symbol] for symbol in atoms.symbols) - labels["energy"]) / len(atoms))
        if "forces" in labels:
            forces.append((evaluation.forces - labels["forces"]).ravel())
            no_forces.append(np.ravel(labels["forces"]).astype(float))
        if "stress" in labels:
            stress.append(evaluation.stress - labels["stress"])
            no_stress.append(labels["stress"])
    return {
        "n_structures": len(cases),
        "n_atoms": sum(len(atoms) for atoms, _ in cases),
        "failures": failures,
        "energy": _summarise_errors(np.array(energy), np.array(mean_energy)),
        "forces": _summarise_errors(np.concatenate(forces), np.concatenate(no_forces)),
        "stress": _summarise_errors(np.concatenate(stress), np.concatenate(no_stress)),
    }


def _summarise_errors(residual: np.ndarray, mean_predictor: np.ndarray) -> dict[str, float | None] | None:
    """Return MAE and RMSE of a model and of the mean predictor; None without labels."""
    if not residual.size:
        return None
    rmse, trivial = _root_mean_square(residual), _root_mean_square(mean_predictor)
    return {
        "mae": float(np.abs(residual).mean()),
        "rmse": rmse,
        "mean_predictor_mae": float(np.abs(mean_predictor).mean()),
        "mean_predictor_rmse": trivial,
        "times_better": trivial / rmse if rmse and trivial else None,
    }


def _root_mean_square(values: np.ndarray) -> float:
    """Return the root of the mean of squares."""
    return float(np.sqrt(np.mean(np.square(values))))
