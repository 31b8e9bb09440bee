"""Train the bundled Cu-Ag-Au MACE from datasets that daskpipe made, and write its files and its model card.

    daskpipe run recipes/bundled_mace_1.yaml
    daskpipe run recipes/bundled_mace_short.yaml
    daskpipe export runs/bundled_mace_1 one.extxyz
    daskpipe export runs/bundled_mace_short short.extxyz
    python recipes/bundled_mace.py train one.extxyz --epochs 30 --out first.safetensors
    daskpipe run recipes/bundled_mace_2.yaml explore.potential.params.model=first.safetensors
    daskpipe export runs/bundled_mace_2 two.extxyz
    python recipes/bundled_mace.py train one.extxyz two.extxyz short.extxyz
    python recipes/bundled_mace.py card one.extxyz two.extxyz short.extxyz

``train`` needs about twenty minutes on two idle cores. ``card`` measures the model on the held-out structures, which
are all frames of seeds that training has not seen, and lets every seed of the quickstart run for 10 ps at 900 K.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

import daskpipe
from daskpipe.core.third_party import silence_libraries
from daskpipe.potentials import Failure, Results, batched_model, build_potential, evaluate, identify_potential
from daskpipe.potentials.mace import BUNDLED

NAME = "cu-ag-au"
CARD = BUNDLED.with_name("MODEL_CARD.md")
SPLITS = ("train", "val", "test")
TEACHER = "chgnet"

ARCHITECTURE = {
    "model": "MACE", "hidden_irreps": "24x0e", "max_ell": 2, "r_max": 4.5, "num_interactions": 2, "correlation": 2,
    "num_radial_basis": 6, "radial_MLP": "[32,32]", "pair_repulsion": True,
}  # fmt: skip
"""Small, for two cores without a GPU. The ZBL repulsion keeps atoms apart where no data is."""

TRAINING = {
    "loss": "universal", "energy_weight": 10, "forces_weight": 10, "stress_weight": 100, "compute_stress": "True",
    "lr": 0.01, "scheduler": "ExponentialLR", "lr_scheduler_gamma": 0.94, "batch_size": 8, "valid_batch_size": 16,
    "ema": True, "ema_decay": 0.99, "clip_grad": 10, "amsgrad": True, "scaling": "rms_forces_scaling",
    "default_dtype": "float32", "device": "cpu", "seed": 1, "eval_interval": 5,
    "error_table": "PerAtomRMSE",
}  # fmt: skip

COLLISION = 10
"""Force on an atom, eV/Å, beyond which atoms are being driven together: errors are told apart there."""


def train(datasets: Sequence[Path], work: Path, epochs: int, out: Path) -> None:
    """Run ``mace_run_train`` on the training split, and write the model as safetensors and JSON."""
    import torch

    from daskpipe.core.third_party import import_mace
    from daskpipe.potentials.mace_files import save_model

    work.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        ase.io.write(work / f"{split}.extxyz", for_mace(read(datasets, split)), write_results=False)
    options = ARCHITECTURE | TRAINING | {
        "name": NAME, "train_file": "train.extxyz", "valid_file": "val.extxyz", "test_file": "test.extxyz",
        "energy_key": "REF_energy", "forces_key": "REF_forces", "stress_key": "REF_stress",
        "E0s": lonely_atoms(), "max_num_epochs": epochs,
    }  # fmt: skip
    arguments = [f"--{key}" if value is True else f"--{key}={value}" for key, value in options.items()]
    subprocess.run([sys.executable, "-m", "mace.cli.run_train", *arguments], cwd=work, check=True)
    import_mace()
    with silence_libraries():
        # A pickle, but one that was written a moment ago on this machine.
        model = torch.load(work / f"{NAME}.model", map_location="cpu", weights_only=False)
    save_model(model.float(), out, made_with={name: version(name) for name in ("mace-torch", "torch", "chgnet")})
    print(f"wrote {out}")


def card(datasets: Sequence[Path], run_dir: Path) -> None:
    """Measure the model that is bundled now, and write its card."""
    data = {split: read(datasets, split) for split in SPLITS}
    who, teacher = identify_potential("mace", {}), identify_potential(TEACHER, {})
    weights = sum(
        parameter.numel() for parameter in build_potential("mace", {}, "cpu").calculator.models[0].parameters()
    )
    counts = {kind: len(frames) for kind, frames in by_kind(data["train"]).items()}
    text = f"""# {who.name}

A small MACE ({weights:,} weights, cutoff {ARCHITECTURE["r_max"]} Å) for bulk alloys, surfaces and clusters of copper,
silver and gold, distilled from {teacher.name}. It lets the quickstart explore on two cores without a GPU and without a
model hub. It is no substitute for its teacher, which labels what it explores.

* SHA-256 of weights and hyper-parameters: `{who.hash}`
* Training data: {len(data["train"])} structures ({", ".join(f"{n} {kind}" for kind, n in counts.items())}), made by
  daskpipe with `recipes/bundled_mace_*.yaml`; {len(data["val"])} for validation; trained by `recipes/bundled_mace.py`.
* Made with {", ".join(f"{name} {version(name)}" for name in ("mace-torch", "torch", "chgnet"))}.
* Licence: that of daskpipe (MIT). The teacher's weights (CHGNet, BSD-3-Clause) are not part of it.

## Errors against the teacher

Root-mean-square errors on {len(data["test"])} held-out structures. No frame of their seeds was trained on.

| kind | structures | energy, meV/atom | forces, meV/Å | teacher's forces, meV/Å | stress, meV/Å^3 |
|---|---|---|---|---|---|
{errors(data["test"])}

## Stability and speed

{stability(run_dir)}
{speed(data["test"])}

## Limits

* Cu, Ag and Au only. Its teacher was trained on bulk crystals; for clusters and surfaces it is extrapolating itself.
* No magnetism, no charge, no dispersion beyond what the teacher has; energies are the teacher's, not those of a DFT.
* Closer than about 1.6 Å the ZBL repulsion rules, and the numbers are good for keeping atoms apart only.
* Running the recipe again gives an equivalent model, not these weights.
* It is rough: fit for exploring, not for results.
"""
    CARD.write_text(text)
    print(text)


def read(datasets: Iterable[Path], split: str) -> list[Atoms]:
    """Structures of one split of all datasets, as `daskpipe export` wrote them."""
    return [atoms for path in datasets for atoms in ase.io.read(path, ":") if atoms.info["split"] == split]


def lonely_atoms() -> str:
    """Energy of each element without neighbours, as ``--E0s`` takes it: half that of a pair 5 Å apart.

    The teacher knows no single atoms. With their mean energy in bulk instead, a pair would have no repulsion to learn
    from but its own.
    """
    pairs = [Atoms(f"{symbol}2", positions=[[0, 0, 0], [0, 0, 5]]) for symbol in ("Cu", "Ag", "Au")]
    found = evaluate(build_potential(TEACHER, {}, "cpu"), pairs)
    energies = {
        int(pair.numbers[0]): item.energy / 2
        for pair, item in zip(pairs, found, strict=True)
        if isinstance(item, Results)
    }
    return str(energies)


def for_mace(structures: Iterable[Atoms]) -> list[Atoms]:
    """Name the system type as MACE wants it, for its own table of errors."""
    structures = list(structures)
    for atoms in structures:
        atoms.info["config_type"] = atoms.info["system_type"]
    return structures


def by_kind(structures: Iterable[Atoms]) -> dict[str, list[Atoms]]:
    """Structures by system type."""
    kinds: dict[str, list[Atoms]] = {}
    for atoms in structures:
        kinds.setdefault(atoms.info["system_type"], []).append(atoms)
    return dict(sorted(kinds.items()))


def errors(structures: list[Atoms]) -> str:
    """Rows of the table of errors."""
    potential = build_potential("mace", {}, "cpu")
    rows = []
    colliding = [atoms for atoms in structures if np.linalg.norm(atoms.arrays["REF_forces"], axis=1).max() > COLLISION]
    calm = [atoms for atoms in structures if atoms not in colliding]
    groups = by_kind(calm) | ({f"any, a force above {COLLISION} eV/Å": colliding} if colliding else {})
    for kind, frames in groups.items():
        energy, forces, size, stress = [], [], [], []
        for atoms, found in zip(frames, evaluate(potential, frames), strict=True):
            if isinstance(found, Failure):
                raise SystemExit(f"the model fails on a held-out {kind}: {found.evidence}")
            energy.append((found.energy - atoms.info["REF_energy"]) / len(atoms))
            forces.append((found.forces - atoms.arrays["REF_forces"]).ravel())
            size.append(atoms.arrays["REF_forces"].ravel())
            if atoms.pbc.all():
                stress.append(found.stress - atoms.info["REF_stress"].flat[[0, 4, 8, 5, 2, 1]])
        numbers = [1e3 * rms(energy), 1e3 * rms(np.concatenate(forces)), 1e3 * rms(np.concatenate(size))]
        cells = [f"{number:.0f}" for number in numbers] + [f"{1e3 * rms(stress):.1f}" if stress else "-"]
        rows.append(f"| {kind} | {len(frames)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def stability(run_dir: Path) -> str:
    """Run the quickstart's seeds for 10 ps at 900 K with daskpipe, and say how many stayed whole."""
    overrides = [
        "explore.dynamics.temperatures=[900]", "explore.dynamics.timestep=4", "explore.dynamics.steps=2500",
        "explore.dynamics.stride=2500", "explore.dynamics.equilibration=0",
        "select=random", "select.n=1000", "label=emt", "name=stability",
    ]  # fmt: skip
    result = daskpipe.run("quickstart", overrides, run_dir=run_dir)
    stage = result.stages["explore"]
    ds = daskpipe.open_dataset(result.dataset)
    ends = [daskpipe.to_atoms(ds, index) for index in range(ds.sizes["structure"])]
    return (
        f"* 10 ps of Langevin dynamics at 900 K (4 fs) from each of the quickstart's {stage['inputs']} seeds: "
        f"{stage['rejected']} were stopped by the guards (overlap, a force above 100 eV/Å, runaway temperature), and "
        f"{sum(map(in_one_piece, ends))} were in one piece at the end."
    )


def in_one_piece(atoms: Atoms) -> bool:
    """Whether all atoms hang together by distances below 1.5 times the sum of covalent radii."""
    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.5))
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(len(atoms), len(atoms)))
    return int(connected_components(graph, directed=False)[0]) == 1


def speed(structures: list[Atoms]) -> str:
    """Measure MD-like calls of the batched model, float32, one thread."""
    import torch
    import torch_sim

    torch.set_num_threads(1)
    model = batched_model(build_potential("mace", {}, "cpu", "float32"))
    batch = [atoms for atoms in structures if atoms.pbc.all()][:16]
    state = torch_sim.io.atoms_to_state(batch, model.device, model.dtype)
    n_warm, n_timed = 5, 20
    for _ in range(n_warm):
        model(state)
    start = time.perf_counter()
    for _ in range(n_timed):
        model(state)
    rate = state.n_atoms * n_timed / (time.perf_counter() - start)
    return (
        f"* {rate:,.0f} atom steps a second in float32 on one thread of one core ({cpu()}), {len(batch)} bulk "
        f"structures of {state.n_atoms / len(batch):.0f} atoms in a batch."
    )


def cpu() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def rms(values: Sequence[float] | Sequence[np.ndarray] | np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["train", "card"])
    parser.add_argument("datasets", nargs="+", type=Path, help="extxyz files from `daskpipe export`")
    parser.add_argument("--epochs", type=int, default=45)
    parser.add_argument("--out", type=Path, default=BUNDLED, help="the .safetensors file to write")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/bundled_mace_training"), help="folder for mace_run_train"
    )
    arguments = parser.parse_args()
    if arguments.verb == "train":
        train(arguments.datasets, arguments.work, arguments.epochs, arguments.out)
    else:
        with tempfile.TemporaryDirectory() as folder:
            card(arguments.datasets, Path(folder) / "stability")


if __name__ == "__main__":
    main()
