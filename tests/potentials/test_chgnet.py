from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from daskpipe.potentials import Failure, Results, build_potential, evaluate, identify_potential

MPTRJ_ELEMENTS = 89


def test_an_isolated_atom_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make) -> None:
    monkeypatch.chdir(tmp_path)
    far = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 6.5]])
    near = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 5.5]])
    found = evaluate(build_potential("chgnet", {}, "cpu", "float32"), [make("alloy"), far, Atoms("Cu"), near])
    assert [type(item) for item in found] == [Results, Failure, Failure, Results]
    assert found[1] == Failure(reason="isolated_atom", evidence="an atom has no neighbour within 6 Å")
    assert list(tmp_path.iterdir()) == [], "CHGNet likes to leave files behind"


def test_only_failures() -> None:
    (failure,) = evaluate(build_potential("chgnet", {}, "cpu", "float32"), [Atoms("Cu")])
    assert isinstance(failure, Failure)


def test_noble_gases_are_known_and_radium_is_not() -> None:
    elements = identify_potential("chgnet", {}).elements
    assert elements is not None
    assert len(elements) == MPTRJ_ELEMENTS
    assert "Xe" in elements
    assert not {"Ra", "Am", "Po"} & elements


def test_energy_is_total_and_magmoms_are_there() -> None:
    one, two = evaluate(build_potential("chgnet", {}, "cpu", "float32"), [bulk("Fe"), bulk("Fe") * (2, 1, 1)])
    assert isinstance(one, Results)
    assert isinstance(two, Results)
    assert two.energy == pytest.approx(2 * one.energy, rel=1e-5)
    assert one.magmoms is not None
    assert one.magmoms == pytest.approx([2.2], abs=0.5), "iron is a magnet, 2.2 µB"


@pytest.mark.parametrize("kind", ["cluster", "benzene"])
def test_a_box_of_any_size_gives_the_same(kind: str, make) -> None:
    bare = molecule("C6H6") if kind == "benzene" else make(kind)
    boxy = bare.copy()
    boxy.set_cell([3.0, 4.0, 60.0])
    boxy.positions += 500.0
    one, two = evaluate(build_potential("chgnet", {}, "cpu", "float32"), [bare, boxy])
    assert isinstance(one, Results)
    assert isinstance(two, Results)
    assert two.energy == pytest.approx(one.energy, abs=1e-4)
    np.testing.assert_allclose(two.forces, one.forces, atol=1e-3)


def test_calculator_raises_what_the_labeller_says() -> None:
    from ase.calculators.calculator import CalculationFailed

    with pytest.raises(CalculationFailed, match="isolated_atom: an atom has no neighbour within 6 Å"):
        build_potential("chgnet", {}, "cpu", "float32").calculator.get_potential_energy(Atoms("Cu"))
