"""Generated dialects of extended XYZ, read by ASE and by daskpipe: how many geometries are right, refused or misread.

Run: ``python benchmarks/dialects.py``. The files are those of ``tests/generate/test_dialects.py``; each says what is
in it, or that it does not say so clearly and is to be refused.
"""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "stages" / "generate"))
from test_dialects import N_EXTXYZ, NEAR, Truth, write_extxyz

from daskpipe.stages.generate.reading.extxyz import parse_frame

READERS: dict[str, Callable[[str], Atoms]] = {
    "ase.io.read": lambda text: ase.io.read(io.StringIO(text), format="extxyz"),
    "daskpipe": lambda text: parse_frame(text.encode()),
}


def outcome(read: Callable[[str], Atoms], text: str, truth: Truth) -> str:
    """Return what became of a file: right, refused or misread."""
    try:
        atoms = read(text)
    except Exception:  # whatever a parser says of a dialect
        return "refused"
    same = (
        atoms.numbers.tolist() == truth.numbers.tolist()
        and tuple(atoms.pbc.tolist()) == truth.pbc
        and np.allclose(atoms.positions, truth.positions, rtol=0, atol=NEAR["positions"])
        and np.allclose(atoms.cell.array, truth.cell, rtol=0, atol=NEAR["cell"])
    )
    return "right" if same and truth.reason is None else "misread"


def main() -> None:
    """Read all files with both readers, and print a line each."""
    written = [write_extxyz(np.random.default_rng(seed)) for seed in range(N_EXTXYZ)]
    clear = sum(truth.reason is None for _, truth in written)
    print(f"{N_EXTXYZ} files; {clear} say what the structure is, {N_EXTXYZ - clear} are to be refused")
    for name, read in READERS.items():
        for kind, wanted in (("clear", True), ("to be refused", False)):
            cases = [(text, truth) for text, truth in written if (truth.reason is None) == wanted]
            found = Counter(outcome(read, text, truth) for text, truth in cases)
            print(
                f"  {name:<12} {kind:<14} "
                + ", ".join(f"{found[what]} {what}" for what in ("right", "refused", "misread"))
            )


if __name__ == "__main__":
    main()
