"""Label isolated atoms, whose energies are the zero that binding energies are counted from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload
from daskpipe.stages.label.cache import evaluate_cached
from daskpipe.stages.label.checking import TeacherCall

if TYPE_CHECKING:
    from ase import Atoms

STAGE = "label-atoms"
"""Name of the stage."""

VERSION = 1


def label_isolated_atoms(atoms: Sequence[Atoms], teacher: TeacherCall) -> Payload:
    """Label isolated atoms.

    Parameters
    ----------
    atoms
        One atom each.
    teacher
        The teacher.

    Returns
    -------
    Payload
        ``symbol``, ``energy`` (eV; NaN where the teacher gives none) and ``evidence`` (why not), one row an atom.
    """
    from daskpipe.potentials import Failure

    found = evaluate_cached(teacher.build(), atoms, teacher.cache)
    arrays = {
        "symbol": np.array([item.get_chemical_formula() for item in atoms]),
        "energy": np.array([np.nan if isinstance(each, Failure) else each.energy for each in found]),
        "evidence": np.array([each.evidence if isinstance(each, Failure) else "" for each in found]),
    }
    return Payload(arrays=arrays, n_out=len(atoms))


def read_energies(root: Path, keys: Sequence[str]) -> tuple[Mapping[str, float], Mapping[str, str]]:
    """Return the energies of isolated atoms by symbol, eV, and why others have none, of some units."""
    energies, missing = {}, {}
    for key in keys:
        arrays = RunDirectory(root).load_arrays(STAGE, key, ["symbol", "energy", "evidence"])
        for symbol, energy, evidence in zip(*(arrays[name].tolist() for name in arrays), strict=True):
            if np.isfinite(energy):
                energies[symbol] = energy
            else:
                missing[symbol] = evidence
    return dict(sorted(energies.items())), missing
