"""From the rows that labelling left to a dataset on disk: sort, plan, write, publish; or all at once in memory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.isolated_atoms import ReferenceEnergies, isolated_rows, reference_energies
from daskpipe.core.structures import atom_starts, concat, take
from daskpipe.core.variables import SPLITS, VARIABLES, decode_names, is_per_atom, missing_values
from daskpipe.engine.rows import dataset_to_arrays, read_unit
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload
from daskpipe.store.arrangement import COLUMNS, arrangement
from daskpipe.store.connectivity import Frame
from daskpipe.store.parts import MADE, Load, Plan, chunk, mapped, sorted_run, union
from daskpipe.store.reader import rows
from daskpipe.store.splits import Split, check_fractions
from daskpipe.store.writer import publish, write_dataset

if TYPE_CHECKING:
    import xarray as xr

VERSION = 2

PLAN_VERSION = 3
"""Of the units of `PLAN` alone: what they read is as before, the splits that they make are not."""

SORT, PLAN, WRITE = "store-sort", "store-plan", "store-write"
"""Stages before the dataset is published."""

ENERGIES = "isolated_atom_energies"
"""Root attribute, JSON: energy of an isolated atom, eV, by head and symbol."""

RUN_BYTES = 2**26
RUN_STRUCTURES = 65_536
"""Size at which a run of rows is full: what one task of `SORT` holds in memory, three times."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A committed unit whose rows belong into the dataset.

    Parameters
    ----------
    stage, key
        Of the unit.
    features
        Key of the unit of ``describe`` that holds their features, if they do not hold them themselves.
    """

    stage: str
    key: str
    features: str | None = None


def read(path: Path, start: int, stop: int) -> Payload:
    """Read rows of a dataset, without what belongs to that dataset as a whole: features, strata, groups, splits."""
    ds = rows(path, start, stop).drop_vars(["group", "split", "features", "cluster"], errors="ignore")
    return Payload(arrays=dataset_to_arrays(ds), n_out=stop - start)


def sort(root: Path, sources: Sequence[Source], *, seed: int) -> Payload:
    """Bring the rows of some units into the order of the dataset, each variable as a file that can be mapped."""
    ds = concat([_rows_of(root, source) for source in sources])
    files = sorted_run(ds, seed=seed)
    names = {
        name: sorted(set(ds[name].values.tolist()))
        for name in map(str, ds.data_vars)
        if VARIABLES[name].coded and name not in MADE
    }
    arrays = {"names": np.array(json.dumps(names))}
    return Payload(arrays=arrays, n_out=ds.sizes["structure"], files=files)


def _rows_of(root: Path, source: Source) -> xr.Dataset:
    ds = read_unit(root, source.stage, source.key)
    if source.features is None:
        return ds
    features = RunDirectory(root).load_arrays("describe", source.features, ["features"])["features"]
    return ds.assign(features=(VARIABLES["features"].dims, features))


def plan(root: Path, runs: Sequence[str], rule: Split, *, seed: int) -> Payload:
    """Find the order, the groups and the splits of all rows of the sorted runs; see `Plan` and `arrangement`.

    Rows in the gaps between blocks of time are left out, and counted in the report.

    Memory: about 200 bytes a structure, and its features.
    """
    load = _loader(root, runs)
    n_atoms = [_known(load(number, "n_atoms")) for number in range(len(runs))]
    sizes = [len(of_run) for of_run in n_atoms]
    columns = _columns(load, sizes)
    columns["isolated"], energies = _isolated_atoms([_of_run(load, number) for number in range(len(runs))])
    ends = np.cumsum(sizes)
    found = arrangement(columns, rule, seed=seed, frame_of=_frames(load, n_atoms))
    run = np.searchsorted(ends, found.order, side="right")
    tables = [json.loads(RunDirectory(root).load_arrays(SORT, key, ["names"])["names"].item()) for key in runs]
    names = {name for key in runs for name in _names(root, key)}
    made = Plan(
        run=run.astype(np.int32),
        row=found.order - (ends - sizes)[run],
        n_atoms=np.concatenate(n_atoms)[found.order],
        group=found.group,
        split=found.split,
        names=tuple(sorted(names | set(MADE))),
        codes=union(tables),
        n_features=columns["features"].shape[1] if "features" in columns else 0,
    )
    arrays = {**made.as_arrays(), "report": np.array(json.dumps(found.report, sort_keys=True))}
    if energies:
        arrays[ENERGIES] = np.array(json.dumps(energies))
    return Payload(arrays=arrays, n_out=len(found.order))


def _of_run(load: Load, number: int) -> dict[str, np.ndarray]:
    """Return what tells isolated atoms, and the energies that they give, of the rows of one run."""
    columns = {name: _known(load(number, name)) for name in ("n_atoms", "cell", "pbc", "charge", "numbers")}
    columns["number"] = columns.pop("numbers")[atom_starts(columns["n_atoms"])]
    optional = {name: load(number, name) for name in ("config_type", "head", "energy")}
    return columns | {name: values for name, values in optional.items() if values is not None}


def _isolated_atoms(parts: Sequence[Mapping[str, np.ndarray]]) -> tuple[np.ndarray, ReferenceEnergies]:
    """Return which rows of all runs are isolated atoms, and their energies."""
    isolated = [isolated_rows(columns) for columns in parts]
    energies: ReferenceEnergies = {}
    for columns, of_run in zip(parts, isolated, strict=True):
        for head, of_head in reference_energies(columns, of_run).items():
            known = energies.setdefault(head, {})
            known |= {symbol: min(energy, known.get(symbol, energy)) for symbol, energy in of_head.items()}
    return np.concatenate(isolated), {head: dict(sorted(energies[head].items())) for head in sorted(energies)}


def _frames(load: Load, n_atoms: Sequence[np.ndarray]) -> Callable[[int], Frame]:
    """Return a function that gives the geometry of a row, rows counted over all runs."""
    ends = np.cumsum([len(of_run) for of_run in n_atoms])
    first = [atom_starts(of_run) for of_run in n_atoms]

    def frame_of(number: int) -> Frame:
        run = int(np.searchsorted(ends, number, side="right"))
        row = number - int(ends[run]) + len(n_atoms[run])
        atoms = slice(start := int(first[run][row]), start + int(n_atoms[run][row]))
        return Frame(
            numbers=_known(load(run, "numbers"))[atoms],
            positions=_known(load(run, "positions"))[atoms],
            cell=_known(load(run, "cell"))[row],
            pbc=_known(load(run, "pbc"))[row],
        )

    return frame_of


def _columns(load: Load, sizes: Sequence[int]) -> dict[str, np.ndarray]:
    """Return what tells order and groups, of the rows of all runs, one run after the other."""
    columns = {}
    for name in COLUMNS:
        parts = [load(number, name) for number in range(len(sizes))]
        tail = next((part.shape[1:] for part in parts if part is not None), None)
        if tail is not None:
            filled = [
                missing_values(name, (size, *tail)) if part is None else part
                for part, size in zip(parts, sizes, strict=True)
            ]
            columns[name] = np.concatenate(filled)
    return columns


def _known(values: np.ndarray | None) -> np.ndarray:
    """Return what every run holds."""
    assert values is not None
    return values


def _names(root: Path, run: str) -> set[str]:
    """Return the variables that a run holds: what its manifest names, not what can be seen of its folder."""
    return {name.removesuffix(".npy") for name in RunDirectory(root).list_files(SORT, run) if name.endswith(".npy")}


def _loader(root: Path, runs: Sequence[str]) -> Load:
    """Return a function that maps a variable of a run, once."""
    held = [_names(root, key) for key in runs]

    @cache
    def load(number: int, name: str) -> np.ndarray | None:
        return mapped(RunDirectory(root).unit_file(SORT, runs[number], f"{name}.npy")) if name in held[number] else None

    return load


def read_plan(root: Path, key: str) -> Plan:
    """Return the plan that a unit of `PLAN` holds."""
    return Plan.from_arrays(RunDirectory(root).load_arrays(PLAN, key))


def chunks_of(made: Plan) -> list[tuple[str, int, int]]:
    """Return axis, number and files of each chunk of the dataset."""
    found = []
    for axis, of_axis in (("structure", "n_atoms"), ("atom", "numbers")):
        n_files = sum(is_per_atom(name) == (axis == "atom") for name in made.names)
        found += [(axis, number, n_files) for number in range(made.layouts[of_axis].n_chunks)]
    return found


def write(root: Path, runs: Sequence[str], plan_key: str, axis: str, number: int) -> Payload:
    """Make one chunk file of each array along an axis; the files are those of the dataset."""
    import google_crc32c

    files, checksums = {}, {}
    for layout, values in chunk(read_plan(root, plan_key), axis, number, _loader(root, runs)):
        files[layout.name] = values.tobytes()
        checksums[layout.file(number)] = f"{google_crc32c.value(files[layout.name]):08x}"
    arrays = {"checksums": np.array(json.dumps(checksums))}
    return Payload(arrays=arrays, n_out=len(files), files=files)


def store(root: Path, plan_key: str, chunks: Sequence[str], *, target: Path, attrs: Mapping[str, Any]) -> Payload:
    """Publish the chunks that the units `chunks` of `WRITE` hold as one dataset at `target`."""
    directory = RunDirectory(root)
    made = read_plan(root, plan_key)
    report = directory.load_arrays(PLAN, plan_key, ["report"])["report"].item()

    def fill(folder: Path) -> dict[str, str]:
        checksums: dict[str, str] = {}
        for key in chunks:
            found = json.loads(directory.load_arrays(WRITE, key, ["checksums"])["checksums"].item())
            for name in found:
                file = folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                _place(directory.unit_file(WRITE, key, name.partition("/")[0]), file)
            checksums |= found
        return checksums

    told = {**attrs, "split_report": report}
    if energies := directory.load_arrays(PLAN, plan_key, [], optional=[ENERGIES]):
        told[ENERGIES] = energies[ENERGIES].item()
    publish(target, list(made.layouts.values()), fill, attrs=told)
    types = _system_types(target)
    arrays = {} if types is None else {"system_type": types}
    return Payload(arrays=arrays, n_out=len(made.row))


def _place(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system knows no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _system_types(path: Path) -> np.ndarray | None:
    from daskpipe.store.reader import open_dataset

    ds = open_dataset(path)
    return decode_names(ds["system_type"].compute(scheduler="synchronous")) if "system_type" in ds else None


def arrange(ds: xr.Dataset, *, seed: int, fractions: Mapping[str, float], rule: Split | None = None) -> xr.Dataset:
    """Return a dataset in its final order, with ``group`` and ``split``.

    The order, the groups and the splits depend on what the structures are, and on the seed: not on the order in which
    the rows arrive.

    Parameters
    ----------
    ds
        In memory.
    seed
        Of the shuffle and of the split.
    fractions
        Share of the structures of each of ``train``, ``val`` and ``test``; they sum to 1, a missing one is 0.
    rule
        What stays together, by default what comes from one seed; its own shares are not looked at.

    Returns
    -------
    xarray.Dataset
        The structures, those with the same id once, in an order that is random with respect to all they hold. Its
        attribute ``split_report`` says how the splits came out; see `daskpipe.store.arrangement.Arrangement`. With
        isolated atoms it has ``isolated_atom_energies``, too.

    Raises
    ------
    ConfigError
        If the fractions are not shares that sum to 1, or name an unknown split.
    """
    check_fractions(fractions)
    rule = (rule or Split()).model_copy(update={"split": dict(fractions)})
    # Splits that it has are made anew.
    columns = {
        name: decode_names(ds[name]) if VARIABLES[name].coded else ds[name].values for name in COLUMNS if name in ds
    }
    columns.pop("split", None)
    whole = {str(name): array.values for name, array in ds.items() if array.dims[0] == "structure"}
    whole |= {name: decode_names(ds[name]) for name in ("config_type", "head") if name in ds}
    whole["number"] = ds["numbers"].values[ds["atom_start"].values]
    columns["isolated"], energies = _isolated_atoms([whole])

    def frame_of(row: int) -> Frame:
        atoms = slice(start := int(ds["atom_start"][row]), start + int(ds["n_atoms"][row]))
        per_atom = {name: ds[name].values[atoms] for name in ("numbers", "positions")}
        return Frame(**per_atom, cell=ds["cell"].values[row], pbc=ds["pbc"].values[row])

    found = arrangement(columns, rule, seed=seed, frame_of=frame_of)
    split = np.array(SPLITS)[found.split]
    arranged = take(ds, found.order).assign(group=("structure", found.group), split=("structure", split))
    told = {"split_report": json.dumps(found.report, sort_keys=True)}
    return arranged.assign_attrs(told | ({ENERGIES: json.dumps(energies)} if energies else {}))


def pack(
    ds: xr.Dataset,
    path: Path | str,
    *,
    seed: int,
    fractions: Mapping[str, float],
    attrs: Mapping[str, Any],
    rule: Split | None = None,
) -> dict[str, Any]:
    """Arrange a dataset in memory and write it; see `arrange` and `daskpipe.store.writer.write_dataset`."""
    arranged = arrange(ds, seed=seed, fractions=fractions, rule=rule)
    splits = {"split_rule": split_rule(seed, fractions, rule)}
    splits |= {name: arranged.attrs[name] for name in ("split_report", ENERGIES) if name in arranged.attrs}
    return write_dataset(arranged, path, attrs={**attrs, **splits})


def split_rule(seed: int, fractions: Mapping[str, float], rule: Split | None = None) -> dict[str, Any]:
    """Return what the root attribute ``split_rule`` says."""
    chosen = (rule or Split()).model_dump(include={"split_by", "near_duplicates", "clusters"})
    return {"seed": seed, "fractions": dict(fractions), "unit": "group", **chosen}
