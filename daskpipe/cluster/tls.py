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


KEYS = "keys-"
"""Folders of keys in a run directory begin with this."""


def make_keys() -> Security:
    """Make the keys of a run: whoever connects to its scheduler, workers or nannies must have them."""
    from distributed import Security

    return Security.temporary()


def protocol(security: Security | None) -> str:
    """Return the protocol of addresses with these keys; plain TCP without."""
    return "tcp://" if security is None else "tls://"


@contextmanager
def key_files(root: Path, security: Security) -> Iterator[Path]:
    """Yield a folder with the keys of a cluster, for its owner only; remove it."""
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
    """Remove the keys of drivers that were killed. Their schedulers are gone, so they open nothing any more."""
    for folder in root.glob(f"{KEYS}*"):
        shutil.rmtree(folder, ignore_errors=True)
