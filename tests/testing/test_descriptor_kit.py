"""The kit for descriptors names what is wrong: one that keeps its promises, broken in one way at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from ase import Atoms

from daskpipe.testing import check_descriptor


class Distances:
    """A small descriptor that keeps all promises: how many neighbours of each element, smoothly counted."""

    def __init__(self, *, species: Sequence[str], average: str = "off") -> None:
        self.species, self.average = sorted(species), average
        self.n_features = len(self.species)
        self.dtype = np.dtype("float64")

    def hypers(self) -> dict[str, Any]:
        return {"species": list(self.species), "average": self.average}

    def compute(self, structures: Sequence[Atoms]) -> np.ndarray:
        rows = [self.rows(atoms) for atoms in structures]
        if self.average == "outer":
            rows = [row.mean(axis=0, keepdims=True) for row in rows]
        return np.concatenate([np.zeros((0, self.n_features)), *rows])

    def rows(self, atoms: Atoms) -> np.ndarray:
        from ase.neighborlist import neighbor_list

        if missing := set(atoms.symbols) - set(self.species):
            raise ValueError(f"unknown {missing}")
        center, other, distance = neighbor_list("ijd", atoms, 4.0)
        kind = np.array([self.species.index(symbol) for symbol in atoms.symbols])
        rows = np.zeros((len(atoms), self.n_features))
        np.add.at(rows, (center, kind[other]), np.cos(distance * np.pi / 8) ** 4)
        return rows


class Turns(Distances):
    def rows(self, atoms: Atoms) -> np.ndarray:
        return super().rows(atoms) + np.abs(atoms.positions - atoms.positions.mean(axis=0))[:, :1]


class Moves(Distances):
    def rows(self, atoms: Atoms) -> np.ndarray:
        return super().rows(atoms) + np.linalg.norm(atoms.positions.mean(axis=0))


class Counts(Distances):
    def rows(self, atoms: Atoms) -> np.ndarray:
        return super().rows(atoms) + np.arange(len(atoms))[:, None]


class Open(Distances):
    def rows(self, atoms: Atoms) -> np.ndarray:
        atoms = atoms.copy()
        atoms.pbc = False
        return super().rows(atoms)


class Sums(Distances):
    def compute(self, structures: Sequence[Atoms]) -> np.ndarray:
        times = [len(atoms) if self.average == "outer" else 1 for atoms in structures]
        return (
            super().compute(structures) * np.array(times)[:, None]
            if self.average == "outer"
            else super().compute(structures)
        )


class Constant(Distances):
    def rows(self, atoms: Atoms) -> np.ndarray:
        super().rows(atoms)
        return np.ones((len(atoms), self.n_features))


class Leaks(Distances):
    def compute(self, structures: Sequence[Atoms]) -> np.ndarray:
        return super().compute(structures) * max(len(structures), 1)


class Writes(Distances):
    def rows(self, atoms: Atoms) -> np.ndarray:
        atoms.info["seen"] = True
        atoms.positions += 1.0
        return super().rows(atoms)


class WrongType(Distances):
    def compute(self, structures: Sequence[Atoms]) -> np.ndarray:
        return super().compute(structures).astype(np.float32)


class WrongWidth(Distances):
    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.n_features += 1

    def rows(self, atoms: Atoms) -> np.ndarray:
        return np.zeros((len(atoms), self.n_features - 1))

    def compute(self, structures: Sequence[Atoms]) -> np.ndarray:
        if any(set(atoms.symbols) - set(self.species) for atoms in structures):
            raise ValueError("Xe")
        return np.concatenate([self.rows(atoms) for atoms in structures])


class NotJson(Distances):
    def hypers(self) -> dict[str, Any]:
        return {"species": tuple(self.species), "average": self.average}


class Forgets(Distances):
    def hypers(self) -> dict[str, Any]:
        return {"species": self.species[:1], "average": self.average}

    def __init__(self, *, species: Sequence[str], average: str = "off", more: int = 0) -> None:
        super().__init__(species=species, average=average)


class Anything(Distances):
    def rows(self, atoms: Atoms) -> np.ndarray:
        known = atoms.copy()
        known.symbols[:] = [symbol if symbol in self.species else self.species[0] for symbol in known.symbols]
        return super().rows(known)


class Mute(Distances):
    def rows(self, atoms: Atoms) -> np.ndarray:
        if set(atoms.symbols) - set(self.species):
            raise ValueError("no")
        return super().rows(atoms)


@pytest.mark.parametrize("seed", range(5))
def test_a_good_descriptor_passes(seed: int) -> None:
    check_descriptor(Distances, seed=seed)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (Turns, r"a rotation of a bulk changes its descriptor by [\d.]+ \(average='off'\)"),
        (Moves, r"a translation of a bulk changes its descriptor by"),
        (Counts, r"a new order of a bulk changes its descriptor by"),
        (Open, r"moving atoms by lattice vectors of a bulk changes its descriptor by"),
        (Sums, r"a supercell of a bulk changes its descriptor by [\d.]+ \(average='outer'\)"),
        (Constant, r"a distorted bulk has the same descriptor"),
        (Leaks, r"a structure's descriptor depends on the others of the call"),
        (Writes, r"a structure was changed"),
        (WrongType, r"dtype float32, not float64"),
        (WrongWidth, r"shape \(\d+, 2\), not \(\d+, 3\)"),
        (NotJson, r"hypers\(\) are no JSON types"),
        (Forgets, r"the class called with hypers\(\) has another number of features"),
        (Anything, r"a structure with Xe was described, species are Au, Cu"),
        (Mute, r"the refusal of Xe does not name it: no"),
    ],
)
def test_a_broken_descriptor_is_told_what_it_breaks(broken: type, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_descriptor(broken)
