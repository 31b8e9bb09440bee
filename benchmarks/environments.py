"""A million atom environments, described at atom level by one and by two workers: atoms a second, and memory.

Run: ``python benchmarks/environments.py [ATOMS]``. Frames are 108-atom fcc alloys of four elements, in exploration
units of 50; each is described as in a run (``describe.level=atom``): SOAP of 3,696 features an atom, reduced to 16. All
full descriptors together would take 14.8 GB for a million atoms. The peak of each worker's resident memory is what
Linux keeps for it (VmHWM; ``ru_maxrss`` starts from that of the process that forked it), of fresh workers each time; a
quarter of the frames shows that it does not grow with them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import dask
import numpy as np
from ase.build import bulk
from distributed import Client, LocalCluster, as_completed

from daskpipe.core.structures import from_atoms, round_positions
from daskpipe.engine.commit import commit
from daskpipe.engine.rows import dataset_to_arrays
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload, Unit, unit_key
from daskpipe.stages.describe.settings import Describe
from daskpipe.stages.describe.stage import FIT, VERSION, describe_unit, fit_reduction

SPECIES = ["Ag", "Au", "Cu", "Pt"]
SETTINGS = Describe(
    descriptor="soap", params={"r_cut": 5.0, "n_max": 8, "l_max": 6, "sigma": 0.5}, level="atom", dims=16
)
ATOMS_A_FRAME = 108
FRAMES_A_UNIT = 50


def explored(root: Path, index: int) -> str:
    """Commit one exploration unit of random frames; return its key."""
    rng = np.random.default_rng(index)
    frames = []
    for _ in range(FRAMES_A_UNIT):
        atoms = bulk("Cu", "fcc", a=4.0, cubic=True).repeat(3)
        atoms.symbols[:] = rng.choice(SPECIES, len(atoms))
        atoms.rattle(0.15, rng=rng)
        frames.append(round_positions(atoms))
    key = unit_key("explore", 1, {"index": index}, [], 0)
    payload = Payload(arrays=dataset_to_arrays(from_atoms(frames)), n_out=len(frames))
    commit(root, Unit(stage="explore", index=index, key=key, n_inputs=len(frames)), payload)
    return key


def described(root: Path, index: int, key: str, fit_key: str, trial: str) -> int:
    """Describe one unit and commit it, as a run does; return the atoms."""
    (payload,) = dask.compute(
        describe_unit(root, "explore", key, FRAMES_A_UNIT, SETTINGS, SPECIES, fit_key), scheduler="synchronous"
    )
    own = unit_key("describe", VERSION, {"trial": trial}, [key], 0)
    commit(root, Unit(stage="describe", index=index, key=own, n_inputs=FRAMES_A_UNIT), payload)
    return len(payload.arrays["environments"])


def peak() -> float:
    """Peak resident memory of this process, MB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def run(root: Path, keys: list[str], fit_key: str, n_workers: int) -> None:
    options = {"n_workers": n_workers, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        trial = f"{n_workers} {len(keys)}"
        # One unit on each worker loads what the first unit of a run would load.
        warm = [
            client.submit(described, root, -1, keys[0], fit_key, f"warm {address}", workers=[address], pure=False)
            for address in client.scheduler_info()["workers"]
        ]
        client.gather(warm)
        loaded = client.run(peak)
        started = time.perf_counter()
        futures = [client.submit(described, root, n, key, fit_key, trial) for n, key in enumerate(keys)]
        n_atoms = sum(done.result() for done in as_completed(futures))
        seconds = time.perf_counter() - started
        first, last = (", ".join(f"{value:.0f}" for value in found.values()) for found in (loaded, client.run(peak)))
        print(
            f"{n_workers:>7}{len(keys) * FRAMES_A_UNIT:>9,}{n_atoms:>12,}{seconds:>9.1f}{n_atoms / seconds:>10,.0f}"
            f"{first:>18}{last:>18}",
            flush=True,
        )


def main() -> None:
    n_atoms = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    n_units = max(4, round(n_atoms / (ATOMS_A_FRAME * FRAMES_A_UNIT)))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        keys = [explored(root, index) for index in range(n_units)]
        started = time.perf_counter()
        payload = fit_reduction(root, "explore", keys, SETTINGS, SPECIES, 0)
        print(f"axes of {payload.n_out} frames and {SETTINGS.atom_sample} atoms: {time.perf_counter() - started:.1f} s")
        fit_key = unit_key(FIT, VERSION, {}, keys, 0)
        commit(root, Unit(stage=FIT, index=0, key=fit_key, n_inputs=payload.n_out), payload)
        assert (
            RunDirectory(root).load_arrays(FIT, fit_key, ["environment_axes"])["environment_axes"].shape[0]
            == SETTINGS.dims
        )
        print(
            f"{'workers':>7}{'frames':>9}{'atoms':>12}{'seconds':>9}{'atoms/s':>10}"
            f"{'MB after one unit':>18}{'MB after all':>18}"
        )
        for n_workers, some in ((2, keys[: n_units // 4]), (2, keys), (1, keys)):
            run(root, some, fit_key, n_workers)


if __name__ == "__main__":
    main()
