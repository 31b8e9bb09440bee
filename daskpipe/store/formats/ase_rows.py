"""Convert structures to rows of an ASE database with any backend, and back.

Labels are where ASE has them, so that ``row.toatoms()`` has a calculator. All other variables of a structure are in
``key_value_pairs`` under the names of `daskpipe.core.variables`, with some exceptions: the total charge is
``total_charge``, because ``row.charge`` is the sum of the initial charges in ASE. Words that ASE would read as numbers,
which it refuses there, are in ``data``, and so are per-atom variables that ASE does not know. ``unique_id`` is the id
of the structure.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from daskpipe.core.constraints import fixed_components, to_constraints
from daskpipe.store.formats import ATOM_FACTS, GEOMETRY, LABELS, SCALARS, VECTORS, Record

PAIRS = tuple(name for name in SCALARS if name not in ("energy", "composition"))
"""Variables in ``key_value_pairs``; ASE derives the composition itself."""

FIELDS = (*GEOMETRY, *LABELS, *ATOM_FACTS, "fixed", *VECTORS, *PAIRS)

RENAMED = {"charge": "total_charge"}
"""Variables with another name in ASE's rows."""

COLUMNS = (*LABELS, "magmoms", "initial_charges", "initial_magmoms", "masses")
"""Variables that ASE has as columns."""

DATA = tuple(name for name in (*ATOM_FACTS, *VECTORS) if name not in COLUMNS)
"""Arrays that ASE has no column for; they are in ``data``."""


def row_of(record: Record) -> Any:
    """Convert a structure to an `ase.db.row.AtomsRow`, with an empty user name."""
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
    known |= {name: _as_double(record[name]) for name in COLUMNS if name in record}
    if "fixed" in record:
        known["constraints"] = to_constraints(record["fixed"])
    if any(name in record for name in LABELS):
        known |= {"calculator": record.get("label_method", "unknown"), "calculator_parameters": {}}
    return AtomsRow(known)


def pairs_and_data(record: Record) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the ``key_value_pairs`` and the ``data`` of a structure."""
    from ase.db.core import convert_str_to_int_float_bool_or_str as parse_word

    facts = {RENAMED.get(name, name): record[name] for name in PAIRS if name in record}
    data = {
        name: value
        for name, value in facts.items()
        if isinstance(value, str) and not isinstance(parse_word(value), str)
    }
    pairs = {name: value for name, value in facts.items() if name not in data}
    return pairs, data | {name: _as_double(record[name]) for name in DATA if name in record}


def record_of(row: Any) -> Record:
    """Convert a row to a structure, with the values that ASE reads."""
    atoms = row.toatoms()
    record: dict[str, Any] = {"numbers": atoms.numbers, "positions": atoms.positions}
    record |= {"cell": atoms.cell.array, "pbc": atoms.pbc}
    record |= {name: atoms.arrays[name] for name in ATOM_FACTS if name in atoms.arrays}
    record |= atoms.calc.results if atoms.calc is not None else {}
    if (fixed := fixed_components(atoms)) is not None:
        record["fixed"] = fixed
    facts = {**row.key_value_pairs, **row.data}
    for name in (*PAIRS, *DATA):
        if (key := RENAMED.get(name, name)) in facts:
            record[name] = facts[key]
    return record


def _as_double(value: Any) -> Any:
    """Cast an array to float64; other values stay."""
    return value.astype(float) if isinstance(value, np.ndarray) else value
