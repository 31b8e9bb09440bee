"""Make TLS keys, and keep them in the run directory while jobs need them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from daskpipe.core.shared_disk import explain_disk_errors

if TYPE_CHECKING:
    from distributed import Security

KEY_FILES = ("ca.pem", "cert.pem", "key.pem")
"""Names of the files with the authority's certificate, the run's certificate and its key."""

KEYS = "keys-"
"""Beginning of the names of key folders in a run directory."""


def make_keys() -> Security:
    """Make the keys of a run, which every client of its scheduler, workers and nannies must have."""
    from distributed import Security

    return Security.temporary()


def choose_protocol(security: Security | None) -> str:
    """Return the protocol of addresses: TLS with keys, plain TCP without."""
    return "tcp://" if security is None else "tls://"


@contextmanager
def write_keys(root: Path, security: Security) -> Iterator[Path]:
    """Write the keys of a cluster to a folder that only its owner can read, yield the folder, and remove it.

    Parameters
    ----------
    root
        Run directory, in which the folder is made.
    security
        Keys from `make_keys`.

    Raises
    ------
    DiskError
        If the folder cannot be made.
    """
    with explain_disk_errors(root, root):
        folder = Path(tempfile.mkdtemp(prefix=KEYS, dir=root))  # mode 0700
    try:
        for name, field in zip(KEY_FILES, ("tls_ca_file", "tls_worker_cert", "tls_worker_key"), strict=True):
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(getattr(security, field))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_keys(root: Path) -> None:
    """Remove the keys of drivers that were killed; their schedulers are gone, so the keys open nothing any more."""
    for folder in root.glob(f"{KEYS}*"):
        shutil.rmtree(folder, ignore_errors=True)
