"""Judge a dataset: GO or NO-GO, with the outcome of each check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from daskpipe.core.errors import InputError
from daskpipe.core.root_metadata import read_root
from daskpipe.store.quality.check import Check, skip_check
from daskpipe.store.quality.check_table import CHECKS
from daskpipe.store.quality.measuring import measure_structures, read_columns
from daskpipe.store.quality.profiles import apply_profile, list_unfixable, profile_of, soften_failures
from daskpipe.store.quality.settings import Quality
from daskpipe.store.quality.verdict import Outcome, Verdict
from daskpipe.store.reader import open_dataset

COLUMNS = {
    "ids": "Id of each structure, 16 bytes, shape (structure,)",
    "n_structures": "Number of structures, int",
    "n_atoms": "Number of atoms of each structure, shape (structure,)",
    "exempt": "Whether distances, energies and sizes of forces of a structure are not judged, shape (structure,), bool",
    "closest": "Closest pair of atoms, in sums of covalent radii; NaN where not measured, shape (structure,)",
    "loneliest": "Distance of the atom that is farthest from its nearest neighbour, likewise, shape (structure,)",
    "fingerprint": "Numbers that are equal for equal structures, shape (structure, 12)",
    "finite": "Whether cell and positions are finite, shape (structure,), bool",
    "searchable": "Whether neighbours could be searched for, shape (structure,), bool",
    "n_periodic": "Number of periodic axes, shape (structure,)",
    "periodic": "Whether all axes are periodic, shape (structure,), bool",
    "fullness": "Volume of the periodic vectors over the product of their lengths, shape (structure,)",
    "left_handed": "Whether a periodic cell is left-handed, shape (structure,), bool",
    "volume": "Volume per atom, Å^3; NaN unless all axes are periodic, shape (structure,)",
    "energy": "Potential energy, eV, shape (structure,)",
    "counts": "Atoms of each element, shape (structure, element), int32",
    "elements": "Atomic numbers of the columns of counts, shape (element,)",
    "structures_of_element": "Number of structures that contain each element, by symbol, dict",
    "composition": "Number of the composition of each structure, shape (structure,)",
    "state": "Hash of charge, spin and magnetic moments, shape (structure,), int64",
    "system_type": "System type of each structure, words, shape (structure,)",
    "type_number": "Number of the system type of each structure, shape (structure,)",
    "structures_of_type": "Number of structures of each system type, dict",
    "pair_ids": "Ids of pairs of neighbouring frames, shape (pair, 2)",
    "pair_energy": "Difference of their energies, eV, shape (pair,)",
    "pair_work": "Work of the mean forces and stress between them, eV, shape (pair,)",
    "forces_finite": "Whether all forces are finite, shape (structure,), bool",
    "largest_force": "Largest force on an atom, eV/Å; NaN if not finite, shape (structure,)",
    "force_p99": "99th percentile of the forces on atoms, eV/Å, float",
    "net_force": "Length of the sum of the forces, eV/Å per atom, shape (structure,)",
    "zero_forces": "Whether all forces are 0 although no symmetry requires it, shape (structure,), bool",
    "largest_stress": "Largest component of the stress, eV/Å^3; NaN without one, shape (structure,)",
    "labels_ok": "Whether label_status is ok, shape (structure,), bool",
    "differences": "finite_difference_check, words, shape (structure,)",
    "failures": "Structures on which the teacher failed, by reason, dict",
    "requested_elements": "Symbols of the elements that the run asked for, tuple",
    "requested_types": "System types that the run asked for, tuple",
    "feature_ids": "Ids of a sample of structures with features, shape (sampled,)",
    "features": "Their features, shape (sampled, feature)",
    "split": "Index into SPLITS, shape (structure,)",
    "group": "Number of the group that a split must not tear, shape (structure,)",
    "shares": "Share that each split should have, by name, dict",
    "reference": "Whether a structure is reference data, which stays in train, shape (structure,), bool",
    "looked": "Rows of val and test that were compared with training structures, shape (looked,)",
    "leaks": "Whether such a row has a close training structure of its own trajectory, shape (looked,), bool",
    "label_status": "Outcome of the label checks, words, shape (structure,)",
    "generator": "Source of each structure, words, shape (structure,)",
    "origin": "Number of the seed of each structure, shape (structure,)",
    "magnetic_state": "Hash of the magnetic moments, shape (structure,), int64",
}
"""Columns that checks may read, with their meaning."""

UNSEEN = {"closest": np.inf, "loneliest": np.nan, "largest_force": np.nan}
"""Values of structures that are not judged by them: reference data, and in some profiles those of few atoms."""


def judge(path: Path | str, settings: Quality = Quality(), *, outcome: Outcome | None = None) -> Verdict:  # noqa: B008
    """Judge a dataset without changing it.

    Memory: one block of atoms (2**20) and 1 to 2 kB per structure: 91 to 207 MB for 100,000 structures of 1.2 million
    atoms. Time: about 0.15 ms per structure of a dozen atoms, most of it for distances. The size of the blocks does
    not change the verdict.

    Parameters
    ----------
    path
        Path of a ``dataset.zarr``.
    settings
        Limits.
    outcome
        Facts that the run knows about the dataset.

    Returns
    -------
    Verdict
        NO-GO if any check fails; a check that warns does not matter. A check that is turned off, or lacks the data
        that it needs, is skipped and says so; energies and forces must be there.

    Raises
    ------
    InputError
        If `path` is no dataset, contains no structure, or its attributes are not those that a run writes.
    """
    path = Path(path)
    attributes = read_root(path)["attributes"]
    ds = open_dataset(path)
    if not ds.sizes.get("structure"):
        raise InputError(f"{path} holds no structure; nothing to judge")
    outcome = _complete_outcome(outcome or Outcome(), attributes, path)
    columns = read_columns(ds)
    profile = profile_of(settings, columns)
    settings, expectation = apply_profile(settings, profile, columns)
    exempt = columns["reference"] | (columns["n_atoms"] <= expectation.few_atoms)
    columns |= measure_structures(ds, columns, settings, exempt)
    facts = _derive_columns(columns, outcome, _planned_shares(attributes), exempt)
    checks = soften_failures(_make_checks(facts, settings), {*expectation.warn, *list_unfixable(attributes)})
    return Verdict(
        go=all(check.verdict != "fail" for check in checks),
        dataset=str(path),
        dataset_key=str(attributes.get("dataset_key", "")),
        n_structures=ds.sizes["structure"],
        checks=tuple(checks),
        profile=profile,
    )


def _make_checks(facts: Mapping[str, Any], settings: Quality) -> list[Check]:
    """Make the checks of the table in their order."""
    checks = []
    for name, entry in CHECKS.items():
        limit = settings.limit_of(name)
        if limit is None:
            checks.append(skip_check(name, "turned off"))
        elif all(column in facts for column in entry.reads):
            names = (*entry.reads, *(column for column in entry.optional if column in facts))
            checks.append(entry.load_function()(**{column: facts[column] for column in names}, limit=limit))
        elif entry.required:
            checks.append(Check(name=name, verdict="fail", says=f"the dataset has no {name}"))
        else:
            checks.append(skip_check(name, f"the dataset does not tell: {entry.needs}"))
    return checks


def _derive_columns(
    columns: Mapping[str, np.ndarray], outcome: Outcome, shares: Mapping[str, float], exempt: np.ndarray
) -> dict[str, Any]:
    """Return the columns that checks may read: `columns`, those that follow from them, and facts about the run."""
    ids = columns["structure_id"]
    types = columns.get("system_type", np.zeros(len(ids), dtype="U1"))
    type_names, type_number = np.unique(types, return_inverse=True)
    state = np.zeros(len(ids), dtype=np.int64)
    for name in ("charge", "spin_multiplicity"):
        state = 256 * state + columns.get(name, state * 0)
    facts: dict[str, Any] = {
        **columns,
        "ids": ids,
        "n_structures": len(ids),
        "exempt": exempt,
        "periodic": columns["n_periodic"] == 3,
        "state": state ^ columns.get("magnetic_state", state * 0),
        "type_number": type_number,
        "structures_of_element": _count_structures_of_elements(columns),
        "requested_elements": outcome.elements or (),
        "requested_types": outcome.system_types or (),
        "shares": shares,
    }
    facts |= {name: np.where(exempt, value, columns[name]) for name, value in UNSEEN.items() if name in columns}
    if "system_type" in columns:
        counted = ~columns["reference"] if not columns["reference"].all() else columns["reference"]
        n_of_type = np.bincount(type_number[counted], minlength=len(type_names)).tolist()
        facts["structures_of_type"] = {name: n for name, n in zip(type_names.tolist(), n_of_type, strict=True) if n}
    if "label_status" in columns:
        facts["labels_ok"] = columns["label_status"] == "ok"
    if "finite_difference_check" in columns:
        facts["differences"] = columns["finite_difference_check"]
    if outcome.failures is not None:
        facts["failures"] = outcome.failures
    return facts


def _count_structures_of_elements(columns: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Count the structures that contain each element, by symbol."""
    from ase.data import chemical_symbols

    n_structures = (columns["counts"] > 0).sum(axis=0).tolist()
    return {chemical_symbols[z]: n for z, n in zip(columns["elements"].tolist(), n_structures, strict=True)}


def _complete_outcome(outcome: Outcome, attributes: Mapping[str, Any], path: Path) -> Outcome:
    """Fill in the facts that the attributes of a run's dataset hold."""
    from ase.data import atomic_numbers

    failures, elements = outcome.failures, outcome.elements
    if unknown_symbols := [symbol for symbol in elements or () if symbol not in atomic_numbers]:
        raise InputError(f"{unknown_symbols[0]!r} was requested and is no element; give a symbol such as Cu")
    try:
        if failures is None and "quarantined" in attributes:
            counts = json.loads(attributes["quarantined"]).items()
            failures = {kind.removeprefix("label/"): int(n) for kind, n in counts if kind.startswith("label/")}
        if elements is None and "config" in attributes:
            sources = json.loads(attributes["config"])["generate"]["sources"].values()
            named = {symbol for source in sources for symbol in _requested_elements(source.get("elements") or ())}
            elements = sorted(named & atomic_numbers.keys())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"the attributes config and quarantined of {path} are not those of a run "
            f"({type(error).__name__}: {error}); give outcome=Outcome(failures=..., elements=...)"
        ) from error
    return Outcome(failures=failures, elements=elements, system_types=outcome.system_types)


def _requested_elements(elements: Any) -> list[str]:
    """Return the symbols of a source's list of elements, or of its table of fractions (or ranges of them) but 0."""
    if isinstance(elements, dict):
        return [name for name, share in elements.items() if share not in (0, [0, 0])]
    return [elements] if isinstance(elements, str) else list(elements)


def _planned_shares(attributes: Mapping[str, Any]) -> dict[str, float]:
    """Return the share that each split should have, from the attributes; empty if they do not say."""
    rule = attributes.get("split_rule")
    shares = rule.get("fractions") if isinstance(rule, dict) else None
    return dict(shares) if isinstance(shares, dict) else {}
