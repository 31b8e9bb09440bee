import pytest

from daskpipe.config.proposal.melting_points import estimate_melting_point
from daskpipe.config.proposal.systems import read_system


@pytest.mark.parametrize(
    ("text", "kelvin", "source"),
    [
        ("Pt", 2041, "melting point of Pt"),
        ("OMg", 3125, "melting point of OMg"),  # the order of a formula does not matter
        ("Ti2O4", 2116, "melting point of Ti2O4"),
        ("Cu3Zn", (3 * 1358 + 693) / 4, "mean of the elements' melting points"),
        ("UO2", 2000, "typical of oxides; the melting point of UO2 is not known here"),
        ("LiI", 900, "typical of halides; the melting point of LiI is not known here"),
        ("LiCoO2", 2000, "typical of oxides; the melting point of LiCoO2 is not known here"),
        ("InSb", 1300, "a guess: the melting point of InSb is not known here"),
    ],
)
def test_measured_first_then_mean_then_typical(text, kelvin, source):
    estimate = estimate_melting_point(read_system(text))
    assert estimate.kelvin == pytest.approx(kelvin, abs=1)
    assert estimate.source == source
