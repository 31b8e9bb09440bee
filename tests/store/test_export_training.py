"""``mace_run_train`` learns from the exports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from daskpipe.core.structures import from_atoms, round_positions
from daskpipe.store import arrange_and_write
from daskpipe.store.export import export

TINY = {
    "model": "MACE", "hidden_irreps": "4x0e", "max_ell": 1, "r_max": 3.0, "num_interactions": 1, "correlation": 1,
    "num_radial_basis": 4, "radial_MLP": "[8]", "scaling": "rms_forces_scaling", "lr": 0.1, "batch_size": 4,
    "valid_batch_size": 8, "max_num_epochs": 3, "eval_interval": 1, "default_dtype": "float64", "device": "cpu",
    "seed": 1, "E0s": "{29: 0.0}", "atomic_numbers": "[29]", "loss": "stress", "compute_stress": "True",
    "num_workers": 0, "error_table": "PerAtomRMSE",
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    structures = []
    for seed in range(24):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.15, seed=seed)
        round_positions(atoms)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        structures.append(atoms)
    path = tmp_path_factory.mktemp("copper") / "dataset.zarr"
    arrange_and_write(
        from_atoms(structures), path, seed=0, fractions={"train": 0.7, "val": 0.3}, attrs={"dataset_key": "k1"}
    )
    return path


TRAIN = """
import sys
from mace.cli.run_train import run
from mace.tools import build_default_arg_parser
for name in sys.argv[1:]:
    options = open(f"{name}.options").read().splitlines()
    run(build_default_arg_parser().parse_args(options))  # what mace_run_train does
"""

FILES = {"extxyz": "{}.extxyz", "mace-hdf5": "{}.h5"}


@pytest.mark.slow
def test_loss_falls(store: Path, tmp_path: Path) -> None:
    for number, (to, name) in enumerate(FILES.items()):
        for split in ("train", "val"):
            export(store, to, tmp_path / name.format(split), split=split)
        files = {"train_file": name.format("train"), "valid_file": name.format("val"), "name": f"tiny{number}"}
        options = [f"--{key}={value}" for key, value in (TINY | files).items()]
        (tmp_path / f"{number}.options").write_text("\n".join(options))
    command = [sys.executable, "-W", "ignore", "-c", TRAIN, *map(str, range(len(FILES)))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    losses_of = []
    for number in range(len(FILES)):
        (log,) = (tmp_path / "results").glob(f"tiny{number}_*_train.txt")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        losses_of.append([line["loss"] for line in lines if line["mode"] == "eval"])
        assert len(losses_of[-1]) > TINY["max_num_epochs"]
        assert losses_of[-1][-1] < 0.8 * losses_of[-1][0]
        assert (tmp_path / f"tiny{number}.model").exists()
    for losses in losses_of[1:]:  # the same numbers, from whatever file
        assert losses[0] == pytest.approx(losses_of[0][0], rel=1e-6)
