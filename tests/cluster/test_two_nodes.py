"""Run on a real Slurm of two nodes, in a network with IPv4 or IPv6 only: same bytes as a local run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import two_nodes
from small_runs import SMALL, files_of, manifests
from two_nodes import ADDRESSES, IPV6_ADDRESSES

import daskpipe

pytestmark = pytest.mark.slow

SITE = """class: SLURM
pools:
  cpu: {jobs: 2, cores: 1, memory: 2GB, partition: cpu, walltime: "00:20:00"}
"""


@pytest.mark.parametrize(
    ("addresses", "interface"),
    [(ADDRESSES, ""), (IPV6_ADDRESSES, "interface: eth0\n")],
    ids=["IPv4 by its route", "IPv6 by its interface"],
)
def test_a_run_on_two_nodes_gives_the_same_bytes(
    addresses: Mapping[str, str], interface: str, reference: daskpipe.Result, tmp_path: Path
) -> None:
    if reason := two_nodes.missing():
        pytest.skip(reason)
    site, run_dir = tmp_path / "here.yaml", tmp_path / "run"
    site.write_text(interface + SITE)
    with two_nodes.running(addresses) as queue:
        words = ["-m", "daskpipe", "run", "emt_alloy", *SMALL, "--cluster", site, "--run-dir", run_dir]
        done = subprocess.run(
            [*queue.head.prefix, sys.executable, *map(str, words)], capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, f"{done.stderr}{queue.said()}"
        queue.wait_until_idle()
    assert files_of(run_dir / "dataset.zarr") == files_of(reference.dataset)
    receipts = [json.loads(path.read_text())["receipt"] for path in manifests(run_dir)]
    hosts = {receipt["worker"].partition(":")[0] for receipt in receipts}
    # The second job may come when there is nothing left to do.
    assert hosts
    assert hosts <= {*two_nodes.NODES}
