"""Silence around libraries that talk while they load."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec

_log = logging.getLogger(__name__)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries print and deprecate while they load a model off the terminal: stdout is the CLI's."""
    said = io.StringIO()
    _hush_warp()
    with redirect_stdout(said), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="The TorchScript type system", category=UserWarning)
        warnings.filterwarnings("ignore", message="To copy construct from a tensor", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD.*")
        yield
    for line in said.getvalue().splitlines():
        _log.debug("%s", line)


def _hush_warp() -> None:
    # nvidia-warp, behind torch-sim's neighbour lists, greets a machine without a GPU with a warning, and later tells
    # stdout about each kernel that it loads; so this stays.
    if find_spec("warp") is not None:
        import warp

        warp.config.log_level = logging.ERROR
