"""Import the packages that only some generators need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from daskpipe.core.errors import ConfigError


def import_extra(module: str) -> Any:
    """Import a module of a package that comes with the extra ``generate``.

    Parameters
    ----------
    module
        Name with dots, e.g. ``"rdkit.Chem"``.

    Raises
    ------
    ConfigError
        If the package is not installed; the message says what to type.

    Examples
    --------
    >>> import_extra("rdkit.Chem").MolFromSmiles("O").GetNumAtoms()
    1
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ConfigError(f"this generator needs {package}; type: pip install 'daskpipe[generate]'") from error
