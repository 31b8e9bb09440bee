"""Every descriptor keeps the promises of the contract kit, whatever structure it is given."""

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskpipe.stages.describe import DESCRIPTORS
from daskpipe.testing import check_descriptor

FEW = {"grid": {"min": 0.0, "max": 1.0, "sigma": 0.05, "n": 20}}
PARAMS = {
    "acsf": {"r_cut": 4.5},
    "lmbtr": FEW,
    "mbtr": FEW,
    "soap": {"r_cut": 4.0, "n_max": 3, "l_max": 2, "sigma": 0.5},
    "valle_oganov": {"r_cut": 5.0, "n": 40},
}
KIT = {
    "mbtr": {"per_atom": False},
    "valle_oganov": {"per_atom": False, "kinds": ["bulk"]},
}


def test_no_descriptor_is_left_out() -> None:
    assert {*PARAMS, "mace"} == DESCRIPTORS.table.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PARAMS))
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_contract(name: str, seed: int) -> None:
    check_descriptor(partial(DESCRIPTORS.get(name), **PARAMS[name]), seed=seed, **KIT.get(name, {}))


def test_contract_of_mace() -> None:
    """One example: each structure of a new size costs TorchScript a compilation."""
    check_descriptor(DESCRIPTORS.get("mace"))
