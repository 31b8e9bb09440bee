"""Each registered potential keeps what `daskpipe.testing.check_potential` asks of plugins."""

from __future__ import annotations

from typing import Any

import pytest
from ase.build import molecule

from daskpipe.testing import check_potential

LJ = {"epsilon": 0.3, "sigma": 2.4, "r_cut": 5.5}
# CHGNet computes in float32, so that finite differences need long steps.
ROUGH = {"tolerance": 1e-3, "step": 2e-2, "slope_tolerance": 3e-2}


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("lj", {"params": LJ}),
        ("lj", {}),
        ("emt", {}),
        ("emt", {"dtype": "float32", "tolerance": 5e-5, "step": 1e-2, "slope_tolerance": 2e-3}),
        ("mace", {}),
        ("mace", {"dtype": "float32", "tolerance": 1e-5, "step": 1e-2, "slope_tolerance": 5e-3}),
        ("committee", {"params": {"members": [{"name": "mace"}, {"name": "emt"}]}}),
        ("chgnet", ROUGH),
    ],
)
def test_contract(name: str, asked: dict[str, Any]) -> None:
    check_potential(name, **asked)


def test_contract_of_xtb() -> None:
    """Molecules: copper atoms at such distances do not converge, and one k point knows no supercells."""
    params = {"method": "GFN1-xTB", "accuracy": 0.01}
    structures = [molecule("CH3OH"), molecule("H2O")]
    check_potential("xtb", params, structures, step=1e-3, slope_tolerance=1e-3, supercells=False)
