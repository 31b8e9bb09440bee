"""Keep third-party libraries silent while they load, and undo what importing MACE changes in the whole process."""

from __future__ import annotations

import io
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout

_log = logging.getLogger(__name__)

UNPICKLE_ANYTHING = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Environment variable that makes `torch.load` unpickle any object."""


class _SharedContext(AbstractContextManager[None]):
    """Share one context that changes the process: the first thread inside enters it, and the last one leaves it.

    If each thread entered a context of its own, the last one to leave would restore the state that it saw at its start,
    which holds the changes of another thread. A lock kept for the whole block would deadlock with the import lock.

    Parameters
    ----------
    make
        Returns a new context.
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
def _capture_output() -> Iterator[None]:
    """Move what is printed in the block to the debug log, and drop the warnings that loading is known to give."""
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
def _allow_unpickling() -> Iterator[None]:
    """Set `UNPICKLE_ANYTHING` in the block."""
    before = os.environ.get(UNPICKLE_ANYTHING)
    os.environ[UNPICKLE_ANYTHING] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(UNPICKLE_ANYTHING, None)
        else:
            os.environ[UNPICKLE_ANYTHING] = before


_silent = _SharedContext(_capture_output)
_unpickling = _SharedContext(_allow_unpickling)


def silence_libraries() -> AbstractContextManager[None]:
    """Keep off the terminal what libraries print and deprecate while they load: stdout belongs to the command line."""
    return _silent


def import_mace() -> None:
    """Import MACE, and keep the safe loading of torch.

    MACE sets an environment variable that makes every later ``torch.load`` of the process unpickle any object, also
    from data files of others.
    """
    import daskpipe.core.torch_sim  # noqa: F401  # MACE's module imports torch-sim

    # Set here as well: after an import that failed, MACE's own line is not run again, and e3nn needs it.
    with _unpickling, silence_libraries():
        import mace.calculators.mace_torchsim  # noqa: F401
