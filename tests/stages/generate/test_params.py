"""Parameter types refuse what cannot be built and say what to type."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from daskpipe.stages.generate.params import (
    MOLAR_TO_ATOMIC,
    Composition,
    CountRange,
    Element,
    atomic_volume,
    check_composition,
    count_range,
)


@pytest.mark.parametrize(("typed", "meant"), [("cu", "Cu"), ("AU", "Au"), ("copper", "Cu"), ("Cx", "C")])
def test_element_suggests_the_one_meant(typed: str, meant: str) -> None:
    with pytest.raises(ValidationError, match=rf"unknown element '{typed}'\. Did you mean '{meant}'\?"):
        TypeAdapter(Element).validate_python(typed)


@pytest.mark.parametrize("symbol", ["X", "", "Xx", "Cu2", "Kryptonite"])
def test_element_refuses_what_is_no_symbol(symbol: str) -> None:
    with pytest.raises(ValidationError, match="unknown element"):
        TypeAdapter(Element).validate_python(symbol)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"Cu": 0.5, "Au": 0.4}, r"fractions of Cu, Au sum to 0\.9; they must sum to 1"),
        ({"Cu": 0.7, "Au": 0.7}, r"fractions of Cu, Au sum to 1\.4; they must sum to 1"),
        ({"Cu": [0, 0.3], "Au": [0.1, 0.4]}, r"highest fractions of Cu, Au sum to 0\.7; they must reach 1"),
        ({"Cu": [0.6, 1], "Au": [0.6, 1]}, r"lowest fractions of Cu, Au sum to 1\.2; they must not exceed 1"),
        ({"Cu": 1.5}, r"expected a fraction or \[lowest, highest\] within 0 and 1, received 1\.5"),
        ({"Cu": [0.6, 0.4], "Au": 0.5}, r"received \[0\.6, 0\.4\]"),
        ({"Cu": float("nan")}, "received nan"),
        ({"Cu": "half"}, "received 'half'"),
        ({}, "no elements"),
        ({"At": 1.0}, "'At' has no reference volume"),
        ({"Kryptonite": 1.0}, "unknown element 'Kryptonite'"),
    ],
)
def test_impossible_composition(elements: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        TypeAdapter(Composition).validate_python(elements)
    assert caught.value.error_count() == 1


def test_composition_takes_fractions_and_ranges() -> None:
    expected = {"Cu": (0.5, 0.5), "Au": (0.0, 0.5)}
    assert TypeAdapter(Composition).validate_python({"Cu": 0.5, "Au": [0, 0.5]}) == expected
    assert check_composition(check_composition({"Cu": 0.5, "Au": (0, 0.5)})) == expected


def test_thirds_typed_with_six_digits_sum_to_one() -> None:
    assert set(check_composition({"Cu": 0.333333, "Ag": 0.333333, "Au": 0.333333})) == {"Cu", "Ag", "Au"}


@pytest.mark.parametrize("value", [0, -1, [3, 2], [1], [1, 2, 3], 1.5, "many", True, [1.0, 2.0]])
def test_count_range_refuses(value: object) -> None:
    with pytest.raises(ValidationError, match="expected a count or"):
        TypeAdapter(CountRange).validate_python(value)


def test_count_range_takes_a_count_or_a_pair() -> None:
    assert count_range(7) == (7, 7)
    assert TypeAdapter(CountRange).validate_python([12, 32]) == (12, 32)


@pytest.mark.parametrize(
    ("symbol", "volume"),
    [
        ("Cu", 11.81),  # fcc, 3.615 Å
        ("Fe", 11.78),  # bcc, 2.866 Å
        ("Ti", 17.65),  # hcp, 2.951 and 4.684 Å
        ("Si", 20.02),  # diamond, 5.431 Å
        ("Po", 37.6),  # simple cubic, 3.35 Å
        ("Mn", 12.2),  # 58 atoms in a cube of 8.912 Å
        ("Ga", 19.6),  # 8 atoms in 4.519 x 7.658 x 4.526 Å
        ("In", 26.2),  # tetragonal, 2 atoms in 3.253 x 3.253 x 4.947 Å
        ("Sn", 27.0),  # white tin, 4 atoms in 5.831 x 5.831 x 3.182 Å
        ("Sb", 30.2),  # 6 atoms in the hexagonal cell of 4.307 and 11.273 Å
        ("Bi", 35.4),  # 6 atoms in the hexagonal cell of 4.546 and 11.862 Å
        ("U", 20.7),  # 4 atoms in 2.854 x 5.870 x 4.955 Å
    ],
)
def test_atomic_volume_is_that_of_the_crystal(symbol: str, volume: float) -> None:
    assert atomic_volume(symbol) == pytest.approx(volume, rel=0.01)


METALS = (
    "Li Be Na Mg Al K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Cs Ba La Ce Pr Nd Pm "
    "Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es"
)


@pytest.mark.parametrize("symbol", METALS.split())
def test_each_metal_has_the_volume_that_pymatgen_lists(symbol: str) -> None:
    from pymatgen.core import Element as Listed

    listed = float(Listed(symbol).molar_volume) * MOLAR_TO_ATOMIC
    assert atomic_volume(symbol) == pytest.approx(listed, rel=0.1)
