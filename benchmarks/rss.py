"""Random structure search with the preset ``rss``: the try that first finds a known crystal, of 200 at most.

Run: ``python benchmarks/rss.py FOLDER [FORMULA ...]`` (Si and TiO2 by default). Each run of the pipeline makes 40
random crystals and relaxes them with CHGNet, cells included; runs go on with other seeds until a known crystal is
found. The last frame of each relaxation is compared with the known ones by pymatgen's StructureMatcher.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk
from ase.spacegroup import crystal
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.io.ase import AseAtomsAdaptor

import daskpipe
from daskpipe.core.structures import to_atoms
from daskpipe.engine.rows import read_unit
from daskpipe.engine.run_directory import RunDirectory

TRIES, CHUNK = 200, 40
ATOMS = {"Si": [2, 8], "TiO2": [6, 12]}
KNOWN = {
    "Si": {"diamond": bulk("Si")},
    "TiO2": {
        "rutile": crystal(["Ti", "O"], [(0, 0, 0), (0.3053, 0.3053, 0)], spacegroup=136,
                          cellpar=[4.594, 4.594, 2.959, 90, 90, 90]),
        "anatase": crystal(["Ti", "O"], [(0, 0, 0), (0, 0, 0.2081)], spacegroup=141,
                           cellpar=[3.785, 3.785, 9.514, 90, 90, 90]),
        "brookite": crystal(["Ti", "O", "O"], [(0.1289, 0.0972, 0.8628), (0.0101, 0.1486, 0.1824),
                                               (0.2304, 0.1130, 0.5371)], spacegroup=61,
                            cellpar=[9.174, 5.449, 5.138, 90, 90, 90]),
    },
}  # fmt: skip


def last_frames(run_dir: Path) -> list[tuple[int, Any, float]]:
    """Return the number of the seed, the last frame and its energy an atom, of each relaxation of a run."""
    directory = RunDirectory(run_dir)
    order: dict[bytes, int] = {}
    last: dict[bytes, tuple[int, Any, float]] = {}
    for stage in ("generate", "explore"):
        units = [json.loads(file.read_bytes())["unit"] for file in directory.list_manifests()]
        for unit in sorted((unit for unit in units if unit["stage"] == stage), key=lambda unit: int(unit["index"])):
            ds = read_unit(run_dir, stage, unit["key"])
            for row in range(ds.sizes["structure"]):
                if stage == "generate":
                    order.setdefault(ds["structure_id"].values[row].tobytes(), len(order))
                    continue
                parent, step = ds["parent_id"].values[row].tobytes(), int(ds["step"][row])
                if parent not in last or step > last[parent][0]:
                    last[parent] = step, to_atoms(ds, row), float(ds["explore_energy"][row] / ds["n_atoms"][row])
    return sorted((order[parent], atoms, energy) for parent, (_, atoms, energy) in last.items())


def search(folder: Path, formula: str) -> None:
    matcher = StructureMatcher(ltol=0.25, stol=0.35, angle_tol=7)
    known = {name: AseAtomsAdaptor.get_structure(atoms) for name, atoms in KNOWN[formula].items()}
    lowest, n_done, started = np.inf, 0, time.perf_counter()
    energies: list[float] = []
    hits: dict[str, tuple[int, float]] = {}
    for number in range(TRIES // CHUNK):
        run_dir = folder / f"{formula}-{number}"
        overrides = [
            f"seed={number}", f"generate.sources.random.n={CHUNK}", f"generate.sources.random.formula={formula}",
            f"generate.sources.random.n_atoms={ATOMS[formula]}".replace(" ", ""), "explore.batch_size=5",
        ]  # fmt: skip
        daskpipe.run("rss", overrides, run_dir=run_dir)
        for index, atoms, energy in last_frames(run_dir):
            energies.append(energy)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                structure = AseAtomsAdaptor.get_structure(atoms)
                for name, other in known.items():
                    if matcher.fit(other, structure):
                        hits.setdefault(name, (n_done + index + 1, energy))
        lowest, n_done = min(energies), n_done + CHUNK
        said = ", ".join(f"{name} at try {at} ({energy:.3f} eV an atom)" for name, (at, energy) in hits.items())
        print(
            f"{formula}: {n_done} tries, {len(energies)} relaxed, {time.perf_counter() - started:.0f} s; lowest energy "
            f"{lowest:.3f} eV an atom; {np.sum(np.array(energies) < lowest + 0.05)} within 0.05 eV of it; found: "
            f"{said or 'none'}",
            flush=True,
        )
        if hits:
            return


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for formula in sys.argv[2:] or KNOWN:
        search(folder, formula)


if __name__ == "__main__":
    main()
