"""Make conformers of molecules with RDKit: read SMILES, embed in space, relax with a force field."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from ase import Atoms
from pydantic import AfterValidator

from daskpipe.stages.generate.extras import import_extra
from daskpipe.stages.generate.reading.left_out import NOTED

MOST_ATTEMPTS = 20
"""Attempts of RDKit at the coordinates of a molecule: first from distances, then as many from random coordinates."""

ROUGH_ATTEMPTS = 3
"""The same for molecules of which any other will do."""

MOST_SECONDS = 60
"""Seconds after which RDKit gives up an attempt: a guard, since it hangs for some molecules."""

RANDOM_START = 40
"""Number of atoms from which random coordinates come first: distances alone fail for most molecules of 80 atoms."""

UNRELAXED = "relaxation (no force field)"
"""Note of a molecule for which neither MMFF94 nor UFF has parameters."""


class EmbedError(ValueError):
    """Raised for a molecule for which RDKit makes no coordinates."""


def check_smiles(smiles: str) -> str:
    """Return `smiles` if RDKit can read it and it is one molecule, else raise ValueError that says what is wrong."""
    read_smiles(smiles)
    return smiles


Smiles = Annotated[str, AfterValidator(check_smiles)]
"""A molecule, or an ion, as SMILES."""


def read_smiles(smiles: str) -> Any:
    """Return the `rdkit.Chem.Mol` of a SMILES, with explicit hydrogens.

    Raises
    ------
    ValueError
        If it cannot be read, violates valence, has a dummy atom, or is more or less than one molecule.

    Examples
    --------
    >>> read_smiles("CCO").GetNumAtoms()
    9
    """
    chem, base = import_extra("rdkit.Chem"), import_extra("rdkit.rdBase")
    with base.BlockLogs():
        mol = chem.MolFromSmiles(smiles)
        if mol is None:
            raise ValueError(f"SMILES {smiles!r} cannot be used: {_explain_smiles(chem, smiles)}")
    if mol.GetNumAtoms() == 0:
        raise ValueError("an empty SMILES; give a molecule, e.g. 'CCO' for ethanol")
    if any(atom.GetAtomicNum() == 0 for atom in mol.GetAtoms()):
        raise ValueError(f"SMILES {smiles!r} has a dummy atom (*); put an element in its place")
    if (n_parts := len(chem.GetMolFrags(mol))) > 1:
        raise ValueError(
            f"SMILES {smiles!r} is of {n_parts} molecules; give each as an item of its own "
            "(generators molecular_clusters and liquids put them together)"
        )
    return chem.AddHs(mol)


def _explain_smiles(chem: Any, smiles: str) -> str:
    raw = chem.MolFromSmiles(smiles, sanitize=False)
    if raw is None:
        return "it is no valid SMILES; check brackets, ring numbers and symbols, e.g. 'CCO' for ethanol"
    problems = [problem.Message() for problem in chem.DetectChemistryProblems(raw)]
    return f"{'; '.join(problems)}; write charges and hydrogens of such atoms in brackets, e.g. '[NH4+]'"


def charge_and_spin(mol: Any) -> dict[str, int]:
    """Return ``charge``, the sum of the formal charges, and ``spin_multiplicity`` with radical electrons unpaired.

    Examples
    --------
    >>> charge_and_spin(read_smiles("[O][O]")), charge_and_spin(read_smiles("[OH-]"))
    ({'charge': 0, 'spin_multiplicity': 3}, {'charge': -1, 'spin_multiplicity': 1})
    """
    unpaired = sum(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())
    return {"charge": import_extra("rdkit.Chem").GetFormalCharge(mol), "spin_multiplicity": unpaired + 1}


def draw_conformer(rng: np.random.Generator, mol: Any, *, iterations: int = 200) -> Atoms:
    """Draw a conformer of a molecule: ETKDG, then MMFF94, else UFF, else no relaxation.

    Parameters
    ----------
    rng
        The structure's stream.
    mol
        `rdkit.Chem.Mol` with explicit hydrogens; it gets the conformer too.
    iterations
        Steps of the relaxation.

    Returns
    -------
    ase.Atoms
        Not periodic, without cell; charge and spin multiplicity in ``info``, masses of isotopes. Where no force field
        has parameters, a note says that the relaxation was left out.

    Raises
    ------
    EmbedError
        If RDKit makes no coordinates.

    Notes
    -----
    ETKDGv3: Riniker and Landrum, DOI 10.1021/acs.jcim.5b00654. MMFF94: Halgren, DOI
    10.1002/(SICI)1096-987X(199604)17:5/6<490::AID-JCC1>3.0.CO;2-P. UFF: Rappé, DOI 10.1021/ja00051a040. As
    implemented in RDKit; coordinates may differ between its releases.
    """
    embed_molecule(rng, mol)
    relaxed = relax_molecule(mol, iterations)
    atoms = Atoms([atom.GetAtomicNum() for atom in mol.GetAtoms()], mol.GetConformer().GetPositions())
    atoms.info = charge_and_spin(mol)
    if isotopes := {atom.GetIdx(): atom.GetMass() for atom in mol.GetAtoms() if atom.GetIsotope()}:
        masses = atoms.get_masses()
        masses[list(isotopes)] = list(isotopes.values())
        atoms.set_masses(masses)
    if not relaxed:
        atoms.info[NOTED] = (UNRELAXED,)
    return atoms


def embed_molecule(rng: np.random.Generator, mol: Any, *, attempts: int = MOST_ATTEMPTS) -> None:
    """Give a molecule coordinates by ETKDGv3.

    Raises
    ------
    EmbedError
        If `attempts` from distances and as many from random coordinates fail.
    """
    geometry, base = import_extra("rdkit.Chem.rdDistGeom"), import_extra("rdkit.rdBase")
    params = geometry.ETKDGv3()
    params.randomSeed = int(rng.integers(1, 2**31 - 1))
    params.maxIterations = attempts
    params.timeout = MOST_SECONDS
    params.useRandomCoords = mol.GetNumAtoms() > RANDOM_START
    with base.BlockLogs():
        for _ in range(2):
            if geometry.EmbedMolecule(mol, params) >= 0:
                return
            params.useRandomCoords = not params.useRandomCoords
    raise EmbedError(
        f"RDKit makes no coordinates for it in {2 * attempts} attempts; check its rings and stereocentres, "
        "or give its geometry as a file"
    )


def embed_roughly(rng: np.random.Generator, mol: Any) -> Any:
    """Return a molecule with coordinates by plain distance geometry, which knows no preferred torsions.

    It takes a tenth of the time of `embed_molecule` at 60 atoms, for molecules whose torsions are changed afterwards.
    Hydrogen atoms are left out of it, put where the geometry of their neighbour has room, and come last.

    Raises
    ------
    EmbedError
        If `ROUGH_ATTEMPTS` from distances and as many from random coordinates fail.
    """
    geometry, base = import_extra("rdkit.Chem.rdDistGeom"), import_extra("rdkit.rdBase")
    params = geometry.EmbedParameters()
    params.randomSeed = int(rng.integers(1, 2**31 - 1))
    params.maxIterations = ROUGH_ATTEMPTS
    params.timeout = MOST_SECONDS
    params.optimizerForceTol = 0.02  # looser is refused by RDKit's own checks
    params.boxSizeMult = 1.0
    chem = import_extra("rdkit.Chem")
    with base.BlockLogs():
        skeleton = chem.RemoveHs(mol)
        for params.useRandomCoords in (False, True):
            if geometry.EmbedMolecule(skeleton, params) >= 0:
                return chem.AddHs(skeleton, addCoords=True)
    raise EmbedError(f"RDKit makes no coordinates for it in {2 * ROUGH_ATTEMPTS} attempts")


def relax_molecule(mol: Any, iterations: int, *, reach: float = 100.0) -> bool:
    """Relax the coordinates of a molecule, in place; return whether a force field has parameters for it.

    Parameters
    ----------
    mol, iterations
        The molecule, and steps of the relaxation.
    reach
        Distance, Å, beyond which atoms that no bond joins have no forces on each other.
    """
    fields, base = import_extra("rdkit.Chem.rdForceFieldHelpers"), import_extra("rdkit.rdBase")
    with base.BlockLogs():
        if fields.MMFFHasAllMoleculeParams(mol):
            return bool(fields.MMFFOptimizeMolecule(mol, maxIters=iterations, nonBondedThresh=reach) >= 0)
        if fields.UFFHasAllMoleculeParams(mol):
            return bool(fields.UFFOptimizeMolecule(mol, maxIters=iterations, vdwThresh=min(10.0, reach / 2)) >= 0)
    return False
