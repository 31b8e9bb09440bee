"""Generate molecules: those of the sets that come with ASE, and conformers of SMILES."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from ase import Atoms
from ase.collections import g2, s22
from pydantic import AfterValidator, Field

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.conformers import EmbedError, Smiles, draw_conformer, read_smiles
from daskpipe.stages.generate.disorder import displace_atoms
from daskpipe.stages.generate.params import CountRange, Element, NotEmpty, Rattle, Vacuum, count_range

SETS = {"g2": g2, "s22": s22}
"""Sets of molecules; no two have a name in common."""

Conformers = Annotated[int, Field(ge=1, le=10_000)]
"""Number of conformers of a molecule."""


def molecule_name(name: str) -> str:
    """Return `name` if G2 or S22 has a molecule of that name, else raise ValueError with the nearest names."""
    known = [*g2.names, *s22.names]
    if name not in known:
        near = get_close_matches(name, known, n=5, cutoff=0.5)
        hint = f" Near: {', '.join(near)}." if near else ""
        raise ValueError(
            f"unknown molecule {name!r}.{hint} ase.collections.g2.names lists all {len(g2.names)}, "
            f"s22.names {len(s22.names)} dimers; other molecules are given as smiles."
        )
    return name


MoleculeName = Annotated[str, AfterValidator(molecule_name)]
"""Name of a molecule in G2 or S22."""


ADDED_PARAMETERS = ("conformers", "set", "smiles")
"""Parameters that came later; they leave the keys of earlier runs as they were (see `stage.Request.fingerprint`)."""


def molecules(
    *,
    rng: np.random.Generator,
    names: Annotated[list[MoleculeName], NotEmpty] | None = None,
    elements: Annotated[list[Element], NotEmpty] | None = None,
    n_atoms: CountRange = (2, 100),
    vacuum: Vacuum = 10.0,
    rattle: Rattle = 0.05,
    set: Literal["g2", "s22"] = "g2",
    smiles: Annotated[list[Smiles], NotEmpty] | None = None,
    conformers: Conformers = 1,
) -> Iterator[Atoms | Rejection]:
    """Yield molecules of ASE's sets, each once, and conformers of SMILES.

    Parameters
    ----------
    rng
        Stream of the structures.
    names
        Names in `ase.collections.g2` or `ase.collections.s22`.
    elements
        Keep only molecules made of these.
    n_atoms
        Number of atoms, or lowest and highest; it does not apply to `names` and `smiles`.
    vacuum
        Gap between the molecule and its image, had the cell one, Å.
    rattle
        Standard deviation of displacements along each axis, Å.
    set
        The set that is taken whole if neither `names` nor `smiles` are given: ``g2`` (small molecules and atoms;
        Curtiss, DOI 10.1063/1.473182) or ``s22`` (dimers; Jurecka, DOI 10.1039/b600027d).
    smiles
        Molecules and ions as SMILES, without hydrogens that valence implies; each is embedded and relaxed as
        `daskpipe.stages.generate.conformers.draw_conformer` does.
    conformers
        Number of conformers of each SMILES.

    Yields
    ------
    ase.Atoms or Rejection
        Not periodic, in the middle of an orthogonal cell, with ``charge`` and ``spin_multiplicity`` in ``info``. A
        SMILES that cannot be embedded is a rejection.

    Raises
    ------
    ValueError
        When called, if no molecule matches, or `conformers` are asked for without `smiles`.
    """
    items = list_items(
        names=names, elements=elements, n_atoms=n_atoms, collection=set, smiles=smiles, conformers=conformers
    )
    return (_make_molecule(rng, item, vacuum, rattle) for item in items)


def list_items(
    *,
    names: list[str] | None,
    elements: list[str] | None,
    n_atoms: int | tuple[int, int],
    collection: str,
    smiles: list[str] | None,
    conformers: int,
) -> list[tuple[str, str]]:
    """Return what to make: pairs of ``names`` or ``smiles`` and the molecule, those of a set in its order.

    Raises
    ------
    ValueError
        As `molecules`.
    """
    if conformers > 1 and not smiles:
        raise ValueError(f"conformers: {conformers} were asked for; they are made of smiles only, e.g. smiles: [CCO]")
    if names or smiles:
        chosen = list(dict.fromkeys(map(molecule_name, names or [])))
    else:
        low, high = count_range(n_atoms)
        chosen = [name for name in SETS[collection].names if low <= len(_find(name)) <= high]
    allowed = None if elements is None else frozenset(elements)
    kept = [("names", name) for name in chosen if _is_made_of(_find(name).symbols, allowed)]
    for text in dict.fromkeys(smiles or []):
        if _is_made_of((atom.GetSymbol() for atom in read_smiles(text).GetAtoms()), allowed):
            kept += [("smiles", text)] * conformers
    if not kept:
        raise ValueError(
            f"no molecule is left with elements {elements} and n_atoms {n_atoms}; "
            "allow more elements or sizes, or leave out elements"
        )
    return kept


def expand_requests(params: Mapping[str, Any], n: int | None, base_dir: Path) -> list[tuple[dict[str, Any], str]]:
    """Return the parameters of one request for each molecule, and for each conformer.

    Parameters
    ----------
    params
        Parameters of `molecules`.
    n
        Number of requests: the first `n` molecules, then the first ones again with new displacements and conformers.
        Each molecule once by default.
    base_dir
        Ignored: molecules come with ASE or from SMILES.

    Raises
    ------
    ValueError
        As `molecules`, or if `n` asks for exact copies.
    """
    items = list_items(
        names=params["names"],
        elements=params["elements"],
        n_atoms=params["n_atoms"],
        collection=params["set"],
        smiles=params["smiles"],
        conformers=params["conformers"],
    )
    n_named = sum(kind == "names" for kind, _ in items)
    if n is not None and n > len(items) and n_named and params["rattle"] == 0:
        raise ValueError(f"n: {n} molecules were asked for and {len(items)} match; lower n, or set rattle above 0")
    one = {**params, "names": None, "smiles": None, "conformers": 1}
    return [({**one, kind: [molecule]}, "") for kind, molecule in islice(cycle(items), n or len(items))]


def _make_molecule(rng: np.random.Generator, item: tuple[str, str], vacuum: float, rattle: float) -> Atoms | Rejection:
    name = item[1]
    try:
        atoms = draw_molecule(rng, *item)
    except EmbedError as error:
        return Rejection(stage="generate", structure=name, reason="embedding", evidence=str(error))
    displace_atoms(rng, atoms, rattle)
    atoms.center(vacuum=vacuum / 2)
    atoms.info["system_type"] = "molecular_cluster" if name in s22.names else "molecule"
    return atoms


def draw_molecule(rng: np.random.Generator, kind: str, name: str) -> Atoms:
    """Return a molecule of ASE's sets, or a new conformer of a SMILES, without cell; charge and spin are in ``info``.

    Parameters
    ----------
    rng
        The structure's stream.
    kind
        ``"names"`` or ``"smiles"``.
    name
        Name in G2 or S22, or SMILES.

    Raises
    ------
    EmbedError
        If a SMILES has no geometry.
    """
    return copy_named(name) if kind == "names" else draw_conformer(rng, read_smiles(name))


def copy_named(name: str) -> Atoms:
    """Return a molecule of G2 or S22, without cell, with ``charge`` and ``spin_multiplicity`` in ``info``."""
    molecule = _find(name)
    unpaired = round(float(molecule.get_initial_magnetic_moments().sum()))
    info = {"charge": 0, "spin_multiplicity": unpaired + 1}
    return Atoms(molecule.numbers, molecule.positions, info=info)


def _find(name: str) -> Atoms:
    return SETS["g2" if name in g2.names else "s22"][name]


def _is_made_of(symbols: Iterable[str], allowed: frozenset[str] | None) -> bool:
    return allowed is None or allowed.issuperset(symbols)
