import numpy as np
import pytest
from pydantic import ValidationError

from daskpipe.stages.label.checks.limits import find_label_fault
from daskpipe.stages.label.settings import LabelChecks

FORCES = np.array([[3.0, 0.0, 4.0], [-3.0, 0.0, -4.0]])
LARGEST = 5.0  # the length of each row
STRESS = np.full(6, 0.01)
NO_STRESS = np.full(6, np.nan)


def test_sane_labels_pass():
    assert find_label_fault(-3.0, FORCES, STRESS, True, LabelChecks()) is None
    assert find_label_fault(-3.0, FORCES, STRESS, True, LabelChecks(max_force=LARGEST)) is None


def test_stress_matters_in_periodic_structures_only():
    assert find_label_fault(-3.0, FORCES, NO_STRESS, False, LabelChecks()) is None
    part = np.where(np.arange(6) == 2, np.nan, STRESS)
    assert find_label_fault(-3.0, FORCES, part, True, LabelChecks()) == ("not_finite", "stress not finite")
    assert find_label_fault(-3.0, FORCES, part, False, LabelChecks()) is None


def test_a_stress_that_the_teacher_did_not_give_is_no_fault():
    assert find_label_fault(-3.0, FORCES, NO_STRESS, True, LabelChecks()) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named(value):
    assert find_label_fault(value, FORCES, STRESS, True, LabelChecks()) == ("not_finite", "energy not finite")
    assert find_label_fault(-3.0, np.where(FORCES == 3, value, FORCES), STRESS, True, LabelChecks()) == (
        "not_finite",
        "forces not finite",
    )
    both = find_label_fault(value, FORCES, np.where(np.arange(6) < 3, value, STRESS), True, LabelChecks())
    assert both == ("not_finite", "energy, stress not finite")


def test_large_forces_are_measured():
    found = find_label_fault(-3.0, FORCES, STRESS, True, LabelChecks(max_force=LARGEST - 0.1))
    assert found == ("force", "a force of 5 eV/Å (limit 4.9)")


def test_forces_that_do_not_sum_to_zero_are_refused():
    drifting = FORCES + np.array([0.0, 0.0, 0.06])
    assert find_label_fault(-3.0, drifting, STRESS, True, LabelChecks()) == (
        "net_force",
        "its forces sum to 0.06 eV/Å per atom (limit 0.05), as with a grid that is too coarse: raise the cutoff",
    )
    assert find_label_fault(-3.0, drifting, STRESS, True, LabelChecks(max_net_force=0.07)) is None
    assert find_label_fault(-3.0, drifting[:1], STRESS, True, LabelChecks()) is None, "an atom alone"


def test_a_limit_that_came_later_leaves_the_keys_of_earlier_runs():
    assert LabelChecks().list_deciding() == {"max_force": 50.0}
    assert LabelChecks(max_net_force=0.1).list_deciding() == {"max_force": 50.0, "max_net_force": 0.1}


@pytest.mark.parametrize("max_force", [0.0, -1.0, np.inf, np.nan])
def test_wrong_limits_are_refused(max_force):
    with pytest.raises(ValidationError, match="max_force"):
        LabelChecks(max_force=max_force)


def test_limits_of_the_energy_come_in_order():
    assert LabelChecks(energy_per_atom=(-10, 5)).energy_per_atom == (-10, 5)
    with pytest.raises(
        ValidationError, match=r"the smaller limit comes first, received \[5.0, -10.0\]; give \[-10.0, 5.0\]"
    ):
        LabelChecks(energy_per_atom=(5, -10))
