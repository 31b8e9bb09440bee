"""Generate small molecules from the G2 set, which comes with ASE."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from ase import Atoms
from ase.collections import g2
from pydantic import AfterValidator

from daskpipe.stages.generate.disorder import displace_atoms
from daskpipe.stages.generate.params import CountRange, Element, NotEmpty, Rattle, Vacuum, count_range


def molecule_name(name: str) -> str:
    """Return `name` if G2 has a molecule of that name, else raise ValueError with the nearest names."""
    if name not in g2.names:
        near = get_close_matches(name, g2.names, n=5, cutoff=0.5)
        hint = f" Near: {', '.join(near)}." if near else ""
        raise ValueError(f"unknown molecule {name!r}.{hint} ase.collections.g2.names lists all {len(g2.names)}.")
    return name


MoleculeName = Annotated[str, AfterValidator(molecule_name)]
"""Name of a molecule in G2."""


def molecules(
    *,
    rng: np.random.Generator,
    names: Annotated[list[MoleculeName], NotEmpty] | None = None,
    elements: Annotated[list[Element], NotEmpty] | None = None,
    n_atoms: CountRange = (2, 100),
    vacuum: Vacuum = 10.0,
    rattle: Rattle = 0.05,
) -> Iterator[Atoms]:
    """Yield molecules of the G2 set, each once.

    Parameters
    ----------
    rng
        Stream of the structures.
    names
        Names in `ase.collections.g2`; all of them by default.
    elements
        Keep only molecules made of these.
    n_atoms
        Number of atoms, or lowest and highest; it does not apply to `names`.
    vacuum
        Gap between the molecule and its image, had the cell one, Å.
    rattle
        Standard deviation of displacements along each axis, Å.

    Yields
    ------
    ase.Atoms
        Not periodic, in the middle of an orthogonal cell, with ``charge`` and ``spin_multiplicity`` in ``info``.
    """
    for name in matching_molecules(names=names, elements=elements, n_atoms=n_atoms):
        molecule = g2[name]
        atoms = Atoms(molecule.numbers, molecule.positions)
        displace_atoms(rng, atoms, rattle)
        atoms.center(vacuum=vacuum / 2)
        unpaired = round(float(molecule.get_initial_magnetic_moments().sum()))
        atoms.info = {"system_type": "molecule", "charge": 0, "spin_multiplicity": unpaired + 1}
        yield atoms


def matching_molecules(
    *, names: list[str] | None, elements: list[str] | None, n_atoms: int | tuple[int, int]
) -> list[str]:
    """Return the names of the requested molecules, in the order given or in that of G2."""
    low, high = count_range(n_atoms)
    chosen = (
        list(dict.fromkeys(map(molecule_name, names)))
        if names
        else [name for name in g2.names if low <= len(g2[name]) <= high]
    )
    return [name for name in chosen if elements is None or set(g2[name].symbols) <= set(elements)]


def expand_requests(params: dict[str, Any], n: int | None, base_dir: Path) -> list[tuple[dict[str, Any], str]]:
    """Return the parameters of one request for each molecule.

    Parameters
    ----------
    params
        Parameters of `molecules`.
    n
        Number of requests: the first `n` molecules, then the first ones again with new displacements. Each molecule
        once by default.
    base_dir
        Ignored: molecules come with ASE.

    Raises
    ------
    ValueError
        If no molecule matches, or if `n` asks for exact copies.
    """
    names = matching_molecules(names=params["names"], elements=params["elements"], n_atoms=params["n_atoms"])
    if not names:
        raise ValueError(
            f"no molecule is left with elements {params['elements']} and n_atoms {params['n_atoms']}; "
            "allow more elements or sizes, or leave out elements"
        )
    if n is not None and n > len(names) and params["rattle"] == 0:
        raise ValueError(f"n: {n} molecules were asked for and {len(names)} match; lower n, or set rattle above 0")
    return [({**params, "names": [name]}, "") for name in islice(cycle(names), n or len(names))]
