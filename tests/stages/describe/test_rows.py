import numpy as np
from ase.build import bulk, molecule

import daskpipe
from daskpipe.stages.describe import compute_fingerprints
from daskpipe.stages.describe.settings import Describe

SPECIES = ["Cu", "H", "O"]
PARAMS = {"r_cut": 4.0, "n_max": 4, "l_max": 3, "sigma": 0.5}


def test_fingerprints_are_mean_descriptors_at_unit_length():
    structures = [bulk("Cu", cubic=True), molecule("H2O"), bulk("Cu", cubic=True)]
    structures[2].rattle(0.1, seed=0)
    found = compute_fingerprints(structures, Describe(params=PARAMS), SPECIES)
    soap = daskpipe.SOAP(species=SPECIES, average="outer", **PARAMS)
    expected = soap.compute(structures)
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    same, moved, other = (np.linalg.norm(found[0] - found[row]) for row in (0, 2, 1))
    assert same == 0 < moved < other
