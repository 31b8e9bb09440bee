"""Pack molecules and atoms into periodic boxes with packmol."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from daskpipe.stages.generate.extras import import_extra
from daskpipe.stages.generate.torsions import find_vdw_radii

N_LOOPS = 20
"""Loops of packmol's optimiser for all molecules, and as many for each kind: what is to decide, not the time."""

NOT_PACKED = 173
"""Exit code of packmol for a box that it did not fill as asked."""

MOST_SECONDS = 600
"""Seconds after which packmol is ended: a guard, which no box that can be packed comes near."""

GRID = 0.25
"""Spacing of the points by which volumes are counted, Å."""

AMU_PER_A3 = 1.66053907
"""One amu/Å^3 in g/cm^3."""


class PackingError(ValueError):
    """Raised for a box that packmol cannot fill."""


def pack_box(rng: np.random.Generator, parts: Sequence[tuple[Atoms, int, float]], length: float) -> np.ndarray:
    """Pack copies of molecules or atoms into a periodic cubic box, turned at random, none closer than allowed.

    Parameters
    ----------
    rng
        The structure's stream; packmol's seed comes from it.
    parts
        Molecule, number of copies, and radius of its atoms, Å: atoms of two copies are at least the sum of their radii
        apart, less 0.01 Å.
    length
        Edge of the box, Å.

    Returns
    -------
    numpy.ndarray
        Positions, Å, copies of the first part first, shape (atom, 3).

    Raises
    ------
    PackingError
        If packmol does not get there in `N_LOOPS` loops.
    RuntimeError
        If packmol fails for another reason.
    ConfigError
        If packmol is not installed.

    Notes
    -----
    Martínez et al., DOI 10.1002/jcc.21224. The keyword ``pbc`` needs packmol 20.15 or later.
    """
    binary = import_extra("packmol.cli").get_binary_path()
    edge = f"{length:.8f}"
    lines = ["tolerance 2.0", "filetype xyz", "output packed.xyz", f"seed {int(rng.integers(1, 10**8))}"]
    lines += [f"nloop {N_LOOPS}", f"pbc 0. 0. 0. {edge} {edge} {edge}"]
    with tempfile.TemporaryDirectory(prefix="daskpipe-packmol-") as name:
        folder = Path(name)
        for number, (molecule, copies, radius) in enumerate(parts):
            rows = [
                f"{symbol} {x:.8f} {y:.8f} {z:.8f}"
                for symbol, (x, y, z) in zip(molecule.symbols, molecule.positions, strict=True)
            ]
            (folder / f"{number}.xyz").write_text("\n".join([str(len(molecule)), "", *rows, ""]))
            lines += [f"structure {number}.xyz", f"  number {copies}", f"  radius {radius:.4f}", "end structure"]
        script = folder / "packmol.inp"
        script.write_text("\n".join([*lines, ""]))
        try:
            with script.open() as text:  # packmol goes back in its input, which a pipe does not allow
                done = subprocess.run(
                    [str(binary)], stdin=text, cwd=folder, capture_output=True, timeout=MOST_SECONDS, check=False
                )
        except subprocess.TimeoutExpired as error:
            raise PackingError(f"packmol took more than {MOST_SECONDS} s; lower the density or n_atoms") from error
        if done.returncode not in (0, NOT_PACKED):
            raise RuntimeError(f"packmol ended with exit code {done.returncode}: {done.stderr.decode()[-500:]}")
        packed = folder / "packed.xyz"
        if done.returncode == NOT_PACKED or not packed.exists():
            raise PackingError(f"packmol fills no box of {length:.2f} Å in {N_LOOPS} loops; lower the density")
        return np.array([line.split()[1:4] for line in packed.read_text().splitlines()[2:]], dtype=float)


def vdw_volume(atoms: Atoms) -> float:
    """Return the volume inside the van der Waals spheres of a molecule, Å^3, counted on a grid.

    Examples
    --------
    >>> from ase import Atoms
    >>> abs(vdw_volume(Atoms("Ar")) - 4 / 3 * np.pi * 1.88**3) < 1
    True
    """
    radii = find_vdw_radii(atoms.numbers)
    low = (atoms.positions - radii[:, None]).min(axis=0)
    high = (atoms.positions + radii[:, None]).max(axis=0)
    axes = [np.arange(a + GRID / 2, b, GRID) for a, b in zip(low, high, strict=True)]
    inside = np.zeros([len(axis) for axis in axes], dtype=bool)
    for (x, y, z), radius in zip(atoms.positions, radii, strict=True):
        square = (
            (axes[0] - x)[:, None, None] ** 2 + (axes[1] - y)[None, :, None] ** 2 + (axes[2] - z)[None, None, :] ** 2
        )
        inside |= square <= radius**2
    return float(inside.sum() * GRID**3)
