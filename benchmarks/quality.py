"""The quality gate on clean sets (false alarms) and on planted faults (misses); time and memory of a large set.

Run: ``python benchmarks/quality.py [DATASET ...]``. Without datasets it makes three: Cu-Au alloys and clusters with
EMT, molecules of H, C, N and O with GFN2-xTB, and the quickstart's alloys, slabs and particles with CHGNet labels.
``benchmarks/quality_kinds.py`` makes six more, of kinds that are imported. Of each it draws 20 subsets, half of the
seeds each, which are clean as well; then it plants each fault into 10 of them (``--subsets 10 4`` draws 10 and plants
into 4; ``--last 5`` before it plants the last five faults only).
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import xarray as xr

import daskpipe
from daskpipe.cluster.connect import connect
from daskpipe.config.load import load_config
from daskpipe.core.structures import take
from daskpipe.core.variables import VARIABLES, decode_names
from daskpipe.store import open_dataset, write_dataset
from daskpipe.store.quality.gate import judge
from daskpipe.store.quality.settings import Quality
from daskpipe.store.quality.verdict import Outcome, Verdict

N_CLEAN, N_PLANTED, N_LARGE = 20, 10, 100_000
MADE = {
    "emt_alloy": ["generate.sources.alloys.n=40", "generate.sources.clusters.n=30", "select.n=250",
                  "explore.dynamics.steps=200", "explore.batch_size=35"],
    "molecules": ["generate.sources.molecules.n=30", "select.n=150"],
    "quickstart": ["select.n=150"],
}  # fmt: skip

Rows = np.ndarray
type Plant = Callable[[xr.Dataset, np.random.Generator], tuple[xr.Dataset, Rows]]
type Fault = tuple[str, Plant]


def edit(ds: xr.Dataset, name: str, row: int, change: Callable[[np.ndarray], np.ndarray]) -> xr.Dataset:
    values = ds[name].values.copy()
    start = int(ds["atom_start"][row])
    where = slice(start, start + int(ds["n_atoms"][row])) if "atom" in ds[name].dims else slice(row, row + 1)
    values[where] = change(values[where])
    return ds.assign({name: (ds[name].dims, values, ds[name].attrs)})


def one(name: str, change: Callable[[np.ndarray], np.ndarray], *, periodic: bool = False) -> Plant:
    def plant(ds: xr.Dataset, rng: np.random.Generator) -> tuple[xr.Dataset, Rows]:
        fit = (ds["n_atoms"].values >= 2) & ((not periodic) | ds["pbc"].values.all(axis=1))
        if not fit.any():
            return ds, np.zeros(0, int)
        row = int(rng.choice(np.flatnonzero(fit)))
        return edit(ds, name, row, change), np.array([row])

    return plant


def all_of(name: str, factor: float) -> Plant:
    def plant(ds: xr.Dataset, rng: np.random.Generator) -> tuple[xr.Dataset, Rows]:
        values = (ds[name].values * factor).astype(ds[name].dtype)
        return ds.assign({name: (ds[name].dims, values, ds[name].attrs)}), np.zeros(0, int)

    return plant


def doubled(ds: xr.Dataset, rng: np.random.Generator) -> tuple[xr.Dataset, Rows]:
    rows = rng.choice(ds.sizes["structure"], math.ceil(0.03 * ds.sizes["structure"]), replace=False)
    return take(ds, np.concatenate([np.arange(ds.sizes["structure"]), rows])), rows


def moved(ds: xr.Dataset, rng: np.random.Generator) -> tuple[xr.Dataset, Rows]:
    """Append structures again under another id, shifted and with the atoms in reverse order."""
    n = ds.sizes["structure"]
    rows = rng.choice(n, math.ceil(0.03 * n), replace=False)
    ds = take(ds, np.concatenate([np.arange(n), rows]))
    for row in range(n, n + len(rows)):
        for name in ("positions", "numbers", "forces"):
            ds = edit(ds, name, row, lambda values: values[::-1])
        ds = edit(ds, "positions", row, lambda values: values + 0.37)
    ids = ds["structure_id"].values.copy()
    ids[n:] = np.frombuffer(rng.bytes(16 * len(rows)), "V16")
    return ds.assign(structure_id=("structure", ids)), np.zeros(0, int)  # either of the two may be named


def unbalanced(ds: xr.Dataset, rng: np.random.Generator) -> tuple[xr.Dataset, Rows]:
    kinds = decode_names(ds["system_type"])
    if len(set(kinds)) == 1:
        return ds, np.zeros(0, int)
    rare = np.flatnonzero(kinds == min(kinds))
    return take(ds, np.concatenate([np.flatnonzero(kinds != min(kinds)), rare[:2]])), np.zeros(0, int)


def torn(ds: xr.Dataset, rng: np.random.Generator) -> tuple[xr.Dataset, Rows]:
    group = ds["group"].values
    full = np.flatnonzero(np.bincount(group) > 2)
    row = int(rng.choice(np.flatnonzero(group == rng.choice(full))))
    return edit(ds, "split", row, lambda value: (value + 1) % 3), np.array([row])


def random_split(ds: xr.Dataset, rng: np.random.Generator) -> tuple[xr.Dataset, Rows]:
    """Let each structure go to a split of its own, as scripts do that shuffle and cut."""
    n = ds.sizes["structure"]
    split = rng.choice(3, n, p=[0.8, 0.1, 0.1]).astype(ds["split"].dtype)
    group = np.arange(n, dtype=ds["group"].dtype)
    changed = {"split": (ds["split"].dims, split, ds["split"].attrs), "group": (ds["group"].dims, group)}
    return ds.assign(changed), np.zeros(0, int)


def aside(values: np.ndarray) -> np.ndarray:
    values[0] = values[1] + 0.3
    return values


def pushed(forces: np.ndarray) -> np.ndarray:
    return forces + np.float32(0.02)


FAULTS: dict[str, Fault] = {
    "two atoms 0.5 Å apart": ("overlap", one("positions", aside)),
    "a left-handed cell": ("cell", one("cell", lambda cell: cell[:, [1, 0, 2]], periodic=True)),
    "a cell 0.3 x as long": ("cell", one("cell", lambda cell: 0.3 * cell, periodic=True)),
    "a cell of one vector twice": ("cell", one("cell", lambda cell: cell[:, [0, 0, 2]], periodic=True)),
    "an energy that is NaN": ("energy", one("energy", lambda energy: energy * np.nan)),
    "an energy x 23.06": ("energy", one("energy", lambda energy: energy * 23.0605)),
    "an energy / 27.21": ("energy", one("energy", lambda energy: energy / 27.2114)),
    "all energies x 23.06 (kcal/mol)": ("units", all_of("energy", 23.0605)),
    "all energies / 27.21 (Hartree)": ("units", all_of("energy", 1 / 27.2114)),
    "all forces x 51.42": ("units", all_of("forces", 51.4221)),
    "all forces / 51.42 (Hartree/Bohr)": ("units", all_of("forces", 1 / 51.4221)),
    "all forces x -1 (gradients)": ("units", all_of("forces", -1.0)),
    "forces of zero": ("zero_forces", one("forces", np.zeros_like)),
    "a force that is NaN": ("forces", one("forces", lambda forces: forces * np.nan)),
    "a net force of 0.035 eV/Å an atom": ("net_force", one("forces", pushed)),
    "a stress in GPa": ("stress", one("stress", lambda stress: 160.2 * stress + 1, periodic=True)),
    "3 % stored twice": ("duplicates", doubled),
    "3 % again, moved and reordered": ("duplicates", moved),
    "a requested element missing": ("elements", lambda ds, rng: (ds, np.zeros(0, int))),
    "two of a system type": ("type_balance", unbalanced),
    "a torn group": ("splits", torn),
    "a random split": ("leakage", random_split),
}


def failed(verdict: Verdict) -> dict[str, tuple[str, ...]]:
    return {check.name: check.offenders for check in verdict.checks if check.verdict == "fail"}


def subsets(ds: xr.Dataset, n: int) -> Iterator[xr.Dataset]:
    """Halves of the seeds, with what they have of splits."""
    seeds = np.unique(ds["group"].values)
    for number in range(n):
        chosen = np.random.default_rng(number).choice(seeds, len(seeds) // 2, replace=False)
        yield take(ds, np.flatnonzero(np.isin(ds["group"].values, chosen)))


def written(ds: xr.Dataset, attributes: dict[str, str], outcome: Outcome | None = None) -> Verdict:
    """Judge a dataset through the disk; the shares of a half are not those of the whole, so no rule is given."""
    with tempfile.TemporaryDirectory() as folder:
        told = {name: attributes[name] for name in ("config", "quarantined") if name in attributes}
        write_dataset(ds, Path(folder) / "d", attrs={"dataset_key": "k", **told})
        return judge(Path(folder) / "d", outcome=outcome)


def make(folder: Path) -> dict[str, Path]:
    made = {}
    for preset, overrides in MADE.items():
        config = load_config(preset, [*overrides, "cluster.workers=1", "cluster.gpus=0"])
        with connect(config.cluster, folder / f"{preset}.log") as workers:
            client = workers.client
            made[preset] = daskpipe.run(config, run_dir=folder / preset, client=client).dataset
    return made


def report(paths: dict[str, Path], n_clean: int, n_planted: int, faults: dict[str, Fault]) -> None:
    whole = {name: open_dataset(path).load() for name, path in paths.items()}
    print("clean sets: the whole, and what of each check the halves show (least to most)")
    alarms: Counter[str] = Counter()
    warned: Counter[str] = Counter()
    for name, ds in whole.items():
        halves = [written(half, ds.attrs) for half in subsets(ds, n_clean)]
        first = judge(paths[name])
        warned.update(check.name for one in [first, *halves] for check in one.checks if check.verdict == "warn")
        print(f"\n{name}: {first.n_structures} structures as {first.profile}, {'GO' if first.go else 'NO-GO'}; "
              f"halves: {sum(verdict.go for verdict in halves)} of {n_clean} GO")  # fmt: skip
        for index, check in enumerate(first.checks):
            same = [verdict.checks[index] for verdict in halves]
            alarms[check.name] += sum(one.verdict == "fail" for one in [check, *same])
            values = [one.value for one in same if one.value is not None]
            span = f"{min(values):.3g} to {max(values):.3g}" if values else "-"
            limit = "-" if check.threshold is None else f"{check.threshold:.3g}"
            value = "-" if check.value is None else f"{check.value:.3g}"
            n_skipped = sum(one.verdict == "skipped" for one in same)
            print(f"  {check.name:<20} {check.verdict:<8} {value:<10} halves {span:<22} limit {limit:<6} "
                  f"skipped in {n_skipped}", flush=True)  # fmt: skip
    n_judged = len(whole) * (n_clean + 1)
    print(f"\nfalse alarms of {n_judged} clean sets, by check: {json.dumps({k: v for k, v in alarms.items() if v})}")
    print(f"warnings, which leave the verdict GO: {json.dumps(warned)}")

    print(f"\nplanted faults, {n_planted} halves of each system: how often the right check fails and names the right "
          "structures (in brackets: other checks that fail, too)")  # fmt: skip
    for fault, (right, plant) in faults.items():
        cells = []
        for name, ds in whole.items():
            found = located = tried = 0
            others: Counter[str] = Counter()
            for number, half in enumerate(subsets(ds, n_planted)):
                planted, rows = plant(half, np.random.default_rng(number))
                if planted is half and right != "elements":
                    continue
                tried += 1
                outcome = Outcome(elements=["Pt", "H", "Cu"]) if right == "elements" else None
                reasons = failed(written(planted, ds.attrs, outcome))
                ids = {planted["structure_id"].values[row].tobytes().hex() for row in rows}
                found += right in reasons
                located += not ids or ids <= set(reasons.get(right, ()))
                others.update(reasons.keys() - {right})
            besides = (
                f" (+ {', '.join(f'{count} {other}' for other, count in sorted(others.items()))})" if others else ""
            )
            cells.append(f"{name} {found}/{tried} ids {located}/{tried}{besides}" if tried else f"{name} -")
        print(f"  {fault:<34} {right:<13} {'; '.join(cells)}", flush=True)


def large(path: str, target: str) -> None:
    """Write a set of many structures: those of a dataset, each time shaken anew."""
    ds = open_dataset(path).load()
    rows = np.arange(N_LARGE) % ds.sizes["structure"]
    rng = np.random.default_rng(0)
    ds = take(ds, rows)
    shaken = ds["positions"].values + rng.normal(0, 0.03, ds["positions"].shape).astype("f4")
    ids = np.frombuffer(rng.bytes(16 * N_LARGE), "V16")
    ds = ds.assign(positions=(VARIABLES["positions"].dims, shaken), structure_id=("structure", ids))
    write_dataset(ds, target, attrs={"dataset_key": "large"})


def gauge(path: str) -> None:
    """Judge, and print time and peak memory above that of the imports and a small set."""
    judge(sys.argv[3])
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    verdict = judge(path, Quality())
    seconds = time.process_time() - started
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    n_atoms = int(open_dataset(path)["n_atoms"].sum())
    print(f"\n{verdict.n_structures:,} structures of {n_atoms:,} atoms: {seconds:.1f} s of one core, "
          f"{1e6 * seconds / n_atoms:.1f} µs an atom, {more:.0f} MB above a small set")  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--gauge"]:
        gauge(sys.argv[2])
        return
    words, whole = sys.argv[1:], True
    n_clean, n_planted, faults = N_CLEAN, N_PLANTED, FAULTS
    if words[:1] == ["--last"]:
        faults, words = dict(list(FAULTS.items())[-int(words[1]) :]), words[2:]
    if words[:1] == ["--subsets"]:
        (n_clean, n_planted), words, whole = map(int, words[1:3]), words[3:], False
    with tempfile.TemporaryDirectory() as folder:
        paths = {path.parent.name if path.stem == "dataset" else path.stem: path for path in map(Path, words)}
        paths = paths or make(Path(folder))
        report(paths, n_clean, n_planted, faults)
        if whole:
            small = str(next(iter(paths.values())))
            large(small, f"{folder}/large.zarr")
            subprocess.run([sys.executable, __file__, "--gauge", f"{folder}/large.zarr", small], check=True)


if __name__ == "__main__":
    main()
