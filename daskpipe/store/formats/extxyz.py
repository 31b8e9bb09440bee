"""Write and read extended XYZ: text that ASE, MACE and most programs of the field read.

Each label is there twice: as ``energy``, ``forces``, ``stress``, which `ase.io.read` puts into a calculator, and as
``REF_energy``, ``REF_forces``, ``REF_stress``, the keys that ``mace_run_train --train_file`` reads by default. ASE
(since 3.23) moves the plain names out of ``info`` and ``arrays``, where MACE would look for them, so one set of names
cannot serve both. ``total_charge`` and ``total_spin`` (2S + 1) are names of MACE, too, and so are ``config_type``,
``head`` and ``config_weight``. Fixed atoms are in ``move_mask``, three columns that ASE turns into constraints: then
``get_forces()`` is zero along the fixed components, and ``calc.results["forces"]`` and ``REF_forces`` are as labelled.
``config_stress_weight=0`` keeps MACE from training on the stress of a cell that is open along a vector: MACE computes
it for another cell (ACEsuit/mace#1509).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.constraints import fixed_components
from daskpipe.core.variables import VARIABLES
from daskpipe.store.formats import ATOM_FACTS, GEOMETRY, LABELS, SCALARS, VECTORS, Record, full_stress, iter_records

if TYPE_CHECKING:
    import xarray as xr

SUFFIX = ".extxyz"
READER = "ase.io.iread"
FACTS = tuple(
    sorted((name for name in (*SCALARS, *VECTORS) if VARIABLES[name].in_extxyz), key=lambda name: name == "split")
)
"""Variables in the comment line; ``split`` is the last."""

MACE_NAMES = {"charge": "total_charge", "spin_multiplicity": "total_spin"}
"""Variables that are written a second time under the name that MACE reads."""

FIELDS = (*GEOMETRY, *LABELS, *ATOM_FACTS, "fixed", *FACTS)
MAX_STRUCTURES = 65_536


def check_name(out: Path) -> None:
    """Accept any name."""


def write_part(block: xr.Dataset, path: Path) -> None:
    """Write the structures as frames of text."""
    with open(path, "w", encoding="utf-8") as stream:
        for record in iter_records(block):
            stream.write(format_frame(record))


def format_frame(record: Record) -> str:
    """Format a structure as a frame, with numbers that read back bit for bit."""
    from ase.data import chemical_symbols
    from ase.io.extxyz import key_val_dict_to_str

    table, properties = [record["positions"]], "species:S:1:pos:R:3"
    info: dict[str, Any] = {}
    if record["cell"].any():
        info["Lattice"] = record["cell"].T  # the writer flattens it column by column
    if "forces" in record:
        table += [record["forces"], record["forces"]]
        properties += ":forces:R:3:REF_forces:R:3"
    for name in ATOM_FACTS:
        if name in record:
            columns = record[name].reshape(len(record["numbers"]), -1)
            table.append(columns)
            properties += f":{name}:R:{columns.shape[1]}"
    words = [""] * len(record["numbers"])
    if "fixed" in record:
        properties += ":move_mask:L:3"
        words = [" " + " ".join("FT"[not is_fixed] for is_fixed in row) for row in record["fixed"].tolist()]
    info |= {"Properties": properties, "pbc": record["pbc"]}
    if "energy" in record:
        info |= {"energy": record["energy"], "REF_energy": record["energy"]}
    if "stress" in record:
        full = full_stress(record["stress"])
        info |= {"stress": full, "REF_stress": full.reshape(9)}
        if not record["pbc"].all():
            info["config_stress_weight"] = 0.0
    facts = {name: record[name] for name in FACTS if name in record and name not in MACE_NAMES}
    info |= {name: _quote_word(value) for name, value in facts.items() if isinstance(value, str)}
    info |= {name: value for name, value in facts.items() if not isinstance(value, str)}
    for name, mace_name in MACE_NAMES.items():
        if name in record:
            info |= {name: record[name], mace_name: record[name]}
    values = np.concatenate(table, axis=1)
    line = "%s" + f" %.{9 if values.dtype == np.float32 else 17}g" * values.shape[1]
    comment: str = key_val_dict_to_str(info)
    symbols = [chemical_symbols[number] for number in record["numbers"].tolist()]
    columns = [symbols, *values.T.tolist(), words]
    # One format for all rows takes half the time of one for each.
    body = f"{line}%s\n" * len(values) % tuple(chain.from_iterable(zip(*columns, strict=True)))
    return f"{len(values)}\n{comment}\n{body}"


@cache
def _quote_word(word: str) -> str:
    """Format a word as text that ASE reads as this word, and not as a number or a truth value."""
    from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict

    as_read = key_val_str_to_dict(key_val_dict_to_str({"word": word}))["word"]
    return word if isinstance(as_read, str) else f"_JSON {json.dumps(word)}"


def read_part(path: Path) -> Iterator[Record]:
    """Yield the structures that ASE reads."""
    from ase.io import iread

    for atoms in iread(path, format="extxyz"):
        record: dict[str, Any] = {"numbers": atoms.numbers, "positions": atoms.positions}
        record |= {"cell": atoms.cell.array, "pbc": atoms.pbc}
        record |= atoms.calc.results if atoms.calc is not None else {}
        record |= {name: atoms.info[name] for name in FACTS if name in atoms.info}
        record |= {name: atoms.arrays[name] for name in ATOM_FACTS if name in atoms.arrays}
        if (fixed := fixed_components(atoms)) is not None:
            record["fixed"] = fixed
        yield record


def join_parts(parts: Sequence[Path], out: Path) -> None:
    """Copy the bytes of all parts."""
    with open(out, "wb") as stream:
        for part in parts:
            with open(part, "rb") as source:
                shutil.copyfileobj(source, stream, 2**20)


def count_structures(out: Path) -> int:
    """Count the frames by their headers."""
    n = 0
    with open(out, "rb") as lines:
        for header in lines:
            for _ in range(int(header) + 1):
                next(lines)
            n += 1
    return n
