"""Run the configs that ``daskpipe new`` writes for systems of different kinds, shortened, from end to end.

Run: ``python benchmarks/new_systems.py FOLDER [NUMBER ...]``. Each config is written by the command, and run by
``daskpipe run`` with few structures, steps and labels; prints what it ended in, the gate's verdict, the checks that
failed, and the time. Results: ``results/new_systems.txt``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from ase.build import bulk
from ase.io import write

SYSTEMS = (
    "MgO",
    "CuZn --kinds bulk,defects,surfaces",
    "CCO --kinds molecules,liquid",
    "H2O",
    "Si --kinds bulk,amorphous,defects",
    "CuAu",
    "MoS2 --kinds 2d,bulk",
    "Pt CO --kinds adsorbates,surfaces",
    "NaCl.cif",
    "SrTiO3",
    "C --kinds 2d",
    "Fe2O3 --kinds bulk,defects",
)
SHORT = ("explore.dynamics.steps=20", "explore.dynamics.equilibration=5", "explore.dynamics.stride=5", "select.n=16")
N_SEEDS = 6


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "NaCl.cif", bulk("NaCl", "rocksalt", a=5.64, cubic=True))
    chosen = [int(number) for number in sys.argv[2:]] or range(len(SYSTEMS))
    for number in chosen:
        print(describe_run(folder, SYSTEMS[number]), flush=True)


def describe_run(folder: Path, system: str) -> str:
    file = folder / f"{SYSTEMS.index(system)}.yaml"
    daskpipe = [sys.executable, "-m", "daskpipe"]
    written = subprocess.run(
        [*daskpipe, "new", *system.split(), "-o", str(file), "--force"], cwd=folder, capture_output=True, text=True
    )
    if written.returncode:
        return f"{system}: not written: {written.stderr.strip()}"
    few = [f"generate.n={N_SEEDS}"] if "\n  n: " in file.read_text() else []
    started = time.perf_counter()
    run_dir = folder / f"run-{SYSTEMS.index(system)}"
    command = [*daskpipe, "run", str(file), *SHORT, *few, "--run-dir", str(run_dir), "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if not (run_dir / "dataset.zarr").is_dir():
        return f"{system}: exit {done.returncode} after {seconds:.0f} s: {done.stdout[-600:]} {done.stderr[-600:]}"
    return f"{system}: exit {done.returncode} after {seconds:.0f} s: {summarise(run_dir, daskpipe)}"


def summarise(run_dir: Path, daskpipe: list[str]) -> str:
    gate = subprocess.run([*daskpipe, "quality", str(run_dir), "--json"], capture_output=True, text=True)
    answer = json.loads(gate.stdout)
    failed = [check["name"] for check in answer["checks"] if check["verdict"] == "fail"]
    verdict = "GO" if answer["go"] else "NO-GO"
    return f"{verdict} of {answer['n_structures']} structures; failed: {', '.join(failed) or 'none'}"


if __name__ == "__main__":
    main()
