"""torch-sim without NVIDIA Warp, where there is no GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which Warp is for")
def test_a_process_without_a_gpu_does_not_load_warp() -> None:
    code = """
import sys
from daskpipe.core.torch_sim import torch_sim
print("warp" in sys.modules, "nvalchemiops" in sys.modules, torch_sim.neighbors.ALCHEMIOPS_AVAILABLE)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False False\n"
    assert "Warp" not in done.stderr
