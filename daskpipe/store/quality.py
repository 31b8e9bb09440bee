"""The quality gate: GO or NO-GO for a dataset, and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.errors import InputError
from daskpipe.isolated import isolated_rows
from daskpipe.seeds import order_by_hash
from daskpipe.store import quality_checks as checks
from daskpipe.store import quality_measures as measures
from daskpipe.store import quality_splits as split_checks
from daskpipe.store.connectivity import IMPORTED, Frame
from daskpipe.store.quality_checks import Check, skipped
from daskpipe.store.quality_profiles import beyond_mending, expected, profile_of, warned
from daskpipe.store.reader import open_dataset
from daskpipe.store.settings import CHECKS, Profile, Quality
from daskpipe.store.splits import origins
from daskpipe.structures import cut, starts
from daskpipe.variables import decode, read_root

if TYPE_CHECKING:
    import xarray as xr

BLOCK_ATOMS = 2**20
BLOCK_STRUCTURES = 65_536
"""What is in memory at once, besides 1 to 2 kB a structure: about one chunk of each array."""

MEASURED = ("numbers", "positions", "forces", "cell", "pbc", "stress", "initial_magmoms")
"""Variables that are read block by block."""

KNOWN = (
    "n_atoms", "structure_id", "parent_id", "energy", "split", "group", "system_type", "label_status", "replica",
    "step", "charge", "spin_multiplicity", "generator", "temperature", "pressure", "ensemble",
)  # fmt: skip
"""Variables that are held of all structures."""

REQUIRED = ("energy", "forces")
"""Checks that fail, and are not skipped, if the dataset lacks what they are about."""

LACKING = {
    "failures": "on how many structures the teacher failed",
    "pair_work": "energies and forces",
    "net_force": "forces",
    "leaks": "features and splits",
}
"""What a check needs, in words."""

LISTED = 3
"""Offenders of a check that the text for people names."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the run knows and the structures do not tell; what is None is read from the dataset's attributes.

    Parameters
    ----------
    failures
        How many structures the teacher was given and failed on, by reason.
    elements
        Symbols of the elements that were asked for.
    system_types
        System types that were asked for; the attributes do not tell them.
    """

    failures: Mapping[str, int] | None = None
    elements: Sequence[str] | None = None
    system_types: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate says.

    Parameters
    ----------
    go
        Whether no check failed.
    dataset, dataset_key, n_structures
        What was judged.
    checks
        In the order of the thresholds in `Quality`.
    profile
        What the data was taken for, see `daskpipe.store.quality_profiles`.
    """

    go: bool
    dataset: str
    dataset_key: str
    n_structures: int
    checks: tuple[Check, ...]
    profile: Profile = "run"

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as JSON types."""
        return {
            "go": self.go,
            "dataset": self.dataset,
            "dataset_key": self.dataset_key,
            "n_structures": self.n_structures,
            "profile": self.profile,
            "checks": [check.as_json() for check in self.checks],
        }


def judge(path: Path | str, settings: Quality = Quality(), *, outcome: Outcome | None = None) -> Verdict:  # noqa: B008
    """Judge a dataset; nothing is changed.

    Memory: one block of atoms (2**20) and 1 to 2 kB a structure: 91 to 207 MB for 100,000 of 1.2 million atoms.
    Time: about 0.15 ms a structure of a dozen atoms, most of it for distances. Blocks do not change the verdict.

    Parameters
    ----------
    path
        Of a ``dataset.zarr``.
    settings
        Thresholds.
    outcome
        What the run knows of the dataset.

    Returns
    -------
    Verdict
        NO-GO if any check fails; one that warns does no harm. A check that is turned off, or lacks what it needs, is
        skipped and says so; energies and forces must be there.

    Raises
    ------
    InputError
        If `path` is no dataset, holds no structure, or its attributes are not those that a run writes.
    """
    path = Path(path)
    attributes = read_root(path)["attributes"]
    ds = open_dataset(path)
    if not ds.sizes.get("structure"):
        raise InputError(f"{path} holds no structure; nothing to judge")
    told = _completed(outcome or Outcome(), attributes, path)
    columns = {name: _read(ds[name]) for name in KNOWN if name in ds}
    for name in ("system_type", "label_status", "generator"):
        if name in ds:
            columns[name] = decode(ds[name].copy(data=columns[name]))
    geometry = {name: _read(ds[name]) for name in ("n_atoms", "cell", "pbc")}
    called = {"config_type": decode(ds["config_type"].load())} if "config_type" in ds else {}
    columns["isolated"] = isolated_rows(geometry | called)
    profile = profile_of(settings, columns)
    settings, expectation = expected(settings, profile, columns)
    columns |= _measured(ds, columns, settings, expectation.few_atoms)
    found = warned(
        _checked(columns, settings, told, _shares(attributes), expectation.few_atoms),
        {*expectation.warn, *beyond_mending(attributes)},
    )
    return Verdict(
        go=all(check.verdict != "fail" for check in found),
        dataset=str(path),
        dataset_key=str(attributes.get("dataset_key", "")),
        n_structures=ds.sizes["structure"],
        checks=tuple(found),
        profile=profile,
    )


def lines(verdict: Verdict) -> list[str]:
    """Return a verdict as plain lines for people; names from outside are printed without control characters."""
    head = f"{printable(verdict.dataset)}: {verdict.n_structures:,} structures, judged as {verdict.profile}"
    return [head, *check_lines(verdict.checks), last_line(verdict)]


def last_line(verdict: Verdict) -> str:
    """Return GO, or NO-GO and the checks that say so; and the checks that warn."""
    failed, warned = ([check.name for check in verdict.checks if check.verdict == how] for how in ("fail", "warn"))
    warnings = f"; warnings: {', '.join(warned)}" if warned else ""
    return ("GO" if verdict.go else f"NO-GO: {', '.join(failed)}") + warnings


def check_lines(found: Iterable[Check]) -> list[str]:
    """Return a line a check: mark, number and limit, what it says; of those that fail or warn the worst offenders."""
    marks = {"pass": "ok", "warn": "warn", "fail": "FAIL", "skipped": "-"}
    rows = []
    for check in found:
        numbers = ""
        if check.value is not None or check.threshold is not None:
            value = "none" if check.value is None else f"{check.value:.4g}"
            numbers = f"{value} (limit {check.threshold:.4g} {check.unit})" if check.threshold is not None else value
        rows.append(f"{marks[check.verdict]:<4}  {check.name:<19}  {numbers:<38}  {printable(check.says)}".rstrip())
        if check.verdict in ("fail", "warn") and check.offenders:
            more = check.n_offenders - min(LISTED, len(check.offenders))
            listed = ", ".join(check.offenders[:LISTED]) + (f" and {more:,} more" if more else "")
            rows.append(f"      {'':<19}  {listed}")
    return rows


def printable(text: str) -> str:
    """Return a text in which characters that do not print (control, bidirectional ...) are written as codes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


# --- what is judged ---------------------------------------------------------------------------------


def _checked(
    columns: dict[str, np.ndarray], settings: Quality, told: Outcome, shares: Mapping[str, float], few_atoms: int = 0
) -> list[Check]:
    """Make the checks, in the order of the thresholds."""
    c, ids, n_atoms = columns, columns["structure_id"], columns["n_atoms"]
    types, type_number = np.unique(c.get("system_type", np.zeros(len(ids), dtype="U1")), return_inverse=True)
    per_type = dict(zip(types.tolist(), np.bincount(type_number).tolist(), strict=True))
    state = np.zeros(len(ids), dtype=np.int64)
    if few_atoms:  # what has so few is not looked at
        many, unseen = n_atoms > few_atoms, {"closest": np.inf, "loneliest": np.nan, "largest_force": np.nan}
        c = c | {name: np.where(many, c[name], value) for name, value in unseen.items() if name in c}
    for name in ("charge", "spin_multiplicity"):
        state = 256 * state + c.get(name, state * 0)
    state = state ^ c.get("magnetic_state", state * 0)
    make: dict[str, tuple[str, Callable[[Any], Check]]] = {
        "overlap": ("", lambda limit: checks.overlap(ids, c["closest"], limit)),
        "isolated_atoms": ("", lambda limit: checks.isolated_atoms(ids, n_atoms, c["loneliest"], limit)),
        "cell": ("", lambda limit: checks.cell(ids, c, limit)),
        "energy": (
            "energy",
            lambda limit: checks.energy(ids, c["energy"], c["counts"], c["composition"], type_number, limit, few_atoms),
        ),
        "units": ("pair_work", lambda limit: checks.units(c["pair_ids"], c["pair_energy"], c["pair_work"], limit)),
        "forces": (
            "net_force",
            lambda limit: checks.forces(ids, c["forces_finite"], c["largest_force"], float(c["p99"]), limit),
        ),
        "largest_force": ("net_force", lambda limit: checks.largest_force(ids, c["largest_force"], limit)),
        "net_force": ("net_force", lambda limit: checks.net_force(ids, c["net_force"], limit)),
        "zero_forces": ("net_force", lambda limit: checks.zero_forces(ids, n_atoms, c["zero_forces"], limit)),
        "stress": ("stress", lambda limit: checks.stress(ids, c["stress"], c["n_periodic"] == 3, limit)),
        "duplicates": (
            "",
            lambda limit: checks.duplicates(ids, c["composition"], state, c["fingerprint"], limit),
        ),
        "label_success": ("failures", lambda limit: checks.label_success(len(ids), told.failures or {}, limit)),
        "label_checks": ("label_status", lambda limit: checks.label_checks(ids, c["label_status"] == "ok", limit)),
        "elements": (
            "",
            lambda limit: checks.elements(_holding(c), len(ids), told.elements or (), limit),
        ),
        "composition_entropy": ("", lambda limit: checks.composition_entropy(c["composition"], limit)),
        "sizes": ("", lambda limit: checks.sizes(ids, n_atoms, limit)),
        "type_balance": ("system_type", lambda limit: checks.type_balance(per_type, told.system_types or (), limit)),
        "periodic_share": ("", lambda limit: checks.periodic_share(c["n_periodic"] == 3, limit)),
        "diversity": ("features", lambda limit: checks.diversity(c["feature_ids"], c["features"], limit)),
        "splits": (
            "split",
            lambda limit: split_checks.splits(
                ids, c["split"], c["group"], shares, limit, c.get("system_type"), c["isolated"]
            ),
        ),
        "leakage": (
            "leaks",
            lambda limit: split_checks.leakage(ids, c["split"], c["looked"], c["leaks"], limit),
        ),
    }
    found = []
    for name in CHECKS:
        needs, check = make[name]
        limit = getattr(settings, name)
        if limit is None:
            found.append(skipped(name, "turned off"))
        elif not needs or needs in columns or (needs == "failures" and told.failures is not None):
            found.append(check(limit))
        elif name in REQUIRED:
            found.append(Check(name=name, verdict="fail", says=f"the dataset has no {name}"))
        else:
            found.append(skipped(name, f"the dataset does not tell: {LACKING.get(needs, needs)}"))
    return found


def _holding(columns: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Count the structures that hold each element."""
    from ase.data import chemical_symbols

    held = (columns["counts"] > 0).sum(axis=0).tolist()
    return {chemical_symbols[z]: n for z, n in zip(columns["elements"].tolist(), held, strict=True)}


def _completed(outcome: Outcome, attributes: Mapping[str, Any], path: Path) -> Outcome:
    """Fill in what the attributes of a run's dataset tell."""
    from ase.data import atomic_numbers

    failures, elements = outcome.failures, outcome.elements
    if strangers := [symbol for symbol in elements or () if symbol not in atomic_numbers]:
        raise InputError(f"{strangers[0]!r} was requested and is no element; give a symbol such as Cu")
    try:
        if failures is None and "quarantined" in attributes:
            counts = json.loads(attributes["quarantined"]).items()
            failures = {kind.removeprefix("label/"): int(n) for kind, n in counts if kind.startswith("label/")}
        if elements is None and "config" in attributes:
            sources = json.loads(attributes["config"])["generate"]["sources"].values()
            named = {symbol for source in sources for symbol in _wanted(source.get("elements") or ())}
            elements = sorted(named & atomic_numbers.keys())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"the attributes config and quarantined of {path} are not those of a run "
            f"({type(error).__name__}: {error}); give outcome=Outcome(failures=..., elements=...)"
        ) from error
    return Outcome(failures=failures, elements=elements, system_types=outcome.system_types)


def _wanted(elements: Any) -> list[str]:
    """Names in a source's list of elements, or in its table of the fraction of each (or the lowest and the highest)."""
    if isinstance(elements, dict):
        return [name for name, share in elements.items() if share not in (0, [0, 0])]
    return [elements] if isinstance(elements, str) else list(elements)


def _shares(attributes: Mapping[str, Any]) -> dict[str, float]:
    """Share that each split should have, if the dataset tells."""
    rule = attributes.get("split_rule")
    shares = rule.get("fractions") if isinstance(rule, dict) else None
    return dict(shares) if isinstance(shares, dict) else {}


# --- reading ----------------------------------------------------------------------------------------


def _measured(
    ds: xr.Dataset, columns: Mapping[str, np.ndarray], settings: Quality, few_atoms: int = 0
) -> dict[str, np.ndarray]:
    """Go through the dataset once (twice for pairs of frames); return what the checks are made of."""
    ids, n_atoms = columns["structure_id"], columns["n_atoms"]
    distances = any(limit is not None for limit in (settings.overlap, settings.isolated_atoms, settings.duplicates))
    reach = max(measures.BONDED, settings.overlap or 0, settings.isolated_atoms or 0)
    sampled = np.zeros(len(ids), dtype=bool)
    sampled[order_by_hash(0, "quality", ids)[: checks.SAMPLE]] = True
    parts: dict[str, list[np.ndarray]] = {}
    counts: list[tuple[np.ndarray, np.ndarray]] = []
    top, n_norms = np.zeros(0), 0
    # The largest hundredth of the forces tells the 99th percentile exactly.
    n_top = int(n_atoms.sum(dtype=np.int64)) // 100 + 2
    for rows, block in _blocks(ds, n_atoms, (*MEASURED, "features")):
        found = measures.of_cells(block)
        if distances:
            found |= measures.of_distances(block, found["searchable"], reach)
        if "forces" in block:
            found |= measures.of_forces(block)
            norms = found.pop("force_norms")[
                np.repeat(n_atoms[rows] > few_atoms, n_atoms[rows])[np.repeat(found["forces_finite"], n_atoms[rows])]
            ]
            n_norms += len(norms)
            top = np.concatenate([top, norms])
            top = np.partition(top, len(top) - n_top)[-n_top:] if len(top) > n_top else top
            for row in np.flatnonzero(found["zero_forces"] & found["searchable"]).tolist():
                found["zero_forces"][row] = measures.asymmetric(block, row)
        if "stress" in block:
            found["stress"] = measures.largest_stress(block["stress"])
        if "initial_magmoms" in block:
            found["magnetic_state"] = measures.magnetic_states(block)
        if "features" in block:
            found["features"] = block["features"][sampled[rows]]
            if settings.leakage is not None or settings.units is not None:
                found["all_features"] = block["features"]
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
        of_block = measures.element_counts(block)
        present = np.flatnonzero(of_block.any(axis=0))
        counts.append((present, of_block[:, present]))
    measured = {name: np.concatenate(values) for name, values in parts.items()}
    measured["elements"], measured["counts"] = _joined_counts(counts)
    measured["composition"] = np.unique(measured["counts"], axis=0, return_inverse=True)[1].reshape(-1)
    if "features" in measured:
        finite = np.isfinite(measured["features"]).all(axis=1)
        measured["features"], measured["feature_ids"] = measured["features"][finite], ids[sampled][finite]
    if "forces" in ds:
        measured["p99"] = np.array(measures.percentile_99(top, n_norms))
    lineage = {"structure_id": ids, "parent_id": columns.get("parent_id", np.zeros_like(ids))}
    measured["origin"] = np.unique(origins(lineage), return_inverse=True)[1].astype(np.int64)
    if settings.units is not None and {"energy", "forces"} <= set(map(str, ds.data_vars)):
        measured |= _pairs(ds, {**columns, **measured})
    if "split" in columns and "group" not in columns:
        measured["group"] = measured["origin"]
    if "all_features" in measured and "split" in columns and settings.leakage is not None:
        known = {**lineage, **columns, "composition": measured["composition"], "features": measured.pop("all_features")}
        measured["looked"], measured["leaks"] = split_checks.find_leaks(
            known, lambda rows: _geometries(ds, columns["n_atoms"], rows)
        )
    return measured


def _geometries(ds: xr.Dataset, n_atoms: np.ndarray, wanted: np.ndarray) -> dict[int, Frame]:
    """Read the geometries of some rows."""
    frames = {}
    for rows, block in _blocks(ds, n_atoms, ("numbers", "positions", "cell", "pbc"), wanted):
        for row in np.intersect1d(wanted, np.arange(rows.start, rows.stop)).tolist():
            atoms = slice(start := int(block["atom_start"][row - rows.start]), start + int(n_atoms[row]))
            per_atom = {name: block[name][atoms].copy() for name in ("numbers", "positions")}
            per_structure = {name: block[name][row - rows.start] for name in ("cell", "pbc")}
            frames[row] = Frame(**per_atom, **per_structure)
    return frames


def _joined_counts(counts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the atomic numbers that occur, and the counts of them in all structures."""
    elements = np.unique(np.concatenate([present for present, _ in counts]))
    joined = np.zeros((sum(len(part) for _, part in counts), len(elements)), dtype=np.int32)
    start = 0
    for present, part in counts:
        joined[start : start + len(part), np.searchsorted(elements, present)] = part
        start += len(part)
    return elements, joined


def _pairs(ds: xr.Dataset, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hold energies against forces, for pairs of neighbouring frames."""
    usable = np.flatnonzero(np.isfinite(columns["energy"]) & columns["forces_finite"] & columns["searchable"])
    names = ("structure_id", "origin", "composition", "n_atoms", "replica", "step")
    chosen = {name: columns[name][usable] for name in names if name in columns}
    if "all_features" in columns and "generator" in columns:  # where lineage is known, it tells the pairs
        imported = (columns["generator"][usable] == IMPORTED)[:, None]
        chosen["features"] = np.where(imported, columns["all_features"][usable], np.nan)
    pairs, energies_and_work = _compared(ds, columns, usable[measures.near_pairs(chosen)].reshape(-1, 2))
    if "features" in chosen and len(pairs) < checks.MIN_PAIRS:
        further = usable[measures.near_pairs(chosen, further=True)].reshape(-1, 2)
        more = _compared(ds, columns, further)
        both = np.concatenate([pairs, more[0]])
        first = np.unique(both, axis=0, return_index=True)[1]  # what is near to one may be the nearest to the other
        pairs, energies_and_work = both[first], np.concatenate([energies_and_work, more[1]])[first]
    return {
        "pair_ids": columns["structure_id"][pairs],
        "pair_energy": energies_and_work[:, 0],
        "pair_work": energies_and_work[:, 1],
    }


def _compared(ds: xr.Dataset, columns: Mapping[str, np.ndarray], pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs that are neighbours, and the difference of their energies and the work between them, eV."""
    frames: dict[int, dict[str, Any]] = {}
    for rows, block in _blocks(ds, columns["n_atoms"], MEASURED, np.unique(pairs)):
        for row in np.intersect1d(np.unique(pairs), np.arange(rows.start, rows.stop)) - rows.start:
            atoms = slice(start := int(block["atom_start"][row]), start + int(block["n_atoms"][row]))
            frame = {name: block[name][atoms].astype(np.float64) for name in ("numbers", "positions", "forces")}
            frame |= {name: block[name][row] for name in ("cell", "pbc", "stress") if name in block}
            frames[rows.start + int(row)] = frame | {"energy": columns["energy"][rows.start + row]}
    compared = [measures.energy_and_work(frames[a], frames[b]) for a, b in pairs.tolist()]
    near = [index for index, pair in enumerate(compared) if pair is not None]
    return pairs[near], np.array([pair for pair in compared if pair is not None]).reshape(-1, 2)


def _blocks(
    ds: xr.Dataset, n_atoms: np.ndarray, names: Sequence[str], wanted: np.ndarray | None = None
) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Read some variables block by block, those without a `wanted` row left out; ``atom_start`` counts in the block."""
    start_atom = starts(n_atoms)
    names = [name for name in names if name in ds]
    for rows in cut(n_atoms, BLOCK_ATOMS, BLOCK_STRUCTURES):
        if wanted is None or ((wanted >= rows.start) & (wanted < rows.stop)).any():
            first, last = rows.start, rows.stop - 1
            atoms = slice(int(start_atom[first]), int(start_atom[last] + n_atoms[last]))
            block = {name: _read(ds[name][atoms if ds[name].dims[0] == "atom" else rows]) for name in names}
            yield rows, {**block, "n_atoms": n_atoms[rows], "atom_start": start_atom[rows] - atoms.start}


def _read(array: xr.DataArray) -> np.ndarray:
    """Read here: within a task Dask would hand the reading to the cluster."""
    return np.asarray(array.compute(scheduler="synchronous").values)
