"""Read what a user wants to study: chemical formulas, SMILES, and files of structures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daskpipe.core.errors import ConfigError, InputError

Form = Literal["formula", "molecule", "smiles", "file"]
Bonding = Literal["metallic", "ionic", "covalent", "molecular"]

METALLOIDS = frozenset({"B", "Si", "Ge", "As", "Sb", "Te"})
"""Elements between metals and nonmetals, whose bonds are covalent."""

NONMETALS = frozenset(
    ["H", "He", "C", "N", "O", "F", "Ne", "P", "S", "Cl", "Ar", "Se", "Br", "Kr", "I", "Xe", "At", "Rn"]
)
"""Elements whose compounds with each other are molecules, but for carbon alone."""


@dataclass(frozen=True, kw_only=True)
class System:
    """One thing to study.

    Parameters
    ----------
    text
        The formula, the name of a molecule in ASE's G2 set, the SMILES, or the path.
    form
        Which of these it is.
    symbols
        Its elements, in the order of their appearance.
    bonding
        The bonds that hold it together; of a file those of its elements.
    open
        Whether it has a vacuum along all directions: a molecule, or a file without periodic frames.
    n_atoms
        Largest number of atoms of the frames of a file; 0 for what is no file.
    """

    text: str
    form: Form
    symbols: tuple[str, ...]
    bonding: Bonding
    open: bool
    n_atoms: int = 0

    def describe(self) -> str:
        """Return what the text was taken for, as a sentence."""
        words = {
            "formula": f"a chemical formula: crystals of {', '.join(self.symbols)}",
            "molecule": "the molecule of that name in ASE's G2 set",
            "smiles": f"a SMILES: a molecule of {', '.join(self.symbols)}",
            "file": f"a file of {'molecules' if self.open else 'crystals'} of {', '.join(self.symbols)}",
        }
        return f"{self.text} is {words[self.form]}."


def read_system(text: str, prefer: Literal["formula", "smiles"] | None = None) -> System:
    """Find out what a text means.

    An existing file comes first. A formula with a metal or a metalloid is a crystal. What has nonmetals alone is a
    molecule: of ASE's G2 set if that has the name, else a SMILES.

    Parameters
    ----------
    text
        What was typed.
    prefer
        What a text that can be both shall be.

    Raises
    ------
    ConfigError
        If it is none of these, or could be two of them.
    InputError
        If a file cannot be read.

    Examples
    --------
    >>> read_system("MgO").bonding, read_system("CCO").form, read_system("H2O").form
    ('ionic', 'smiles', 'molecule')
    """
    path = Path(text).expanduser()
    if path.exists():
        return _read_file(path)
    if (path.suffix and "/" in text) or path.suffix in (".cif", ".xyz", ".extxyz", ".vasp", ".db", ".traj"):
        raise ConfigError(f"{text} does not exist; give the path of a file of structures, a formula or a SMILES")
    symbols = _read_formula(text)
    molecular = symbols is not None and NONMETALS.issuperset(symbols)
    if symbols is not None and (not molecular or prefer == "formula"):
        return System(text=text, form="formula", symbols=symbols, bonding=bonding_of(symbols), open=False)
    if symbols is not None and len(symbols) == 1 and text == symbols[0] and prefer is None:
        raise ConfigError(
            f"{text} can be the element and the SMILES of its hydride; "
            "type --kinds bulk for the element, or --kinds molecules for the molecule"
        )
    if (symbols is None or molecular) and (system := _read_molecule(text)) is not None:
        return system
    if molecular:
        raise ConfigError(
            f"{text} is a formula of nonmetals, which has many molecules, and is not in ASE's G2 set; give a SMILES, "
            "such as CCO for ethanol, or a file; --kinds bulk for a crystal"
        )
    raise ConfigError(
        f"{text!r} is neither a file, nor a chemical formula such as MgO, nor a SMILES such as CCO; "
        "check the spelling, or give a file of structures"
    )


def bonding_of(symbols: Sequence[str]) -> Bonding:
    """Return the bonds that elements make with each other in a crystal.

    Examples
    --------
    >>> [bonding_of(each) for each in (["Cu", "Zn"], ["Ti", "O"], ["Si", "C"], ["C"], ["C", "H"])]
    ['metallic', 'ionic', 'covalent', 'covalent', 'molecular']
    """
    elements = set(symbols)
    metals = elements - NONMETALS - METALLOIDS
    if elements == metals:
        return "metallic"
    if metals:
        return "ionic" if elements & NONMETALS else "covalent"
    if elements <= NONMETALS:
        return "covalent" if elements == {"C"} else "molecular"
    return "ionic" if elements & {"O", "F", "Cl", "Br"} else "covalent"


def _read_formula(text: str) -> tuple[str, ...] | None:
    """Return the elements of a chemical formula; ``None`` if the text is none.

    Nonmetals that are written twice, as in CCO, are a SMILES.
    """
    from pymatgen.core import Composition

    from daskpipe.stages.generate.formula import check_formula

    try:
        symbols = tuple(map(str, Composition(check_formula(text))))
    except (ValueError, KeyError):
        return None
    written = re.findall("[A-Z][a-z]?", text)
    return None if NONMETALS.issuperset(symbols) and len(written) > len(set(written)) else symbols


def _read_molecule(text: str) -> System | None:
    """Return a molecule by its name in G2, or by its SMILES; ``None`` if the text is neither."""
    from ase.collections import g2

    from daskpipe.stages.generate.conformers import read_smiles

    if text in g2.names and len(g2[text]) > 1:
        symbols = tuple(dict.fromkeys(g2[text].symbols))
        return System(text=text, form="molecule", symbols=symbols, bonding="molecular", open=True)
    try:
        mol = read_smiles(text)
    except ValueError:
        return None
    symbols = tuple(dict.fromkeys(atom.GetSymbol() for atom in mol.GetAtoms()))
    return System(text=text, form="smiles", symbols=symbols, bonding="molecular", open=True)


def _read_file(path: Path) -> System:
    """Return the system of a file of structures."""
    from daskpipe.stages.generate.base import check_base, probe_base

    try:
        frames = probe_base(check_base({"generator": "files", "paths": [str(path)]}))
    except ValueError as error:
        raise InputError(f"{path}: {str(error).removeprefix('of: ')}") from error
    symbols = tuple(dict.fromkeys(symbol for frame in frames for symbol in frame.symbols))
    is_open = not any(frame.pbc.any() for frame in frames)
    return System(
        text=str(path),
        form="file",
        symbols=symbols,
        bonding="molecular" if is_open and set(symbols) <= NONMETALS else bonding_of(symbols),
        open=is_open,
        n_atoms=max(map(len, frames)),
    )
