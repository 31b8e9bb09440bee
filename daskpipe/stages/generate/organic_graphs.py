"""Grow random molecular graphs that satisfy valence, with an exact number of atoms, hydrogens included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from daskpipe.stages.generate.extras import import_extra

TERMINAL = {"H": 1.0, "F": 1.6, "Cl": 1.6, "Br": 1.0, "I": 0.6}
"""Weight of each element of valence one among the atoms that end chains."""

SKELETON = {"C": 1.1, "N": 1.4, "O": 0.8, "S": 1.4, "P": 1.9, "Si": 3.0}
"""Weight of each element among the single atoms that chains grow by."""

N_HETERO = (1, 4)
"""Least and most elements other than carbon in the chains of a molecule; the other ones are rare in it."""

SCARCE = 0.03
"""Factor of the weight of an element that is rare in a molecule."""

NO_HALOGEN = 0.25
"""Share of the molecules in which halogens are rare; the others have one of them."""

GROUPS = {
    "C=O": 0.25,
    "C(=O)O": 0.15,
    "C(=O)N": 0.15,
    "C#N": 0.15,
    "C#C": 0.1,
    "[NH+](=O)[O-]": 0.1,
    "C[SH](=O)=O": 0.1,
    "O[SH](=O)=O": 0.1,
    "N[SH](=O)=O": 0.1,
    "C[SH]=O": 0.1,
    "[PH3]=O": 0.4,
    "O[PH2]=O": 0.2,
    "c1ccccc1": 0.12,
    "c1ccncc1": 0.1,
    "c1ncncn1": 0.05,
    "c1ccsc1": 0.1,
    "c1cscn1": 0.1,
    "c1ccoc1": 0.1,
    "c1cc[nH]c1": 0.05,
    "c1cnc[nH]1": 0.05,
    "C1CCOC1": 0.05,
    "C1COCCN1": 0.05,
    "C1CC1": 0.05,
}
"""Weight of each functional group and ring that chains grow by, as SMILES; their hydrogens are where they attach."""

RARE = {
    frozenset(pair.split("-")) if len(set(pair.split("-"))) > 1 else frozenset(pair.split("-")[:1]): weight
    for pair, weight in {
        "N-N": 0.1, "N-O": 0.1, "O-O": 0.005, "O-S": 0.2, "S-S": 0.15, "N-S": 0.3, "P-P": 0.02, "P-S": 0.3,
        "N-P": 0.4, "Si-Si": 0.15, "Si-P": 0.1, "Si-S": 0.3, "N-Si": 0.5,
        "F-N": 1e-3, "F-O": 1e-4, "F-S": 0.01, "F-P": 0.2, "Cl-N": 1e-3, "Cl-O": 1e-4, "Cl-S": 0.01, "Cl-P": 0.2,
        "Br-N": 1e-3, "Br-O": 1e-4, "Br-S": 0.01, "Br-P": 0.1, "I-N": 1e-3, "I-O": 1e-4, "I-S": 0.01, "I-P": 0.1,
    }.items()
}  # fmt: skip
"""Weight of bonds that are rare or unstable in organic chemistry; 1 for all others."""

UNSATED = {"P": 2.0, "Si": 2.0}
"""Weight of an element where chains may branch, 1 for all others: P-H and Si-H bonds are reactive."""

CROWDING = (1.0, 1.0, 1.0, 0.4, 0.1, 0.1, 0.1)
"""Weight of an atom where chains may branch, by the number of its neighbours that are not terminal."""

RING_SIZES = (5, 6)
"""Sizes of the rings that are closed in chains."""

MOST_STARTS = 50
"""Graphs that are begun, at most, until one has the exact number of atoms."""


class GrowthError(ValueError):
    """Raised if no graph has the number of atoms that was asked for."""


@dataclass(frozen=True)
class Fragment:
    """A piece of a molecule, with the free valences by which it is attached."""

    symbols: tuple[str, ...]
    charges: tuple[int, ...]
    bonds: tuple[tuple[int, int, int], ...]
    free: tuple[int, ...]
    in_ring: tuple[bool, ...]

    @property
    def anchors(self) -> list[int]:
        """Atoms by which it may be attached: sulfur of sulfonyl and sulfoxide, which bind no hydrogen; else any."""
        free = [i for i, n in enumerate(self.free) if n]
        return [i for i in free if self.symbols[i] == "S"] or free

    @property
    def gain(self) -> int:
        """Number of atoms by which a molecule grows, once all free valences end in an atom."""
        return len(self.symbols) + sum(self.free) - 2


@cache
def read_fragment(smiles: str) -> Fragment:
    """Return the fragment of a SMILES, whose hydrogens become free valences."""
    chem = import_extra("rdkit.Chem")
    mol = chem.MolFromSmiles(smiles)
    chem.Kekulize(mol, clearAromaticFlags=True)
    atoms = list(mol.GetAtoms())
    return Fragment(
        symbols=tuple(atom.GetSymbol() for atom in atoms),
        charges=tuple(atom.GetFormalCharge() for atom in atoms),
        bonds=tuple(
            (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), int(bond.GetBondTypeAsDouble())) for bond in mol.GetBonds()
        ),
        free=tuple(atom.GetTotalNumHs() for atom in atoms),
        in_ring=tuple(atom.IsInRing() for atom in atoms),
    )


def list_fragments(elements: tuple[str, ...]) -> dict[Fragment, float]:
    """Return the weights of the fragments that consist of some elements."""
    smiles = {("[SiH4]" if symbol == "Si" else symbol): weight for symbol, weight in SKELETON.items()} | GROUPS
    fragments = {read_fragment(text): weight for text, weight in smiles.items()}
    return {fragment: weight for fragment, weight in fragments.items() if {*fragment.symbols} <= {*elements}}


@dataclass
class Graph:
    """A molecule that grows: atoms, bonds, and free valences."""

    symbols: list[str] = field(default_factory=list)
    charges: list[int] = field(default_factory=list)
    free: list[int] = field(default_factory=list)
    in_ring: list[bool] = field(default_factory=list)
    is_multiple: list[bool] = field(default_factory=list)
    bonds: list[dict[int, int]] = field(default_factory=list)
    """Order of the bond to each neighbour, of each atom."""

    @property
    def n_atoms(self) -> int:
        """Number of atoms, once all free valences end in an atom."""
        return len(self.symbols) + sum(self.free)

    def add_fragment(self, fragment: Fragment) -> int:
        """Add the atoms of a fragment, attached to nothing; return the index of the first."""
        first = len(self.symbols)
        self.symbols += fragment.symbols
        self.charges += fragment.charges
        self.free += fragment.free
        self.in_ring += fragment.in_ring
        self.is_multiple += [False] * len(fragment.symbols)
        self.bonds += [{} for _ in fragment.symbols]
        for i, j, order in fragment.bonds:
            self.set_bond(first + i, first + j, order)
        return first

    def set_bond(self, i: int, j: int, order: int) -> None:
        """Set the order of a bond; free valences are left as they are."""
        self.bonds[i][j] = self.bonds[j][i] = order
        if order > 1:
            self.is_multiple[i] = self.is_multiple[j] = True

    def use_free(self, i: int, j: int, order: int) -> None:
        """Make a bond, or raise its order by one, from a free valence of each of two atoms."""
        self.free[i] -= 1
        self.free[j] -= 1
        self.set_bond(i, j, order)


def pair_weight(first: str, second: str) -> float:
    """Return the weight of a bond between two elements."""
    return RARE.get(frozenset((first, second)), 1.0)


def draw_one(rng: np.random.Generator, weights: list[float]) -> int:
    """Draw an index with probabilities proportional to weights, at least one of which is above 0."""
    edges = np.cumsum(weights)
    return min(int(np.searchsorted(edges, rng.random() * edges[-1], side="right")), len(weights) - 1)


def grow_graph(rng: np.random.Generator, n_atoms: int, elements: tuple[str, ...]) -> Graph:
    """Grow a random molecule.

    Chains grow by atoms, functional groups and rings; bonds in them are raised to double bonds, and rings are closed.
    Each of these changes the number of atoms that the molecule will have, once its free valences end in hydrogen or
    halogen, by a known number, and growth ends when it is the one that was asked for.

    Parameters
    ----------
    rng
        The structure's stream.
    n_atoms
        Number of atoms, hydrogens included.
    elements
        Elements to use: carbon, and at least one of valence one.

    Returns
    -------
    Graph
        Neutral, connected, without free valences.

    Raises
    ------
    GrowthError
        If growth misses the number of atoms `MOST_STARTS` times.
    """
    fragments = list_fragments(elements)
    for _ in range(MOST_STARTS):
        taste = _draw_taste(rng, elements)
        weights = {
            fragment: weight * float(np.mean([taste[symbol] for symbol in fragment.symbols]))
            for fragment, weight in fragments.items()
        }
        graph = _grow_chains(rng, n_atoms, weights, unsaturation=rng.uniform(0.05, 0.4))
        if graph is not None:
            _end_chains(
                rng, graph, {symbol: TERMINAL[symbol] * taste[symbol] for symbol in elements if symbol in TERMINAL}
            )
            return graph
    raise GrowthError(
        f"no molecule of {n_atoms} atoms was made of {', '.join(elements)} in {MOST_STARTS} tries; "
        "allow more elements, e.g. O, or another number of atoms"
    )


def _draw_taste(rng: np.random.Generator, elements: tuple[str, ...]) -> dict[str, float]:
    """Draw the weight of each element in one molecule: carbon, hydrogen, a few other elements, and a halogen."""
    hetero = [symbol for symbol in elements if symbol in SKELETON and symbol != "C"]
    halogens = [symbol for symbol in elements if symbol in TERMINAL and symbol != "H"]
    least, most = N_HETERO
    chosen = {"C", "H", *rng.permutation(hetero)[: int(rng.integers(least, most + 1))].tolist()}
    if "H" not in elements or rng.random() > NO_HALOGEN:
        chosen |= set(rng.permutation(halogens)[:1].tolist())
    spread = np.exp(rng.normal(scale=0.4, size=len(elements))).tolist()
    return {
        symbol: weight * (1 if symbol in chosen else SCARCE) for symbol, weight in zip(elements, spread, strict=True)
    }


def _grow_chains(
    rng: np.random.Generator, n_atoms: int, weights: Mapping[Fragment, float], *, unsaturation: float
) -> Graph | None:
    """Grow to an exact number of atoms; return None if that fails."""
    graph = Graph()
    first = [fragment for fragment in weights if "C" in fragment.symbols and fragment.gain + 2 <= max(n_atoms, 5)]
    graph.add_fragment(first[draw_one(rng, [weights[fragment] for fragment in first])])
    for _ in range(4 * n_atoms):
        missing = n_atoms - graph.n_atoms
        if missing == 0:
            return graph
        if missing < 0 or rng.random() < unsaturation:
            if not _unsaturate(rng, graph) and missing < 0:
                return None
            continue
        fitting = [fragment for fragment in weights if fragment.gain <= missing]
        fitting = fitting or [fragment for fragment in weights if fragment.gain == missing + 2]
        if not fitting or not _attach(rng, graph, fitting[draw_one(rng, [weights[fragment] for fragment in fitting])]):
            return None
    return None


def _attach(rng: np.random.Generator, graph: Graph, fragment: Fragment) -> bool:
    """Bind a fragment to a random atom; return False if no atom has a free valence."""
    own = fragment.anchors[int(rng.integers(len(fragment.anchors)))]
    sites = [i for i, n in enumerate(graph.free) if n]
    if not sites:
        return False
    symbol = fragment.symbols[own]
    weights = [
        graph.free[i]
        * CROWDING[len(graph.bonds[i])]
        * UNSATED.get(graph.symbols[i], 1.0)
        * pair_weight(graph.symbols[i], symbol)
        for i in sites
    ]
    site = sites[draw_one(rng, weights)]
    first = graph.add_fragment(fragment)
    graph.use_free(site, first + own, 1)
    return True


def _unsaturate(rng: np.random.Generator, graph: Graph) -> bool:
    """Close a ring or raise a bond to a double bond, which takes two free valences; return False if neither can be."""
    moves = (_close_ring, _add_double_bond) if rng.random() < 0.5 else (_add_double_bond, _close_ring)
    return any(move(rng, graph) for move in moves)


def _add_double_bond(rng: np.random.Generator, graph: Graph) -> bool:
    can = [
        n > 0 and not multiple and (symbol in "CN" or (symbol in "OS" and len(bonds) == 1))
        for symbol, n, multiple, bonds in zip(graph.symbols, graph.free, graph.is_multiple, graph.bonds, strict=True)
    ]
    pairs = [
        (i, j)
        for i, bonds in enumerate(graph.bonds)
        if can[i]
        for j, order in bonds.items()
        if i < j and order == 1 and can[j] and "C" in (graph.symbols[i], graph.symbols[j])
    ]
    if not pairs:
        return False
    graph.use_free(*pairs[int(rng.integers(len(pairs)))], 2)
    return True


def _close_ring(rng: np.random.Generator, graph: Graph) -> bool:
    """Close a ring that shares no bond with another one."""
    sites = [i for i, n in enumerate(graph.free) if n and not graph.in_ring[i]]
    for start in rng.permutation(sites)[:4].tolist():
        ends = [
            path
            for path in _paths_from(graph, start, max(RING_SIZES))
            if len(path) in RING_SIZES and graph.free[path[-1]] and not graph.in_ring[path[-1]]
        ]
        if ends:
            path = ends[draw_one(rng, [pair_weight(graph.symbols[start], graph.symbols[path[-1]]) for path in ends])]
            graph.use_free(start, path[-1], 1)
            for i in path:
                graph.in_ring[i] = True
            return True
    return False


def _paths_from(graph: Graph, start: int, longest: int) -> list[tuple[int, ...]]:
    """Return the paths from an atom, of at most `longest` atoms, without rings and triple bonds."""
    paths: list[tuple[int, ...]] = []
    ends: list[tuple[int, ...]] = [(start,)]
    while ends:
        paths += ends
        ends = [
            (*path, j)
            for path in ends
            if len(path) < longest
            for j, order in graph.bonds[path[-1]].items()
            if j not in path and not graph.in_ring[j] and order < 3
        ]
    return paths


def _end_chains(rng: np.random.Generator, graph: Graph, weights: Mapping[str, float]) -> None:
    """End all free valences in hydrogen or halogen."""
    symbols = list(weights)
    for i in range(len(graph.symbols)):
        odds = [weights[symbol] * pair_weight(graph.symbols[i], symbol) for symbol in symbols]
        for _ in range(graph.free[i]):
            end = Fragment((symbols[draw_one(rng, odds)],), (0,), (), (1,), (False,))
            graph.use_free(i, graph.add_fragment(end), 1)


def build_mol(graph: Graph) -> Any:
    """Return a graph as `rdkit.Chem.Mol`, all hydrogens explicit.

    Raises
    ------
    rdkit.Chem.MolSanitizeException
        If RDKit's sanitiser finds a fault: a bug of the growth.
    """
    chem = import_extra("rdkit.Chem")
    mol = chem.RWMol()
    for symbol, charge in zip(graph.symbols, graph.charges, strict=True):
        atom = chem.Atom(symbol)
        atom.SetFormalCharge(charge)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    kinds = {1: chem.BondType.SINGLE, 2: chem.BondType.DOUBLE, 3: chem.BondType.TRIPLE}
    for i, bonds in enumerate(graph.bonds):
        for j, order in bonds.items():
            if i < j:
                mol.AddBond(i, j, kinds[order])
    chem.SanitizeMol(mol)
    return mol.GetMol()
