"""Foreign libraries talk while they load, and MACE changes the whole process; here they do not."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec

_log = logging.getLogger(__name__)

UNPICKLE_ANYTHING = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


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


def import_mace() -> None:
    """Import MACE, and leave torch's safe loading as it was.

    MACE sets an environment variable that makes every later ``torch.load`` of the process unpickle anything, data
    files of others included.
    """
    before = os.environ.get(UNPICKLE_ANYTHING)
    # Set here as well: after an import that broke off, MACE's own line is not run again, and e3nn needs it.
    os.environ[UNPICKLE_ANYTHING] = "1"
    try:
        with quiet():
            import mace.calculators.mace_torchsim  # noqa: F401
    finally:
        if before is None:
            os.environ.pop(UNPICKLE_ANYTHING, None)
        else:
            os.environ[UNPICKLE_ANYTHING] = before
