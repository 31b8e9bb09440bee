"""What the coordinates of a molecule say about its bonds, by RDKit and by covalent radii."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds

BOND = 1.25
"""Longest bond, as a multiple of the sum of the covalent radii."""


def bonds_of_geometry(atoms: Atoms) -> set[tuple[int, int]]:
    """Return the pairs of atoms, the lower index first, that are closer than `BOND` allows bonds to be."""
    limit = BOND * np.add.outer(*[covalent_radii[atoms.numbers]] * 2)
    near = np.triu(atoms.get_all_distances() < limit, 1)
    return {(int(i), int(j)) for i, j in np.argwhere(near)}


def mol_of_geometry(atoms: Atoms) -> Chem.Mol:
    """Return the molecule with the bonds and bond orders that RDKit finds in the coordinates, sanitised."""
    mol = Chem.RWMol()
    for number in atoms.numbers.tolist():
        atom = Chem.Atom(number)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for i, j in sorted(bonds_of_geometry(atoms)):
        mol.AddBond(i, j, Chem.BondType.SINGLE)
    with rdBase.BlockLogs():
        rdDetermineBonds.DetermineBondOrders(mol, charge=atoms.info.get("charge", 0), embedChiral=False)
    Chem.SanitizeMol(mol)
    return mol.GetMol()


def smiles_of_geometry(atoms: Atoms) -> str:
    """Return the canonical SMILES of a geometry."""
    return Chem.MolToSmiles(Chem.RemoveHs(mol_of_geometry(atoms)))
