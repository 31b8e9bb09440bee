"""Seeds are the same after a kill, for other workers, and for any hash seed of Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_runs import committed
from waiting import wait_until

MIX = {
    "defaults": ["emt_alloy", "_self_"],
    "name": "mix",
    "generate": {
        "partition_size": 2,
        "sources": {
            "organic": {"generator": "organic", "n": 12, "n_atoms": [8, 24], "copies": 2},
            "random": {"generator": "random_crystals", "n": 8, "formula": "TiO2", "n_atoms": [6, 12]},
            "liquid": {"generator": "liquids", "n": 2, "names": {"H2O": 1}, "n_atoms": 90},
            "mix": {"generator": "crystals", "n": 6, "prototype": "rocksalt", "n_atoms": [8, 40],
                    "elements": {"A": ["Ca", "Sr"], "X": ["O"]}},
        },
    },
}  # fmt: skip


def begin(config: Path, run_dir: Path, n_workers: int, hash_seed: str) -> subprocess.Popen[bytes]:
    """Start a run of its own session; EMT knows none of the elements, so it ends after the seeds."""
    command = [sys.executable, "-m", "daskpipe", "run", str(config), f"cluster.workers={n_workers}"]
    return subprocess.Popen(
        [*command, "--run-dir", str(run_dir)],
        start_new_session=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def seeds_of(run_dir: Path) -> dict[str, bytes]:
    units = run_dir / "units" / "generate"
    return {str(file.relative_to(units)): file.read_bytes() for file in sorted(units.rglob("payload.npz"))}


@pytest.mark.slow
def test_seeds_are_the_same_after_a_kill(tmp_path: Path) -> None:
    config = tmp_path / "mix.yaml"
    config.write_text(yaml.safe_dump(MIX))
    whole = begin(config, tmp_path / "whole", 2, "1")
    whole.wait()
    expected = seeds_of(tmp_path / "whole")
    assert len(expected) >= 10
    killed = begin(config, tmp_path / "killed", 2, "2")
    wait_until(lambda: len(committed(tmp_path / "killed")) >= 3)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = committed(tmp_path / "killed")
    assert 3 <= len(before) < len(expected)
    begin(config, tmp_path / "killed", 1, "3").wait()
    resumed = seeds_of(tmp_path / "killed")
    assert resumed.keys() == expected.keys()
    assert [key for key in expected if resumed[key] != expected[key]] == []
    now = committed(tmp_path / "killed")
    assert {key: now[key] for key in before} == before
