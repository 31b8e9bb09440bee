"""Make a dataset of labelled rows: sort, plan, write and publish in units of their own, or all at once in memory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.isolated_atoms import ReferenceEnergies, isolated_rows, reference_energies, reference_rows
from daskpipe.core.structures import atom_starts, concat, take
from daskpipe.core.variables import SPLITS, VARIABLES, decode_names, is_per_atom, missing_values
from daskpipe.engine.rows import dataset_to_arrays, read_unit
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload
from daskpipe.store.arrangement import COLUMNS, find_arrangement
from daskpipe.store.connectivity import Frame
from daskpipe.store.parts import PLANNED, DatasetPlan, Load, make_chunk, map_array_file, merge_code_names, sort_run
from daskpipe.store.reader import read_rows
from daskpipe.store.splits import Split, check_fractions
from daskpipe.store.writer import publish_dataset, write_dataset

if TYPE_CHECKING:
    import xarray as xr

VERSION = 2
"""Version of the units of the store; part of their keys."""

PLAN_VERSION = 3
"""Version of the units of `PLAN`: they read the same rows as before, and make other splits."""

SORT, PLAN, WRITE = "store-sort", "store-plan", "store-write"
"""Names of the stages before the dataset is published."""

ENERGIES = "isolated_atom_energies"
"""Root attribute, JSON: energy of an isolated atom, eV, by head and symbol."""

RUN_BYTES = 2**26
RUN_STRUCTURES = 65_536
"""Size of a run of rows; one task of `SORT` holds it in memory three times."""


@dataclass(frozen=True, kw_only=True)
class LabelledUnit:
    """A committed unit whose rows become part of the dataset.

    Parameters
    ----------
    stage, key
        Stage and key of the unit.
    features
        Key of the unit with the features of the rows, if these do not hold them themselves.
    checks
        Key of the unit with the results of checks of some of the rows, if there is one.
    verdicts
        Key of the unit in which all labels are judged together, and number of the first of these rows there.
    """

    stage: str
    key: str
    features: str | None = None
    checks: str | None = None
    verdicts: tuple[str, int] | None = None

    def list_keys(self) -> list[str]:
        """Return the keys of the units that the rows come from."""
        return [self.key, *([self.checks] if self.checks else []), *([self.verdicts[0]] if self.verdicts else [])]

    def list_upstream(self) -> dict[str, Any]:
        """Return what decides the rows; without checks as before there were any."""
        facts = asdict(self)
        return {name: fact for name, fact in facts.items() if fact is not None or name not in ("checks", "verdicts")}


def read_dataset_rows(path: Path, start: int, stop: int) -> Payload:
    """Read rows of a dataset without the variables of the whole: features, strata, groups and splits."""
    ds = read_rows(path, start, stop).drop_vars(["group", "split", "features", "cluster"], errors="ignore")
    return Payload(arrays=dataset_to_arrays(ds), n_out=stop - start)


def sort_rows(root: Path, sources: Sequence[LabelledUnit], *, seed: int, features_stage: str) -> Payload:
    """Sort the rows of some units into the order of the dataset; each variable becomes a file that can be mapped.

    Parameters
    ----------
    root
        Run directory.
    sources
        Units with the rows.
    seed
        Seed of the shuffle.
    features_stage
        Stage of the units `LabelledUnit.features`.
    """
    ds = concat(list(iter_labelled_rows(root, sources, features_stage)))
    files = sort_run(ds, seed=seed)
    names = {
        name: sorted(set(ds[name].values.tolist()))
        for name in map(str, ds.data_vars)
        if VARIABLES[name].coded and name not in PLANNED
    }
    arrays = {"names": np.array(json.dumps(names))}
    return Payload(arrays=arrays, n_out=ds.sizes["structure"], files=files)


def iter_labelled_rows(
    root: Path, sources: Iterable[LabelledUnit], features_stage: str = "describe"
) -> Iterator[xr.Dataset]:
    """Yield the rows of each unit, with their features, and with what checks of them gave."""
    # One unit holds the verdicts on all labels: it is read once.
    load_verdicts = cache(partial(RunDirectory(root).load_arrays, "label-judge"))
    for source in sources:
        ds = read_unit(root, source.stage, source.key)
        if source.checks is not None:
            ds = _replace_rows(ds, read_unit(root, "label-check", source.checks))
        if source.verdicts is not None:
            key, start = source.verdicts
            rows = slice(start, start + ds.sizes["structure"])
            ds = ds.assign({name: (VARIABLES[name].dims, words[rows]) for name, words in load_verdicts(key).items()})
        if source.features is not None:
            features = RunDirectory(root).load_arrays(features_stage, source.features, ["features"])["features"]
            ds = ds.assign(features=(VARIABLES["features"].dims, features))
        yield ds


def _replace_rows(ds: xr.Dataset, others: xr.Dataset) -> xr.Dataset:
    """Return a dataset whose structures are those of another one where that has them, in the same order.

    Parameters
    ----------
    ds, others
        In memory. Each structure of `others` is one of `ds`; its variables may be more.
    """
    row_of = {id_.tobytes(): row for row, id_ in enumerate(ds["structure_id"].values)}
    n_before = ds.sizes["structure"]
    rows = list(range(n_before))
    for number, id_ in enumerate(others["structure_id"].values):
        rows[row_of[id_.tobytes()]] = n_before + number
    return take(concat([ds, others]), rows)


def plan_dataset(root: Path, runs: Sequence[str], rule: Split, *, seed: int) -> Payload:
    """Plan the order, the groups and the splits of all rows of the sorted runs; see `DatasetPlan`.

    Rows in the gaps between blocks of time are left out, and counted in the report.

    Memory: about 200 bytes per structure, and its features.

    Parameters
    ----------
    root
        Run directory.
    runs
        Keys of the units of `SORT`.
    rule
        Rule of the splits.
    seed
        Seed of the shuffle and of the splits.
    """
    load = _make_loader(root, runs)
    n_atoms = [_require_values(load(number, "n_atoms")) for number in range(len(runs))]
    sizes = [len(of_run) for of_run in n_atoms]
    columns = _join_columns(load, sizes)
    columns["reference"], energies = _reference_data([_columns_of_run(load, number) for number in range(len(runs))])
    ends = np.cumsum(sizes)
    arrangement = find_arrangement(columns, rule, seed=seed, frame_of=_make_frame_reader(load, n_atoms))
    run = np.searchsorted(ends, arrangement.order, side="right")
    tables = [json.loads(RunDirectory(root).load_arrays(SORT, key, ["names"])["names"].item()) for key in runs]
    names = {name for key in runs for name in _variables_of_run(root, key)}
    made = DatasetPlan(
        run=run.astype(np.int32),
        row=arrangement.order - (ends - sizes)[run],
        n_atoms=np.concatenate(n_atoms)[arrangement.order],
        group=arrangement.group,
        split=arrangement.split,
        names=tuple(sorted(names | set(PLANNED))),
        codes=merge_code_names(tables),
        n_features=columns["features"].shape[1] if "features" in columns else 0,
    )
    arrays = {**made.as_arrays(), "report": np.array(json.dumps(arrangement.report, sort_keys=True))}
    if energies:
        arrays[ENERGIES] = np.array(json.dumps(energies))
    return Payload(arrays=arrays, n_out=len(arrangement.order))


def _columns_of_run(load: Load, number: int) -> dict[str, np.ndarray]:
    """Return the variables that identify reference data and energies of isolated atoms, for the rows of one run."""
    columns = {name: _require_values(load(number, name)) for name in ("n_atoms", "cell", "pbc", "charge", "numbers")}
    columns["number"] = columns.pop("numbers")[atom_starts(columns["n_atoms"])]
    optional = {name: load(number, name) for name in ("config_type", "head", "energy", "reference")}
    return columns | {name: values for name, values in optional.items() if values is not None}


def _reference_data(parts: Sequence[Mapping[str, np.ndarray]]) -> tuple[np.ndarray, ReferenceEnergies]:
    """Find the reference data among the rows of all runs, and the energies of the isolated atoms."""
    energies: ReferenceEnergies = {}
    for columns in parts:
        for head, of_head in reference_energies(columns, isolated_rows(columns)).items():
            known = energies.setdefault(head, {})
            known |= {symbol: min(energy, known.get(symbol, energy)) for symbol, energy in of_head.items()}
    reference = np.concatenate([reference_rows(columns) for columns in parts])
    return reference, {head: dict(sorted(energies[head].items())) for head in sorted(energies)}


def _make_frame_reader(load: Load, n_atoms: Sequence[np.ndarray]) -> Callable[[int], Frame]:
    """Return a function that reads the geometry of a row; rows are counted over all runs."""
    ends = np.cumsum([len(of_run) for of_run in n_atoms])
    first = [atom_starts(of_run) for of_run in n_atoms]

    def frame_of(number: int) -> Frame:
        run = int(np.searchsorted(ends, number, side="right"))
        row = number - int(ends[run]) + len(n_atoms[run])
        atoms = slice(start := int(first[run][row]), start + int(n_atoms[run][row]))
        return Frame(
            numbers=_require_values(load(run, "numbers"))[atoms],
            positions=_require_values(load(run, "positions"))[atoms],
            cell=_require_values(load(run, "cell"))[row],
            pbc=_require_values(load(run, "pbc"))[row],
        )

    return frame_of


def _join_columns(load: Load, sizes: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the variables that decide order and groups, for the rows of all runs, one run after the other."""
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


def _require_values(values: np.ndarray | None) -> np.ndarray:
    """Return a variable that every run holds."""
    assert values is not None
    return values


def _variables_of_run(root: Path, run: str) -> set[str]:
    """Return the variables of a run, from its manifest: the listing of a folder on a shared disk may be out of date."""
    return {name.removesuffix(".npy") for name in RunDirectory(root).list_files(SORT, run) if name.endswith(".npy")}


def _make_loader(root: Path, runs: Sequence[str]) -> Load:
    """Return a function that maps a variable of a run into memory, once."""
    names = [_variables_of_run(root, key) for key in runs]

    @cache
    def load_variable(number: int, name: str) -> np.ndarray | None:
        return (
            map_array_file(RunDirectory(root).unit_file(SORT, runs[number], f"{name}.npy"))
            if name in names[number]
            else None
        )

    return load_variable


def read_plan(root: Path, key: str) -> DatasetPlan:
    """Read the plan of a unit of `PLAN`."""
    return DatasetPlan.from_arrays(RunDirectory(root).load_arrays(PLAN, key))


def chunks_of(made: DatasetPlan) -> list[tuple[str, int, int]]:
    """List the chunks of a dataset: axis, number, and number of files of each."""
    chunks = []
    for axis, of_axis in (("structure", "n_atoms"), ("atom", "numbers")):
        n_files = sum(is_per_atom(name) == (axis == "atom") for name in made.names)
        chunks += [(axis, number, n_files) for number in range(made.layouts[of_axis].n_chunks)]
    return chunks


def write_chunks(root: Path, runs: Sequence[str], plan_key: str, axis: str, number: int) -> Payload:
    """Write one chunk of each array along an axis; the files become those of the dataset."""
    import google_crc32c

    files, checksums = {}, {}
    for layout, values in make_chunk(read_plan(root, plan_key), axis, number, _make_loader(root, runs)):
        files[layout.name] = values.tobytes()
        checksums[layout.file_name(number)] = f"{google_crc32c.value(files[layout.name]):08x}"
    arrays = {"checksums": np.array(json.dumps(checksums))}
    return Payload(arrays=arrays, n_out=len(files), files=files)


def publish_chunks(
    root: Path, plan_key: str, chunks: Sequence[str], *, target: Path, attrs: Mapping[str, Any]
) -> Payload:
    """Publish the chunks of the units `chunks` of `WRITE` as one dataset at `target`."""
    directory = RunDirectory(root)
    made = read_plan(root, plan_key)
    report = directory.load_arrays(PLAN, plan_key, ["report"])["report"].item()

    def link_chunks(folder: Path) -> dict[str, str]:
        checksums: dict[str, str] = {}
        for key in chunks:
            of_unit = json.loads(directory.load_arrays(WRITE, key, ["checksums"])["checksums"].item())
            for name in of_unit:
                file = folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                _link_file(directory.unit_file(WRITE, key, name.partition("/")[0]), file)
            checksums |= of_unit
        return checksums

    all_attrs = {**attrs, "split_report": report}
    if energies := directory.load_arrays(PLAN, plan_key, [], optional=[ENERGIES]):
        all_attrs[ENERGIES] = _join_energies(all_attrs.get(ENERGIES), energies[ENERGIES].item())
    publish_dataset(target, list(made.layouts.values()), link_chunks, attrs=all_attrs)
    types = _read_system_types(target)
    arrays = {} if types is None else {"system_type": types}
    return Payload(arrays=arrays, n_out=len(made.row))


def name_atom_energies(energies: Mapping[str, float]) -> dict[str, str]:
    """Return the root attribute with energies of isolated atoms by symbol, eV; none if there are none."""
    return {ENERGIES: json.dumps({"Default": dict(energies)})} if energies else {}


def _join_energies(of_teacher: str | None, of_rows: str) -> str:
    """Join the energies of isolated atoms that the teacher gave and those among the rows, which count first."""
    joined: ReferenceEnergies = json.loads(of_teacher or "{}")
    for head, energies in json.loads(of_rows).items():
        joined[head] = dict(sorted({**joined.get(head, {}), **energies}.items()))
    return json.dumps(dict(sorted(joined.items())))


def _link_file(source: Path, target: Path) -> None:
    """Link a file to a second name; copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _read_system_types(path: Path) -> np.ndarray | None:
    """Read the system types of a dataset, words, shape (structure,); None if it has none."""
    from daskpipe.store.reader import open_dataset

    ds = open_dataset(path)
    return decode_names(ds["system_type"].compute(scheduler="synchronous")) if "system_type" in ds else None


def arrange_dataset(
    ds: xr.Dataset, *, seed: int, fractions: Mapping[str, float], rule: Split | None = None
) -> xr.Dataset:
    """Arrange a dataset in its final order, and add ``group`` and ``split``.

    The order, the groups and the splits depend on the structures and the seed, not on the order of the rows.

    Parameters
    ----------
    ds
        Dataset in memory.
    seed
        Seed of the shuffle and of the splits.
    fractions
        Shares of ``train``, ``val`` and ``test``; they sum to 1, a missing one is 0.
    rule
        Rule of what stays together, by default the frames of one seed; `fractions` replace its own shares.

    Returns
    -------
    xarray.Dataset
        The structures, those with the same id once, in an order that is random with respect to their properties. The
        attribute ``split_report`` describes the splits, see `daskpipe.store.arrangement.Arrangement`. With isolated
        atoms there is the attribute ``isolated_atom_energies``, too.

    Raises
    ------
    ConfigError
        If the fractions are not shares that sum to 1, or name an unknown split.
    """
    check_fractions(fractions)
    rule = (rule or Split()).model_copy(update={"split": dict(fractions)})
    # Splits that the dataset already has are replaced.
    columns = {
        name: decode_names(ds[name]) if VARIABLES[name].coded else ds[name].values for name in COLUMNS if name in ds
    }
    columns.pop("split", None)
    whole = {str(name): array.values for name, array in ds.items() if array.dims[0] == "structure"}
    whole |= {name: decode_names(ds[name]) for name in ("config_type", "head") if name in ds}
    whole["number"] = ds["numbers"].values[ds["atom_start"].values]
    columns["reference"], energies = _reference_data([whole])

    def frame_of(row: int) -> Frame:
        atoms = slice(start := int(ds["atom_start"][row]), start + int(ds["n_atoms"][row]))
        per_atom = {name: ds[name].values[atoms] for name in ("numbers", "positions")}
        return Frame(**per_atom, cell=ds["cell"].values[row], pbc=ds["pbc"].values[row])

    arrangement = find_arrangement(columns, rule, seed=seed, frame_of=frame_of)
    split = np.array(SPLITS)[arrangement.split]
    arranged = take(ds, arrangement.order).assign(group=("structure", arrangement.group), split=("structure", split))
    attrs = {"split_report": json.dumps(arrangement.report, sort_keys=True)}
    return arranged.assign_attrs(attrs | ({ENERGIES: json.dumps(energies)} if energies else {}))


def arrange_and_write(
    ds: xr.Dataset,
    path: Path | str,
    *,
    seed: int,
    fractions: Mapping[str, float],
    attrs: Mapping[str, Any],
    rule: Split | None = None,
) -> dict[str, Any]:
    """Arrange a dataset in memory and write it; see `arrange_dataset` and `daskpipe.store.writer.write_dataset`."""
    arranged = arrange_dataset(ds, seed=seed, fractions=fractions, rule=rule)
    splits = {"split_rule": split_rule(seed, fractions, rule)}
    splits |= {name: arranged.attrs[name] for name in ("split_report", ENERGIES) if name in arranged.attrs}
    return write_dataset(arranged, path, attrs={**attrs, **splits})


def split_rule(seed: int, fractions: Mapping[str, float], rule: Split | None = None) -> dict[str, Any]:
    """Return the root attribute ``split_rule``: seed, shares, and the rule of what stays together."""
    chosen = (rule or Split()).model_dump(include={"split_by", "near_duplicates", "clusters"})
    return {"seed": seed, "fractions": dict(fractions), "unit": "group", **chosen}
