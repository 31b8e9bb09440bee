import ase.units
import pytest

from daskpipe import units


@pytest.mark.parametrize(("ours", "theirs"), [("KB", "kB"), ("FS", "fs"), ("GPA", "GPa")])
def test_constants_are_those_of_ase(ours, theirs):
    assert getattr(units, ours) == pytest.approx(getattr(ase.units, theirs), rel=1e-15)
