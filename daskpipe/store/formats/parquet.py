"""Write and read one Parquet file with the columns of ColabFit, one row per structure with its labels.

Names and types are those of ColabFit's configuration files (materials.colabfit.org/configuration_schema): lists of
doubles, energies in eV, forces in eV/Å, and ``cauchy_stress`` as a 3 x 3 matrix in eV/Å^3, positive under tension as
in ASE (the sign differs between ColabFit's datasets), with ``cauchy_stress_volume_normalized`` false: it is not
multiplied by the volume. Hashes are those of daskpipe: ``configuration_hash`` and ``structure_hash`` are the id of the
structure, ``property_hash`` covers the id, the method and the labels. Variables for which ColabFit has no column are
JSON in ``metadata``. ``last_modified`` and properties that daskpipe does not have are null.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import count as numbers_from
from itertools import islice
from math import gcd
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.variables import FULL_TO_VOIGT
from daskpipe.store.formats import ATOM_FACTS, GEOMETRY, LABELS, SCALARS, VECTORS, Record, full_stress, iter_records

if TYPE_CHECKING:
    import pyarrow as pa
    import xarray as xr

SUFFIX = ".parquet"
READER = "pyarrow.parquet"
METADATA = tuple(name for name in SCALARS if name not in ("energy", "structure_id", "composition", "label_method"))
"""Variables in the column of that name."""

FIELDS = (*GEOMETRY, *LABELS, *ATOM_FACTS, "fixed", *VECTORS, *(name for name in SCALARS if name != "energy"))
MAX_STRUCTURES = 65_536

ID_DIGITS = 25
"""Digits of a hash in ColabFit's ids."""


def check_name(out: Path) -> None:
    """Accept any name."""


def make_schema() -> pa.Schema:
    """Return the columns of ColabFit."""
    import pyarrow as pa

    text, real, whole, flag = pa.string(), pa.float64(), pa.int32(), pa.bool_()
    columns = {
        "property_id": text, "property_hash": text, "last_modified": pa.timestamp("us"), "dataset_id": text,
        "multiplicity": whole, "software": text, "method": text, "energy": real,
        "atomic_forces": pa.list_(pa.list_(real)), "cauchy_stress": pa.list_(pa.list_(real)),
        "cauchy_stress_volume_normalized": flag, "electronic_band_gap": real, "electronic_band_gap_type": text,
        "formation_energy": real, "adsorption_energy": real, "atomization_energy": real, "max_force_norm": real,
        "mean_force_norm": real, "energy_above_hull": real, "configuration_id": text, "configuration_hash": text,
        "structure_hash": text, "cell": pa.list_(pa.list_(real)), "positions": pa.list_(pa.list_(real)),
        "pbc": pa.list_(flag), "chemical_formula_hill": text, "chemical_formula_reduced": text,
        "chemical_formula_anonymous": text, "elements": pa.list_(text), "elements_ratios": pa.list_(real),
        "atomic_numbers": pa.list_(whole), "nsites": whole, "nelements": whole, "nperiodic_dimensions": whole,
        "dimension_types": pa.list_(whole), "names": pa.list_(text), "labels": pa.list_(text), "metadata": text,
    }  # fmt: skip
    units = {"energy": "eV", "length": "angstrom", "stress": "eV/angstrom^3, positive under tension"}
    return pa.schema(list(columns.items()), metadata={f"{name}_unit": unit for name, unit in units.items()})


def write_part(block: xr.Dataset, path: Path) -> None:
    """Write a block, a few thousand rows at a time, because rows become Python numbers first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    dataset, software = f"DS_{block.attrs.get('dataset_key', '')}", _name_teacher(block)
    rows = (_make_row(record, dataset, software) for record in iter_records(block))
    with pq.ParquetWriter(path, make_schema()) as writer:
        while batch := list(islice(rows, 4096)):
            writer.write_table(pa.Table.from_pylist(batch, schema=make_schema()))


def _make_row(record: Record, dataset: str, software: str | None) -> dict[str, Any]:
    """Convert a structure to a row with the columns of `make_schema`."""
    numbers, pbc = record["numbers"], record["pbc"].astype(int)
    forces, stress = record.get("forces"), record.get("stress")
    norms = None if forces is None else np.linalg.norm(forces.astype(float), axis=1)
    identity = record["structure_id"].removeprefix("0x")
    property_hash = _hash_labels(record)
    metadata = {name: record[name] for name in METADATA if name in record}
    metadata |= {name: record[name].tolist() for name in (*ATOM_FACTS, "fixed", *VECTORS) if name in record}
    return {
        "property_id": f"PO_{property_hash[:ID_DIGITS]}",
        "property_hash": property_hash,
        "dataset_id": dataset,
        "multiplicity": 1,
        "software": software,
        "method": record.get("label_method"),
        "energy": record.get("energy"),
        "atomic_forces": None if forces is None else forces.tolist(),
        "cauchy_stress": None if stress is None else full_stress(stress).tolist(),
        "cauchy_stress_volume_normalized": None if stress is None else False,
        "max_force_norm": None if norms is None else norms.max(),
        "mean_force_norm": None if norms is None else norms.mean(),
        "configuration_id": f"CO_{identity[:ID_DIGITS]}",
        "configuration_hash": identity,
        "structure_hash": identity,
        "cell": record["cell"].tolist(),
        "positions": record["positions"].tolist(),
        "pbc": record["pbc"].tolist(),
        **_format_formulas(record["composition"]),
        "atomic_numbers": numbers.tolist(),
        "nsites": len(numbers),
        "nperiodic_dimensions": int(pbc.sum()),
        "dimension_types": pbc.tolist(),
        "names": [record["structure_id"]],
        "labels": [record[name] for name in ("system_type", "generator", "split") if name in record],
        "metadata": json.dumps(metadata, sort_keys=True),
    }


def _hash_labels(record: Record) -> str:
    """Hash the id, the method and the labels of a structure."""
    digest = hashlib.blake2b(f"{record['structure_id']} {record.get('label_method')}".encode(), digest_size=16)
    for name in LABELS:
        digest.update(f" {name} ".encode() + np.asarray(record.get(name, ()), dtype="<f8").tobytes())
    return digest.hexdigest()


def _name_teacher(block: xr.Dataset) -> str | None:
    """Return the name of the teacher, if the dataset records it."""
    known = block.attrs.get("label_potential")
    known = json.loads(known) if isinstance(known, str) else known
    return known.get("name") if isinstance(known, dict) else None


@cache
def _format_formulas(hill: str) -> dict[str, Any]:
    """Return formulas and elements as OPTIMADE defines them, elements in alphabetical order."""
    from ase.formula import Formula

    counts = dict(sorted(Formula(hill).count().items()))
    divisor, total = gcd(*counts.values()), sum(counts.values())
    shares = sorted((n // divisor for n in counts.values()), reverse=True)
    return {
        "chemical_formula_hill": hill,
        "chemical_formula_reduced": "".join(f"{name}{_format_count(n // divisor)}" for name, n in counts.items()),
        "chemical_formula_anonymous": "".join(
            f"{name}{_format_count(n)}" for name, n in zip(_iter_letters(), shares, strict=False)
        ),
        "elements": list(counts),
        "elements_ratios": [n / total for n in counts.values()],
        "nelements": len(counts),
    }


def _format_count(n: int) -> str:
    """Format the number of an element in a formula."""
    return str(n) if n > 1 else ""


def _iter_letters() -> Iterator[str]:
    """Yield A, B, ... Z, Aa, Ba, ... Za, Ab, ..."""
    for number in numbers_from():
        repeat, letter = divmod(number, len(ascii_uppercase))
        yield ascii_uppercase[letter] + (ascii_lowercase[repeat - 1] if repeat else "")


def read_part(path: Path) -> Iterator[Record]:
    """Yield the structures that pyarrow reads."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                record = {
                    "numbers": row["atomic_numbers"],
                    "positions": row["positions"],
                    "cell": row["cell"],
                    "pbc": row["pbc"],
                    "structure_id": f"0x{row['configuration_hash']}",
                    "composition": row["chemical_formula_hill"],
                    "energy": row["energy"],
                    "forces": row["atomic_forces"],
                    "label_method": row["method"],
                    **json.loads(row["metadata"]),
                }
                if row["cauchy_stress"] is not None:
                    record["stress"] = np.reshape(row["cauchy_stress"], 9)[list(FULL_TO_VOIGT)]
                yield record


def join_parts(parts: Sequence[Path], out: Path) -> None:
    """Copy the row groups of all parts."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(out, make_schema()) as writer:
        for part in parts:
            with pq.ParquetFile(part) as file:
                for group in range(file.num_row_groups):
                    writer.write_table(file.read_row_group(group))


def count_structures(out: Path) -> int:
    """Read the number of rows from the footer of the file."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(out).num_rows)
