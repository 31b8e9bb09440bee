"""Write the input of CP2K for one structure: PBE or another functional, GTH pseudopotentials, MOLOPT basis sets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.core.geometry import cell_widths
from daskpipe.core.structures import spin_multiplicity, total_charge
from daskpipe.potentials.box import make_periodic

if TYPE_CHECKING:
    from ase import Atoms

MARGIN = 5.0
"""Å between a molecule and the faces of its cubic cell, where its density must be zero."""

VACUUM = 12.0
"""Å between images along the open axes of a structure that has periodic ones."""

METALS_TEMPERATURE = 300.0
"""K of the Fermi smearing where levels may be partly filled."""

EMPTY_LEVELS = 0.2
"""Empty levels an atom and valence electron that a smeared calculation has."""


@dataclass(frozen=True, kw_only=True)
class Cp2kSettings:
    """Settings of CP2K that decide its numbers; `daskpipe.potentials.cp2k.cp2k` describes them."""

    functional: str
    basis: str
    cutoff: float
    rel_cutoff: float
    eps_scf: float
    max_scf: int
    k_width: float
    method: str


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Names that CP2K has for the basis set and the pseudopotential of an element."""

    basis: str
    potential: str
    n_electrons: int


@cache
def read_kinds(data: Path, basis: str, functional: str) -> dict[str, Kind]:
    """Return the elements that have both a basis set and a pseudopotential with as many electrons.

    Parameters
    ----------
    data
        CP2K's folder of data.
    basis
        Name without the number of electrons, e.g. ``DZVP-MOLOPT-SR-GTH``.
    functional
        Name that the pseudopotentials were made for, e.g. ``PBE``.
    """
    bases = _names_in(data / "BASIS_MOLOPT", rf"{re.escape(basis)}-q(\d+)")
    potentials = _names_in(data / "GTH_POTENTIALS", rf"GTH-{re.escape(functional)}-q(\d+)")
    return {
        symbol: Kind(basis=f"{basis}-q{n}", potential=f"GTH-{functional}-q{n}", n_electrons=n)
        for symbol, numbers in bases.items()
        if (n := max(numbers & potentials.get(symbol, set()), default=0))
    }


def _names_in(file: Path, pattern: str) -> dict[str, set[int]]:
    """Return the numbers of electrons in the names of a file that match a pattern, by element."""
    names: dict[str, set[int]] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if len(words) > 1 and re.fullmatch(r"[A-Z][a-z]?", words[0]):
            for word in words[1:]:
                if match := re.fullmatch(pattern, word):
                    names.setdefault(words[0], set()).add(int(match[1]))
    return names


def place_in_cell(atoms: Atoms) -> Atoms:
    """Return a structure in the cell that CP2K computes with: a molecule in the middle of a cubic one."""
    if not atoms.pbc.any():
        boxed = atoms.copy()
        boxed.set_cell(np.eye(3) * (np.ptp(atoms.positions, axis=0).max() + 2 * MARGIN))
        boxed.center()
        return boxed
    return make_periodic(atoms, VACUUM)


def count_k_points(atoms: Atoms, k_width: float) -> tuple[int, int, int]:
    """Return the numbers of k-points along the three vectors, so that each times the width of the cell is `k_width`.

    Along open axes there is one.

    Examples
    --------
    >>> from ase.build import bulk
    >>> count_k_points(bulk("Cu", cubic=True), 20.0)
    (6, 6, 6)
    """
    if not atoms.pbc.any():
        return 1, 1, 1
    widths = cell_widths(make_periodic(atoms, VACUUM).cell.array)
    counts = np.where(atoms.pbc, np.ceil(k_width / widths - 1e-6), 1).astype(int)
    first, second, third = np.maximum(counts, 1).tolist()
    return first, second, third


def write_input(atoms: Atoms, settings: Cp2kSettings, kinds: dict[str, Kind], data: Path, *, robust: bool) -> str:
    """Return the input of a calculation of energy, forces and, for a crystal, stress.

    Parameters
    ----------
    atoms
        The structure; charge and multiplicity are taken from ``info``.
    settings
        What decides the numbers.
    kinds
        From `read_kinds`.
    data
        CP2K's folder of data.
    robust
        Whether to diagonalise with strong damping, for a structure that did not converge.
    """
    charge, multiplicity = total_charge(atoms), spin_multiplicity(atoms)
    grid = count_k_points(atoms, settings.k_width)
    diagonalise = robust or settings.method == "diagonalization" or max(grid) > 1
    n_electrons = sum(kinds[symbol].n_electrons for symbol in atoms.symbols) - charge
    boxed = place_in_cell(atoms)
    periodic = bool(atoms.pbc.any())
    lines = [
        "&GLOBAL", "PROJECT daskpipe", "PRINT_LEVEL LOW", "&END GLOBAL",
        "&FORCE_EVAL", "METHOD QUICKSTEP", *(["STRESS_TENSOR ANALYTICAL"] if periodic else []),
        "&DFT",
        f"BASIS_SET_FILE_NAME {data / 'BASIS_MOLOPT'}", f"POTENTIAL_FILE_NAME {data / 'GTH_POTENTIALS'}",
        f"CHARGE {charge}", f"MULTIPLICITY {multiplicity}", f"UKS {'T' if multiplicity > 1 else 'F'}",
        "&MGRID", f"CUTOFF {settings.cutoff}", f"REL_CUTOFF {settings.rel_cutoff}", "&END MGRID",
        "&QS", "METHOD GPW", "EPS_DEFAULT 1.0E-12", "&END QS",
        "&POISSON", *(["PERIODIC XYZ"] if periodic else ["PERIODIC NONE", "PSOLVER WAVELET"]), "&END POISSON",
        *_write_scf(settings, diagonalise, robust, periodic, n_electrons),
        "&XC", f"&XC_FUNCTIONAL {settings.functional}", "&END XC_FUNCTIONAL", "&END XC",
        *([] if max(grid) == 1 else [
            "&KPOINTS", f"SCHEME MONKHORST-PACK {grid[0]} {grid[1]} {grid[2]}", "SYMMETRY F", "FULL_GRID F",
            "&END KPOINTS",
        ]),
        "&END DFT",
        "&PRINT", "&STRESS_TENSOR ON", "&END STRESS_TENSOR", "&END PRINT",
        "&SUBSYS",
        "&CELL", *_write_rows("ABC", boxed.cell.array),
        f"PERIODIC {'XYZ' if periodic else 'NONE'}", "&END CELL",
        "&COORD",
        *_write_rows(list(boxed.symbols), boxed.positions),
        "&END COORD",
    ]  # fmt: skip
    for symbol in sorted(set(atoms.symbols)):
        kind = kinds[symbol]
        lines += [f"&KIND {symbol}", f"BASIS_SET {kind.basis}", f"POTENTIAL {kind.potential}", "&END KIND"]
    lines += ["&END SUBSYS", "&END FORCE_EVAL"]
    return "\n".join(lines) + "\n"


def _write_rows(names: Sequence[str], rows: np.ndarray) -> list[str]:
    """Return lines of a name and three numbers."""
    return [f"{name} {x:.12f} {y:.12f} {z:.12f}" for name, (x, y, z) in zip(names, rows, strict=True)]


def _write_scf(settings: Cp2kSettings, diagonalise: bool, robust: bool, periodic: bool, n_electrons: int) -> list[str]:
    """Return the section of the self-consistent field."""
    head = ["&SCF", "SCF_GUESS ATOMIC", f"EPS_SCF {settings.eps_scf:.3E}"]
    if not diagonalise:
        # Restarts of the preconditioner: the steps are shared out over them.
        inner = min(20, settings.max_scf)
        return [
            *head, f"MAX_SCF {inner}",
            "&OT", "MINIMIZER DIIS", "PRECONDITIONER FULL_ALL", "ENERGY_GAP 0.05", "&END OT",
            "&OUTER_SCF", f"MAX_SCF {max(1, round(settings.max_scf / inner))}", f"EPS_SCF {settings.eps_scf:.3E}",
            "&END OUTER_SCF",
            "&END SCF",
        ]  # fmt: skip
    smear = []
    if periodic:
        smear = [
            f"ADDED_MOS {max(4, round(EMPTY_LEVELS * n_electrons))}",
            "&SMEAR ON", "METHOD FERMI_DIRAC", f"ELECTRONIC_TEMPERATURE {METALS_TEMPERATURE}", "&END SMEAR",
        ]  # fmt: skip
    return [
        *head, f"MAX_SCF {settings.max_scf * (3 if robust else 1)}",
        "&DIAGONALIZATION ON", "ALGORITHM STANDARD", "&END DIAGONALIZATION",
        *smear,
        "&MIXING", "METHOD BROYDEN_MIXING", f"ALPHA {0.1 if robust else 0.4}", "NBROYDEN 8", "&END MIXING",
        "&END SCF",
    ]  # fmt: skip
