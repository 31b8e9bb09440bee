"""Judge all labels of a run together: outliers among them, and disagreement with a second teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from daskpipe.core.formulas import count_elements
from daskpipe.engine.rows import read_unit
from daskpipe.engine.units import Payload
from daskpipe.stages.label.checking import STAGE as CHECK
from daskpipe.stages.label.checks import outliers, second_teacher
from daskpipe.stages.label.settings import LabelChecks

STAGE = "label-judge"
"""Name of the stage."""

VERSION = 1

COLUMNS = ("energy_outlier_check", "force_outlier_check", "second_teacher_check")
"""Variables that it gives, besides ``label_status``."""

STATUS = ("energy_outlier", "force_outlier", "second_teacher")
"""``label_status`` of what does not pass each of `COLUMNS`."""

NOT_CHECKED = "not_checked"


def judge_labels(root: Path, keys: Sequence[str], checks: Sequence[str | None], settings: LabelChecks) -> Payload:
    """Judge the labels of some units.

    Memory: some 500 bytes a structure, and 8 for each element.

    Parameters
    ----------
    root
        Run directory.
    keys
        Units of labels that hold any.
    checks
        Unit of the stage ``label-check`` for each of them, or ``None``.
    settings
        What is an outlier.

    Returns
    -------
    Payload
        Those of `COLUMNS` that any structure is checked for, and ``label_status``, words, one row a labelled structure,
        in the order of the units. Isolated atoms and other reference data are not compared with the rest.
    """
    facts = [_read_facts(root, key, check) for key, check in zip(keys, checks, strict=True)]
    columns = {name: np.concatenate([fact[name] for fact in facts]) for name in facts[0]}
    n_atoms, n = columns["n_atoms"], len(columns["n_atoms"])
    _, counts = count_elements(columns["numbers"], n_atoms)
    words = {name: np.full(n, NOT_CHECKED, dtype="U17") for name in COLUMNS}
    compared = np.flatnonzero(~columns["reference"] & (n_atoms > 1))
    second = compared[np.isfinite(columns["energy_check"][compared])]
    enough = len(compared) >= outliers.FEW
    if settings.energy_outliers is not None and enough:
        found = outliers.find_energy_outliers(columns["energy"][compared], counts[compared], settings.energy_outliers)
        words["energy_outlier_check"][compared] = np.where(found, outliers.OUTLIER, outliers.OK)
    if settings.force_outliers is not None and enough:
        found = outliers.find_force_outliers(columns["largest"][compared], settings.force_outliers)
        words["force_outlier_check"][compared] = np.where(found, outliers.OUTLIER, outliers.OK)
    if settings.agreement is not None and len(second) >= outliers.FEW:
        words["second_teacher_check"][second] = second_teacher.judge_agreement(
            columns["energy_check"][second], counts[second], columns["disagreement"][second], settings.agreement
        )
    status = columns["status"].astype("U32")
    for name, word in zip(COLUMNS, STATUS, strict=True):
        bad = ~np.isin(words[name], (outliers.OK, NOT_CHECKED))
        status[bad & (status == "ok")] = word
    made = {name: column for name, column in words.items() if (column != NOT_CHECKED).any()}
    return Payload(arrays={**made, "label_status": status}, n_out=n)


def _read_facts(root: Path, key: str, check: str | None) -> dict[str, np.ndarray]:
    """Return what the labels of a unit are judged by, one row a structure; ``numbers`` have one an atom."""
    ds = read_unit(root, "label", key)
    n = ds.sizes["structure"]
    norms = np.linalg.norm(ds["forces"].values.astype(np.float64), axis=1)
    facts = {
        "energy": ds["energy"].values,
        "n_atoms": ds["n_atoms"].values,
        "numbers": ds["numbers"].values,
        "largest": np.maximum.reduceat(norms, ds["atom_start"].values),
        "reference": ds["reference"].values if "reference" in ds else np.zeros(n, dtype=np.bool_),
        "status": ds["label_status"].values,
        "energy_check": np.full(n, np.nan),
        "disagreement": np.full(n, np.nan),
    }
    if check is not None:
        _add_checks(facts, ds["structure_id"].values, root, check)
    return facts


def _add_checks(facts: dict[str, np.ndarray], ids: np.ndarray, root: Path, check: str) -> None:
    """Put what the unit of checks says of some of the structures into their rows."""
    checked = read_unit(root, CHECK, check)
    row_of = {id_.tobytes(): row for row, id_ in enumerate(ids)}
    facts["status"] = facts["status"].astype("U32")
    ends = np.cumsum(checked["n_atoms"].values)
    for number, id_ in enumerate(checked["structure_id"].values):
        row = row_of[id_.tobytes()]
        facts["status"][row] = checked["label_status"].values[number]
        if "energy_check" in checked and np.isfinite(checked["energy_check"].values[number]):
            atoms = slice(int(ends[number] - checked["n_atoms"].values[number]), int(ends[number]))
            facts["energy_check"][row] = checked["energy_check"].values[number]
            facts["disagreement"][row] = second_teacher.measure_disagreement(
                checked["forces"].values[atoms], checked["forces_check"].values[atoms]
            )
