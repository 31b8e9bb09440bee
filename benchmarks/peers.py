"""Time the whole job beside a peer, wfl: seeds, molecular dynamics, SOAP, farthest points, labels.

Run: ``python benchmarks/peers.py PYTHON_OF_WFL [ROUNDS]``, with the Python of the environment that ``peers_wfl.py``
describes. 40 alloys of Cu, Ag and Au of 32 atoms, 500 steps of Langevin dynamics with EMT (900 K, 4 fs) and a frame
every 10, SOAP (n_max 8, l_max 6, 5 Å) of each frame, 100 by farthest point sampling, labels with EMT; two processes
each, whole commands in turn. daskpipe also checks seeds, guards trajectories, checks labels, keeps a ledger, and
writes a dataset with splits.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

N_ALLOYS, N_STEPS, N_PICKS = 40, 500, 100

CONFIG = f"""
defaults: [emt_alloy, _self_]
name: peers
generate:
  sources:
    alloys: {{generator: alloys, n: {N_ALLOYS}, n_atoms: 32, elements: {{Cu: [0, 1], Ag: [0, 1], Au: [0, 1]}}}}
explore:
  batch_size: {N_ALLOYS // 2}
  dynamics:
    {{ensemble: nvt_langevin, temperatures: [900.0], timestep: 4.0, steps: {N_STEPS}, stride: 10, equilibration: 0}}
describe: {{descriptor: soap, params: {{r_cut: 5.0, n_max: 8, l_max: 6, sigma: 0.5}}}}
select: {{method: fps, n: {N_PICKS}}}
cluster: {{workers: 2, gpus: 0}}
"""


def main() -> None:
    python, rounds = Path(sys.argv[1]).absolute(), int((sys.argv[2:] or ["3"])[0])
    seconds: dict[str, list[float]] = {"wfl": [], "daskpipe": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "peers.yaml").write_text(CONFIG)
            theirs = [python, Path(__file__).with_name("peers_wfl.py"), folder, N_ALLOYS, N_STEPS, N_PICKS]
            commands = {
                "wfl": list(map(str, theirs)),
                "daskpipe": [sys.executable, "-m", "daskpipe", "run", str(folder / "peers.yaml"), "--run-dir", "run"],
            }
            for who, command in commands.items():
                environment = os.environ | {"WFL_NUM_PYTHON_SUBPROCESSES": "2", "OMP_NUM_THREADS": "1"}
                started = time.perf_counter()
                subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
                seconds[who].append(time.perf_counter() - started)
    medians = {who: statistics.median(found) for who, found in seconds.items()}
    for who, found in seconds.items():
        spread = " ".join(f"{value:.1f}" for value in found)
        print(f"{who:<10}{medians[who]:>7.1f} s   {medians['wfl'] / medians[who]:5.1f} x wfl   ({spread})")


if __name__ == "__main__":
    main()
