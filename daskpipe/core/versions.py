"""Read the versions of installed packages."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version


@cache
def read_version(package: str) -> str:
    """Return the version of an installed package; its metadata are read once a process.

    Parameters
    ----------
    package
        Name on PyPI.

    Raises
    ------
    importlib.metadata.PackageNotFoundError
        If it is not installed.

    Examples
    --------
    >>> import numpy
    >>> read_version("numpy") == numpy.__version__
    True
    """
    return version(package)
