import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.data import covalent_radii
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from daskpipe.core.geometry import find_overlap


@st.composite
def crowded(draw):
    n = draw(st.integers(1, 4))
    return Atoms(
        numbers=draw(st.lists(st.sampled_from([1, 8, 29, 79]), min_size=n, max_size=n)),
        positions=draw(arrays(float, (n, 3), elements=st.floats(-6, 6))),
        cell=[4, 5, 6],
        pbc=draw(st.tuples(st.booleans(), st.booleans(), st.booleans())),
    )


@settings(deadline=None, max_examples=40)
@given(crowded(), st.floats(0.2, 1.2))
def test_overlap_is_a_slow_loop_over_images(atoms, limit):
    """Images up to five cells away: atoms lie up to 12 Å apart, cells are 4 Å wide, and the limit is 3.3 Å at most."""
    worst = np.inf
    images = [np.arange(-5, 6) if periodic else [0] for periodic in atoms.pbc]
    for i in range(len(atoms)):
        for j in range(len(atoms)):
            for shift in np.stack(np.meshgrid(*images), axis=-1).reshape(-1, 3):
                if i != j or shift.any():
                    distance = np.linalg.norm(atoms.positions[j] + shift @ atoms.cell.array - atoms.positions[i])
                    worst = min(worst, distance / covalent_radii[atoms.numbers[[i, j]]].sum())
    if abs(worst - limit) > 1e-9:
        assert (find_overlap(atoms, limit) is not None) == (worst < limit)


def test_overlap_says_which_atoms():
    evidence = find_overlap(Atoms("OH", positions=[[0, 0, 0], [0, 0, 0.3]]), 0.6)
    assert evidence == ("atom 1 (H) is 0.300 Å from atom 0 (O); the limit is 0.582 Å, 0.6 of the sum of covalent radii")
    assert find_overlap(Atoms("H"), 0.6) is None
    assert find_overlap(molecule("CH3CH2OH"), 0.6) is None
    assert "1.000 Å from its own image (Cu)" in find_overlap(Atoms("Cu", cell=[1, 9, 9], pbc=[True, False, False]), 0.6)
