"""The table of checks: each entry fits its function, and the settings and profiles derive from it."""

import inspect

import pytest

from daskpipe.store.quality.check_table import CHECKS
from daskpipe.store.quality.gate import COLUMNS
from daskpipe.store.quality.profiles import PROFILES
from daskpipe.store.quality.settings import Quality

ALWAYS = {
    "ids", "n_structures", "n_atoms", "exempt", "finite", "fullness", "left_handed", "volume", "periodic",
    "composition", "state", "counts", "type_number", "structures_of_element", "requested_elements", "requested_types",
    "shares", "reference", "closest", "loneliest", "fingerprint",
}  # fmt: skip
"""Columns of every dataset, where a check that reads them is turned on."""


@pytest.mark.parametrize("name", CHECKS)
def test_an_entry_fits_its_function(name):
    entry = CHECKS[name]
    parameters = inspect.signature(entry.load_function()).parameters
    assert set(parameters) == {*entry.reads, *entry.optional, "limit"}
    assert {*entry.reads, *entry.optional} <= set(COLUMNS)
    required = {key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    assert not required & set(entry.optional)


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_that_can_lack_columns_says_what_it_needs(name):
    entry = CHECKS[name]
    if set(entry.reads) - ALWAYS:
        assert entry.needs or entry.required
    else:
        assert not entry.needs
        assert not entry.required


def test_settings_and_profiles_have_the_names_of_the_table():
    assert list(Quality.model_fields) == ["profile", "warn", *CHECKS]
    assert list(Quality.model_json_schema()["properties"]) == ["profile", "warn", *CHECKS]
    for profile, expectation in PROFILES.items():
        assert set(expectation.warn) == {name for name, entry in CHECKS.items() if profile in entry.warns_in}


def test_defaults_of_two_configs_share_no_object():
    assert Quality().cell == Quality().cell
    assert Quality().cell is not Quality().cell
