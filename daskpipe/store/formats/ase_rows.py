"""Structures as rows of an ASE database, of whatever backend.

Labels stand where ASE has them, so that ``row.toatoms()`` comes with a calculator. Everything else that is known of a
structure is in ``key_value_pairs`` under the names of `daskpipe.core.variables`, with two exceptions: the total charge
is ``total_charge``, for ``row.charge`` is ASE's own (the sum of the initial charges), and a word that ASE would take
for a number, which it refuses there, is in ``data``. ``unique_id`` is the structure's id.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from daskpipe.core.constraints import fixed_components, to_constraints
from daskpipe.store.formats import ATOM_FACTS, GEOMETRY, LABELS, SCALARS, Record

PAIRS = tuple(name for name in SCALARS if name not in ("energy", "composition"))
"""What is in ``key_value_pairs``; ASE tells the composition itself."""

FIELDS = (*GEOMETRY, *LABELS, *ATOM_FACTS, "fixed", *PAIRS)

RENAMED = {"charge": "total_charge"}
RESULTS = (*LABELS, *ATOM_FACTS)


def row_of(record: Record) -> Any:
    """Return an `ase.db.row.AtomsRow`; it names no user."""
    from ase.db.core import now
    from ase.db.row import AtomsRow

    known: dict[str, Any] = {
        "numbers": record["numbers"].astype(np.int32),
        "positions": record["positions"].astype(float),
        "cell": record["cell"],
        "pbc": record["pbc"],
        "unique_id": record["structure_id"].removeprefix("0x"),
        "ctime": now(),
        "user": "",
    }
    known |= {name: _double(record[name]) for name in RESULTS if name in record}
    if "fixed" in record:
        known["constraints"] = to_constraints(record["fixed"])
    if any(name in record for name in LABELS):
        known |= {"calculator": record.get("label_method", "unknown"), "calculator_parameters": {}}
    return AtomsRow(known)


def pairs_and_data(record: Record) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the ``key_value_pairs`` and the ``data`` of a structure."""
    from ase.db.core import convert_str_to_int_float_bool_or_str as as_ase_reads_it

    facts = {RENAMED.get(name, name): record[name] for name in PAIRS if name in record}
    data = {
        name: value
        for name, value in facts.items()
        if isinstance(value, str) and not isinstance(as_ase_reads_it(value), str)
    }
    return {name: value for name, value in facts.items() if name not in data}, data


def record_of(row: Any) -> Record:
    """Return what a row holds, as ASE gives it."""
    atoms = row.toatoms()
    found: dict[str, Any] = {"numbers": atoms.numbers, "positions": atoms.positions}
    found |= {"cell": atoms.cell.array, "pbc": atoms.pbc}
    found |= {name: atoms.arrays[name] for name in ATOM_FACTS if name in atoms.arrays}
    found |= atoms.calc.results if atoms.calc is not None else {}
    if (fixed := fixed_components(atoms)) is not None:
        found["fixed"] = fixed
    facts = {**row.key_value_pairs, **row.data}
    for name in PAIRS:
        if (key := RENAMED.get(name, name)) in facts:
            found[name] = facts[key]
    return found


def _double(value: Any) -> Any:
    return value.astype(float) if isinstance(value, np.ndarray) else value
