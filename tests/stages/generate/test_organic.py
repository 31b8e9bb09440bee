"""Random organic molecules and their copies with other torsions."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from chemistry import bonds_of_geometry, mol_of_geometry
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate import family_size
from daskpipe.stages.generate.checks import Limits
from daskpipe.stages.generate.organic import ELEMENTS, organic
from daskpipe.stages.generate.organic_graphs import Graph, GrowthError, build_mol, grow_graph
from daskpipe.stages.generate.sources import Source
from daskpipe.stages.generate.stage import generate_partition, list_requests


def draw(n: int, *, index: int = 0, seed: int = 0, **params: object) -> list[Atoms]:
    """Return structures of one stream, without rejections."""
    made = organic(rng=np.random.default_rng([seed, index]), index=index, **params)  # type: ignore[arg-type]
    return list(islice((item for item in made if not isinstance(item, Rejection)), n))


def shares(graphs: list[Graph]) -> dict[str, float]:
    counts = Counter(symbol for graph in graphs for symbol in graph.symbols)
    return {symbol: count / counts.total() for symbol, count in counts.items()}


ELEMENT_SETS = st.sets(st.sampled_from(["N", "O", "S", "P", "Si", "F", "Cl", "Br", "I"])).map(
    lambda extra: ("H", "C", *sorted(extra))
)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), n_atoms=st.integers(5, 100), elements=ELEMENT_SETS)
def test_graphs_satisfy_valence_with_the_exact_number_of_atoms(
    seed: int, n_atoms: int, elements: tuple[str, ...]
) -> None:
    graph = grow_graph(np.random.default_rng(seed), n_atoms, elements)
    mol = build_mol(graph)  # RDKit's sanitiser
    assert mol.GetNumAtoms() == n_atoms
    assert {*graph.symbols} <= {*elements}
    assert "C" in graph.symbols
    assert len(Chem.GetMolFrags(mol)) == 1
    assert Chem.GetFormalCharge(mol) == 0
    for atom in mol.GetAtoms():
        assert atom.GetNumRadicalElectrons() == atom.GetNumImplicitHs() == 0
    assert mol.GetNumAtoms() == Chem.AddHs(Chem.RemoveHs(mol)).GetNumAtoms()  # no hydrogen is missing


def test_molecules_without_hydrogen_can_be_made() -> None:
    graph = grow_graph(np.random.default_rng(0), 20, ("C", "F"))
    assert build_mol(graph).GetNumAtoms() == 20


def test_all_elements_have_good_shares() -> None:
    graphs = [grow_graph(np.random.default_rng(seed), 10 + seed % 91, ELEMENTS) for seed in range(150)]
    found = shares(graphs)
    assert set(found) == set(ELEMENTS)
    assert min(found.values()) > 0.03
    assert found["H"] < 0.4
    entropy = -sum(share * np.log2(share) for share in found.values())
    assert entropy > 2.7  # of at most log2(9) = 3.17


def test_graphs_have_rings_multiple_bonds_and_differ() -> None:
    mols = [build_mol(grow_graph(np.random.default_rng(seed), 40, ELEMENTS)) for seed in range(40)]
    assert len({Chem.MolToSmiles(mol) for mol in mols}) == 40
    with_rings = sum(mol.GetRingInfo().NumRings() > 0 for mol in mols)
    aromatic = sum(any(atom.GetIsAromatic() for atom in mol.GetAtoms()) for mol in mols)
    double = sum(any(bond.GetBondType() == Chem.BondType.DOUBLE for bond in mol.GetBonds()) for mol in mols)
    assert with_rings > 30
    assert aromatic > 10
    assert double > 30


@pytest.mark.parametrize("n_atoms", [10, 20, 60])
def test_geometry_has_the_molecules_bonds_and_rdkit_accepts_it(n_atoms: int) -> None:
    made = draw(4, n_atoms=n_atoms, copies=3)
    assert [len(atoms) for atoms in made] == [n_atoms] * 4
    for atoms in made:
        assert atoms.info["charge"] == 0
        assert atoms.info["spin_multiplicity"] == 1
        if n_atoms <= 20:  # bond orders of larger ones take RDKit long
            assert Chem.GetFormalCharge(mol_of_geometry(atoms)) == 0
    assert len({frozenset(bonds_of_geometry(atoms)) for atoms in made}) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("index", range(3))
def test_copies_keep_the_bonds_and_are_as_far_apart_as_stated(index: int) -> None:
    made = draw(6, index=index, n_atoms=45, copies=5, difference=0.15)
    bonds = {frozenset(bonds_of_geometry(atoms)) for atoms in made}
    assert len(bonds) == 1  # a family
    for one, other in combinations(made, 2):
        assert sorted_difference(one, other) >= 0.15


def sorted_difference(one: Atoms, other: Atoms) -> float:
    """Return the difference of two conformers as the parameter `difference` states it, by a slow loop."""
    lists = []
    for atoms in (one, other):
        distances: dict[tuple[str, ...], list[float]] = {}
        for i, j in combinations(range(len(atoms)), 2):
            pair = tuple(sorted((atoms.symbols[i], atoms.symbols[j])))
            distances.setdefault(pair, []).append(atoms.get_distance(i, j))
        lists.append(np.concatenate([sorted(distances[pair]) for pair in sorted(distances)]))
    return float(np.sqrt(np.mean((lists[0] - lists[1]) ** 2)))


def test_sizes_are_spread_evenly_over_requests() -> None:
    sizes = [len(draw(1, index=index, n_atoms=(10, 19), copies=0)[0]) for index in range(20)]
    assert sorted(Counter(sizes).values()) == [2] * 10 or max(Counter(sizes).values()) <= 3
    assert set(sizes) == set(range(10, 20))


def test_stage_makes_exact_counts_of_families_that_end_early() -> None:
    source = Source.model_validate({"generator": "organic", "n": 11, "n_atoms": [6, 9], "copies": 3})
    requests = list_requests({"rigid": source}, [], Path())
    assert [request.count for request in requests] == [4, 4, 3]
    made = generate_partition(requests, seed=0, limits=Limits())
    assert len(made) == 11
    assert not [item for item in made if isinstance(item, Rejection)]


def test_family_is_a_conformer_and_its_copies() -> None:
    assert family_size("organic", Source.model_validate({"generator": "organic", "n": 1}).params) == 8


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"elements": ("H", "O")}, "elements: H, O make no organic molecule; include C and one of H, F"),
        ({"elements": ("C", "O")}, "elements: C, O make no organic molecule"),
        ({"elements": ("H", "C", "Cu")}, "elements: Cu not supported; choose from C, N, O"),
        ({"n_atoms": 4}, "n_atoms: 4 to 4; give numbers within 5 and 250"),
        ({"n_atoms": (10, 400)}, "n_atoms: 10 to 400; give numbers within 5 and 250"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_drawn(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        organic(rng=np.random.default_rng(0), index=0, **params)  # type: ignore[arg-type]


def test_growth_that_fails_says_what_to_change() -> None:
    with pytest.raises(GrowthError, match="no molecule of 3 atoms was made of H, C in 50 tries; allow more elements"):
        grow_graph(np.random.default_rng(0), 3, ("H", "C"))
