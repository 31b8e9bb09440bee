"""Import torch-sim, and keep NVIDIA Warp out of processes that have no GPU: it takes longer to load than torch."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from daskpipe.core.third_party import silence_libraries

WARP_KERNELS = "nvalchemiops"
"""Package of the neighbour searches of torch-sim that run on Warp."""


@contextmanager
def _hide_package(name: str) -> Iterator[None]:
    """Make the import of a package fail in the block, unless it is imported already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _prepare_warp() -> Iterator[None]:
    """Hush Warp where there is a GPU, and hide it where there is none."""
    if not torch.cuda.is_available():
        with _hide_package(WARP_KERNELS):
            yield
        return
    if find_spec("warp") is not None:
        import warp

        warp.config.log_level = logging.ERROR  # it prints each kernel that it loads later, too; so this stays
    yield


with silence_libraries(), _prepare_warp():
    import torch_sim
    from torch_sim import SimState
    from torch_sim.models.interface import ModelInterface

__all__ = ["ModelInterface", "SimState", "torch_sim"]
