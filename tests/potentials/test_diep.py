"""DIEP beside MACE in one environment."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, molecule

from daskpipe.core.third_party import silence_libraries
from daskpipe.potentials import Failure, Results, build_potential, evaluate, identify_potential

pytest.importorskip("diep", reason="pip install 'daskpipe[diep]'")


def test_results_are_those_of_its_own_calculator():
    from diep.pretrained import make_calculator

    build_potential("mace", {}, "cpu", "float64")
    with silence_libraries():
        own = make_calculator()
    crystal = bulk("MgO", "rocksalt", a=4.3)
    crystal.rattle(0.05, seed=0)
    structures = [crystal, molecule("H2O")]
    for atoms, found in zip(structures, evaluate(build_potential("diep", {}, "cpu"), structures), strict=True):
        assert isinstance(found, Results)
        atoms.calc = own
        assert found.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5 * len(atoms))
        np.testing.assert_allclose(found.forces, atoms.get_forces(), atol=1e-4)
    stress = evaluate(build_potential("diep", {}, "cpu"), [crystal])[0]
    assert isinstance(stress, Results)
    crystal.calc = own
    np.testing.assert_allclose(stress.stress, crystal.get_stress(), atol=1e-5)


def test_it_names_its_elements():
    elements = identify_potential("diep", {}).elements
    assert elements is not None
    assert len(elements) == 89
    (fault,) = evaluate(build_potential("diep", {}, "cpu"), [bulk("Po", "sc", a=3.3)])
    assert fault == Failure(reason="unknown_element", evidence="Po not among 89 elements")
