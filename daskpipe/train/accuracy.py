"""How far a potential is from the labels of a dataset, and how far a model that knows nothing would be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.structures import to_atoms
from daskpipe.core.variables import SPLITS
from daskpipe.potentials import Evaluation, Potential, Results, evaluate
from daskpipe.store.reader import content, rows

if TYPE_CHECKING:
    from ase import Atoms

BLOCK = 1_024
"""Structures in memory at once."""

MOST = 10_000
"""Structures of a split that are evaluated at most: the first ones, which are a sample, as datasets are shuffled."""

Errors = dict[str, Any]
Case = tuple["Atoms", Evaluation]


def measure(path: Path, potential: Potential, e0s: Mapping[str, float]) -> dict[str, dict[str, Errors]]:
    """Evaluate a potential on the splits of a dataset.

    Parameters
    ----------
    path
        Of a ``dataset.zarr``.
    potential
        From `daskpipe.potentials.build_potential`.
    e0s
        Energy of an atom by symbol, eV: what the mean predictor takes for the energy.

    Returns
    -------
    dict
        By split, then ``all`` or a system type: see `errors`. At most `MOST` structures of a split count.
    """
    cases: dict[str, dict[str, list[Case]]] = {split: {"all": []} for split in SPLITS}
    for structures in _blocks(path):
        # A model without charges is measured as it is, on ions as well.
        seen = structures if potential.knows_charge else [_without_charge(atoms) for atoms in structures]
        for atoms, found in zip(structures, evaluate(potential, seen), strict=True):
            groups = cases[atoms.info["split"]]
            groups["all"].append((atoms, found))
            groups.setdefault(atoms.info.get("system_type", "unknown"), []).append((atoms, found))
    return {
        split: {name: errors(members, e0s) for name, members in sorted(groups.items())}
        for split, groups in cases.items()
        if groups["all"]
    }


def _without_charge(atoms: Atoms) -> Atoms:
    neutral = atoms.copy()
    neutral.info.pop("charge", None)
    return neutral


def _blocks(path: Path) -> Iterator[list[Atoms]]:
    """Yield the structures of the splits with their labels, a block at a time."""
    seen = dict.fromkeys(SPLITS, 0)
    _, n_structures = content(path)
    for start in range(0, n_structures, BLOCK):
        if min(seen.values()) >= MOST:
            return
        block = rows(path, start, min(start + BLOCK, n_structures))
        chosen = []
        for row, split in enumerate(block["split"].values.tolist()):
            if seen[split] < MOST:
                seen[split] += 1
                chosen.append(to_atoms(block, row))
        yield chosen


def errors(cases: Sequence[Case], e0s: Mapping[str, float]) -> Errors:
    """Compare evaluations with labels.

    Parameters
    ----------
    cases
        Labelled structures, and what the potential says about each.
    e0s
        As for `measure`.

    Returns
    -------
    dict
        ``n_structures``, ``n_atoms``; ``failures``, counted by reason; and for ``energy`` (eV an atom), ``forces``
        (eV/Å, all components) and ``stress`` (eV/Å^3; null where no structure has one): ``mae``, ``rmse``, those of
        the mean predictor (energies of single atoms, no forces, no stress), and how many ``times_better`` the RMSE is:
        null where the labels are what the mean predictor says (all forces 0), or the model makes no error.
    """
    failures: dict[str, int] = {}
    energy, mean_energy = [], []
    forces, no_forces = [np.zeros(0)], [np.zeros(0)]
    stress, no_stress = [np.zeros(0)], [np.zeros(0)]
    for atoms, found in cases:
        if not isinstance(found, Results):
            failures[found.reason] = failures.get(found.reason, 0) + 1
            continue
        labels = atoms.calc.results
        energy.append((found.energy - labels["energy"]) / len(atoms))
        mean_energy.append((sum(e0s[symbol] for symbol in atoms.symbols) - labels["energy"]) / len(atoms))
        if "forces" in labels:
            forces.append((found.forces - labels["forces"]).ravel())
            no_forces.append(np.ravel(labels["forces"]).astype(float))
        if "stress" in labels:
            stress.append(found.stress - labels["stress"])
            no_stress.append(labels["stress"])
    return {
        "n_structures": len(cases),
        "n_atoms": sum(len(atoms) for atoms, _ in cases),
        "failures": failures,
        "energy": _compared(np.array(energy), np.array(mean_energy)),
        "forces": _compared(np.concatenate(forces), np.concatenate(no_forces)),
        "stress": _compared(np.concatenate(stress), np.concatenate(no_stress)),
    }


def _compared(residual: np.ndarray, mean_predictor: np.ndarray) -> dict[str, float | None] | None:
    if not residual.size:
        return None
    rmse, trivial = _rms(residual), _rms(mean_predictor)
    return {
        "mae": float(np.abs(residual).mean()),
        "rmse": rmse,
        "mean_predictor_mae": float(np.abs(mean_predictor).mean()),
        "mean_predictor_rmse": trivial,
        "times_better": trivial / rmse if rmse and trivial else None,
    }


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
