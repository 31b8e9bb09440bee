"""Provide a potential that is EMT, but segfaults, hangs or leaks at structures of one formula.

It is a plugin, as others would write one; `installed` registers it for this process and for those that it starts.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

NAME = "hostile_emt"


def hostile_emt(*, device: str, dtype: str, fault: Literal["none", "segfault", "hang", "leak"], formula: str) -> Any:
    from ase.calculators.emt import EMT

    from daskpipe.potentials import Potential

    class Hostile(EMT):
        def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = ()) -> None:
            if str(atoms.symbols) == formula:
                FAULTS[fault]()
            super().calculate(atoms, properties, system_changes)

    return Potential(calculator=Hostile())


def segfault() -> None:
    ctypes.string_at(0)


def hang() -> None:
    """Sleep without releasing the GIL, as a library in an endless loop does."""
    ctypes.PyDLL(None).sleep(100_000)


def leak() -> None:
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1 << 20)) * 32)
        time.sleep(0.02)


FAULTS = {"none": lambda: None, "segfault": segfault, "hang": hang, "leak": leak}


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    info = folder / f"{NAME}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[daskpipe.potentials]\n{NAME} = {NAME}:{NAME}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        paths = [str(folder), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
        yield
