"""What leakage hides: 3 systems x 20 trajectories, split in each way, and a small model trained under each split.

    python benchmarks/splits.py

Alloys, surfaces and clusters of Cu, Ag and Au, EMT throughout: 20 seeds of each system, one trajectory a seed,
10 frames a trajectory. The model is kernel ridge regression of the energy an atom on averaged SOAP vectors; its two
hyper-parameters are chosen on the validation split. "test" is the error that its user would report, "unseen" that on
what the model will meet: trajectories of 60 other seeds of the same systems, which no split has seen.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import xarray as xr
from sklearn.kernel_ridge import KernelRidge

import daskpipe
from daskpipe.core.structures import take, to_atoms
from daskpipe.core.variables import SPLITS
from daskpipe.store.arrangement import COLUMNS, find_arrangement
from daskpipe.store.reader import read_rows
from daskpipe.store.splits import Split, number_trajectories, seed_ids_of

SYSTEMS = ("alloys", "surfaces", "clusters")
N_SEEDS, N_FRAMES, STRIDE = 20, 10, 10
OVERRIDES = [
    "explore=emt",
    "label=emt",
    *(f"generate.sources.{name}.n={N_SEEDS}" for name in SYSTEMS),
    f"explore.dynamics.steps={N_FRAMES * STRIDE}",
    f"explore.dynamics.stride={STRIDE}",
    "explore.batch_size=10",
    f"select.n={3 * N_SEEDS * N_FRAMES}",
    "select.duplicate_distance=0",
]
WAYS = ("structure", "trajectory", "seed", "composition", "cluster")


def frames(folder: Path, seed: int) -> xr.Dataset:
    """Labelled frames of a run."""
    made = daskpipe.run("quickstart", [*OVERRIDES, f"seed={seed}"], run_dir=folder / f"run{seed}")
    return read_rows(made.dataset, 0, made.stages["store"]["out"])


def table(ds: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """SOAP vectors and fractions of the elements, and energies an atom."""
    atoms = [to_atoms(ds, index) for index in range(ds.sizes["structure"])]
    soap = daskpipe.SOAP(species=["Cu", "Ag", "Au"], r_cut=5.0, n_max=6, l_max=4, sigma=0.6, average="outer")
    vectors = soap.compute(atoms).astype(float)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), ds["energy"].values / ds["n_atoms"].values


def error(model: KernelRidge, x: np.ndarray, y: np.ndarray, mean: float) -> float:
    """Root mean square error, meV/atom."""
    return 1000 * float(np.sqrt(np.mean((model.predict(x) + mean - y) ** 2)))


def trained(x: np.ndarray, y: np.ndarray, split: np.ndarray) -> tuple[KernelRidge, float]:
    """Train on the training split, and choose by the error on the validation split."""
    parts = {name: split == code for code, name in enumerate(SPLITS)}
    mean = float(y[parts["train"]].mean())
    found = []
    for gamma in (1.0, 3.0, 10.0, 30.0, 100.0):
        for alpha in (1e-6, 1e-5, 1e-4, 1e-3):
            model = KernelRidge(kernel="rbf", gamma=gamma, alpha=alpha)
            model.fit(x[parts["train"]], y[parts["train"]] - mean)
            found.append((error(model, x[parts["val"]], y[parts["val"]], mean), len(found), model))
    return min(found)[2], mean


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        ds, unseen = (frames(Path(name), seed) for seed in (0, 1))
    known = set(seed_ids_of({key: ds[key].values for key in ("structure_id", "parent_id")}).tolist())
    assert not known & set(seed_ids_of({key: unseen[key].values for key in ("structure_id", "parent_id")}).tolist())
    # Splits that came with the frames would be kept.
    columns = {key: ds[key].values for key in COLUMNS if key in ds and key != "split"}
    n_trajectories = len(set(number_trajectories(columns).tolist()))
    print(f"{ds.sizes['structure']} structures of {n_trajectories} trajectories; {unseen.sizes['structure']} unseen")
    print("energy errors of a kernel model, meV/atom (root mean square)\n")
    print("split by     groups  largest  train/val/test     leakage   val    test  unseen  unseen/test")
    new_x, new_y = table(unseen)
    for way in WAYS:
        found = find_arrangement(columns, Split(split_by=way), seed=0)
        x, y = table(take(ds, found.order))
        pairs = set(zip(found.group.tolist(), found.split.tolist(), strict=True))
        assert len(pairs) == found.report["n_groups"], "a group is torn"
        model, mean = trained(x, y, found.split)
        val, test = (error(model, x[found.split == code], y[found.split == code], mean) for code in (1, 2))
        later = error(model, new_x, new_y, mean)
        counts = "/".join(str(found.report["counts"][split]) for split in SPLITS)
        print(
            f"{way:<12} {found.report['n_groups']:>6} {found.report['largest_group']:>8}  {counts:<16} "
            f"{found.report['leakage']['test']:>8.0%} {val:>6.1f} {test:>6.1f} {later:>7.1f} {later / test:>10.1f}"
        )


if __name__ == "__main__":
    main()
