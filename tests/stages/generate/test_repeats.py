import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.constraints import FixAtoms

from daskpipe.stages.generate.repeats import repeat_cell


@pytest.mark.parametrize("repeats", [(1, 1, 1), (2, 3, 1), (5, 4, 7)])
@pytest.mark.parametrize("kind", ["bulk", "slab"])
def test_supercells_are_those_of_ase_bit_for_bit(kind, repeats):
    atoms = bulk("MgO", "rocksalt", a=4.2) if kind == "bulk" else fcc111("Al", (1, 1, 3), vacuum=4.0)
    atoms.rattle(0.1, rng=np.random.default_rng(0))
    atoms.info["name"] = "a fact"
    atoms.set_constraint(FixAtoms([0]))
    expected, big = atoms.repeat(repeats), repeat_cell(atoms, repeats)
    assert big.arrays.keys() == expected.arrays.keys()
    for name, values in expected.arrays.items():
        np.testing.assert_array_equal(big.arrays[name], values)
    np.testing.assert_array_equal(big.cell.array, expected.cell.array)
    np.testing.assert_array_equal(big.pbc, expected.pbc)
    np.testing.assert_array_equal(big.constraints[0].index, expected.constraints[0].index)
    assert big.info == expected.info
