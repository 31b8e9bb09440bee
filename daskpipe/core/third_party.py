"""Keep foreign libraries quiet while they load, and undo what importing MACE changes in the whole process."""

from __future__ import annotations

import io
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from importlib.util import find_spec

_log = logging.getLogger(__name__)

UNPICKLE_ANYTHING = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


class _Shared(AbstractContextManager[None]):
    """Context that changes the process, which the first thread inside it enters and the last one leaves.

    If each thread entered a context of its own, the one that leaves last would put back what it found: the changes of
    the other. A lock that a thread kept inside could never be had by one that waits in an import.

    Parameters
    ----------
    make
        Makes the context.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._n_inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                self._context = self._make()
                self._context.__enter__()
            self._n_inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                self._context.__exit__(None, None, None)


@contextmanager
def _silence() -> Iterator[None]:
    printed = io.StringIO()
    with redirect_stdout(printed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="The TorchScript type system", category=UserWarning)
        warnings.filterwarnings("ignore", message="To copy construct from a tensor", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD.*")
        yield
    for line in printed.getvalue().splitlines():
        _log.debug("%s", line)


@contextmanager
def _unpickle_anything() -> Iterator[None]:
    before = os.environ.get(UNPICKLE_ANYTHING)
    os.environ[UNPICKLE_ANYTHING] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(UNPICKLE_ANYTHING, None)
        else:
            os.environ[UNPICKLE_ANYTHING] = before


_silent = _Shared(_silence)
_unpickling = _Shared(_unpickle_anything)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries print and deprecate while they load a model off the terminal: stdout is the CLI's."""
    _hush_warp()
    with _silent:
        yield


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
    # Set here as well: after an import that broke off, MACE's own line is not run again, and e3nn needs it.
    with _unpickling, quiet():
        import mace.calculators.mace_torchsim  # noqa: F401
