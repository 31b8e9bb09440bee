"""Every selector keeps the promises of the contract kit."""

from functools import partial
from typing import Any

import pytest

from daskpipe.stages.select import SELECTORS
from daskpipe.testing import check_selector

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "direct": [{}],
    "environments": [{}],
    "fps": [{}],
    "kmeans": [{}, {"within": "nearest", "allocation": "equal"}, {"n_clusters": 40, "allocation": "proportional"}],
    "random": [{}],
    "stride": [{}],
}
"""Parameters of each selector that the kit is run with."""

KIT: dict[str, dict[str, Any]] = {
    "environments": {"rows_are_atoms": True, "n_structures": 1300},
    "stride": {"follows_storage": True},
}


def test_no_selector_is_left_out() -> None:
    assert VARIANTS.keys() == SELECTORS.table.keys()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("name", "params"), [(name, params) for name, variants in VARIANTS.items() for params in variants]
)
def test_contract(name: str, params: dict[str, Any], seed: int) -> None:
    check_selector(partial(SELECTORS.get(name), **params), seed=seed, **KIT.get(name, {}))
