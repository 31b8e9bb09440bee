import ase.units
import pytest

from daskpipe.core import constants


@pytest.mark.parametrize(("ours", "theirs"), [("KB", "kB"), ("FS", "fs"), ("GPA", "GPa")])
def test_constants_are_those_of_ase(ours, theirs):
    assert getattr(constants, ours) == pytest.approx(getattr(ase.units, theirs), rel=1e-15)
