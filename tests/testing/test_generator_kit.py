"""The kit for generators names what is wrong: one that keeps its promises, broken in one way at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count
from typing import Annotated, Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from pydantic import Field

from daskpipe.testing import check_generator


def crystals(*, rng: np.random.Generator, rattle: Annotated[float, Field(ge=0)] = 0.05) -> Iterator[Atoms]:
    """Yield displaced crystals of copper."""
    return (displaced_crystal(rng, rattle) for _ in count())


def displaced_crystal(rng: Any, rattle: float, **info: Any) -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.positions += rng.normal(scale=rattle, size=atoms.positions.shape)
    atoms.info = info
    return atoms


def test_a_generator_that_keeps_its_promises_passes() -> None:
    check_generator(crystals)
    check_generator(crystals, {"rattle": 0.0}, is_random=False)


def test_global_random_generators_are_left_as_they_were() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]  # noqa: NPY002
    check_generator(crystals)
    after = random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]  # noqa: NPY002
    assert after == before


def positional(rng: np.random.Generator) -> Iterator[Atoms]:
    return crystals(rng=rng)


def without_stream(*, rattle: float = 0.1) -> Iterator[Atoms]:
    return crystals(rng=np.random.default_rng(0), rattle=rattle)


def untyped(*, rng: np.random.Generator, rattle=0.1) -> Iterator[Atoms]:  # type: ignore[no-untyped-def]
    return crystals(rng=rng, rattle=rattle)


def a_list(*, rng: np.random.Generator) -> list[Atoms]:
    return [displaced_crystal(rng, 0.1)]


def early(*, rng: np.random.Generator) -> Iterator[Atoms]:
    atoms = displaced_crystal(rng, 0.1)
    return (atoms.copy() for _ in count())


def empty(*, rng: np.random.Generator) -> Iterator[Atoms]:
    return iter([])


def global_numpy(*, rng: np.random.Generator) -> Iterator[Atoms]:
    return (displaced_crystal(np.random, 0.1) for _ in count())


def global_python(*, rng: np.random.Generator) -> Iterator[Atoms]:
    return (displaced_crystal(rng, random.random() / 10) for _ in count())


def counted() -> Callable[..., Iterator[Atoms]]:
    numbers = count(1)

    def generator(*, rng: np.random.Generator) -> Iterator[Atoms]:
        return (displaced_crystal(rng, 0.01 * next(numbers)) for _ in count())

    return generator


def shared() -> Callable[..., Iterator[Atoms]]:
    made: dict[str, Atoms] = {}

    def generator(*, rng: np.random.Generator) -> Iterator[Atoms]:
        return (made.setdefault(str(rng.bit_generator.state), displaced_crystal(rng, 0.1)) for _ in range(1))

    return generator


def fixed(*, rng: np.random.Generator) -> Iterator[Atoms]:
    return (bulk("Cu", cubic=True) for _ in count())


def overlapping(*, rng: np.random.Generator) -> Iterator[Atoms]:
    return (Atoms("H2", positions=[[0, 0, 0], [0, 0, rng.uniform(0.05, 0.1)]]) for _ in count())


def half_charged(*, rng: np.random.Generator) -> Iterator[Atoms]:
    return (displaced_crystal(rng, 0.1, charge=0.5) for _ in count())


def without_spin(*, rng: np.random.Generator) -> Iterator[Atoms]:
    return (displaced_crystal(rng, 0.1, spin_multiplicity=0) for _ in count())


def contradicting(*, rng: np.random.Generator) -> Iterator[Atoms]:
    return (displaced_crystal(rng, 0.1, charge=1, total_charge=2) for _ in count())


@pytest.mark.parametrize(
    ("generator", "match"),
    [
        (positional, "the parameter rng is not keyword-only"),
        (without_stream, "no parameter rng"),
        (untyped, "the parameter rattle has no type"),
        (a_list, "returns a list, not an iterator"),
        (early, "draws random numbers before the first structure"),
        (empty, "gives no structure"),
        (global_numpy, "draws from a global random generator"),
        (global_python, "draws from a global random generator"),
        (counted(), "the same random stream gives other structures"),
        (shared(), "the same random stream gives other structures"),
        (fixed, "another random stream gives the same structures"),
        (overlapping, r"structure 0 fails the check of seeds: overlap: atom 1 \(H\)"),
        (half_charged, r"structure 0: info\['charge'\] is 0\.5, not a whole number"),
        (without_spin, r"info\['spin_multiplicity'\] is 0, not a whole number from 1 on"),
        (contradicting, "two keys of the charge disagree"),
    ],
)
def test_what_is_wrong_is_named(generator: Callable[..., Any], match: str) -> None:
    with pytest.raises(AssertionError, match=match):
        check_generator(generator)


def test_a_random_generator_is_not_taken_for_a_fixed_one() -> None:
    with pytest.raises(AssertionError, match="another random stream gives other structures"):
        check_generator(crystals, is_random=False)
