import numpy as np
import pytest
from pydantic import ValidationError

from daskpipe.stages.label.checks import find_label_fault
from daskpipe.stages.label.settings import LabelChecks

FORCES = np.array([[3.0, 0.0, 4.0], [0.0, 1.0, 0.0]])
LARGEST = 5.0  # the length of the first row
STRESS = np.full(6, 0.01)
NO_STRESS = np.full(6, np.nan)


def test_sane_labels_pass():
    assert find_label_fault(-3.0, FORCES, STRESS, True, LabelChecks()) is None
    assert find_label_fault(-3.0, FORCES, STRESS, True, LabelChecks(max_force=LARGEST)) is None


def test_stress_matters_in_periodic_structures_only():
    assert find_label_fault(-3.0, FORCES, NO_STRESS, False, LabelChecks()) is None
    assert find_label_fault(-3.0, FORCES, NO_STRESS, True, LabelChecks()) == ("not_finite", "stress not finite")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named(value):
    assert find_label_fault(value, FORCES, STRESS, True, LabelChecks()) == ("not_finite", "energy not finite")
    assert find_label_fault(-3.0, np.where(FORCES == 3, value, FORCES), STRESS, True, LabelChecks()) == (
        "not_finite",
        "forces not finite",
    )
    both = find_label_fault(value, FORCES, STRESS * value, True, LabelChecks())
    assert both == ("not_finite", "energy, stress not finite")


def test_large_forces_are_measured():
    found = find_label_fault(-3.0, FORCES, STRESS, True, LabelChecks(max_force=LARGEST - 0.1))
    assert found == ("force", "a force of 5 eV/Å (limit 4.9)")


@pytest.mark.parametrize("max_force", [0.0, -1.0, np.inf, np.nan])
def test_wrong_limits_are_refused(max_force):
    with pytest.raises(ValidationError, match="max_force"):
        LabelChecks(max_force=max_force)
