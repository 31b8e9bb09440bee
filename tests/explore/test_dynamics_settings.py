import math

import pytest
from explore_samples import dynamics
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from daskpipe.explore.settings import Dynamics, Guards


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 10, "stride": 20}, r"steps=10 with equilibration=0 and stride=20 keep no frame; make steps larger"),
        ({"steps": 20, "stride": 10, "equilibration": 15}, "equilibration=15 and stride=10 keep no frame"),
        ({"temperatures": []}, "at least 1 item"),
        ({"temperatures": [300.0, -1.0]}, "temperatures.1\n.*greater than 0"),
        ({"temperatures": [300.0, 300.0]}, "makes the same trajectory twice, use replicas"),
        ({"temperatures": [math.inf]}, "finite number"),
        ({"timestep": 25.0}, "less than or equal to 20"),
        ({"timestep": 0.0}, "timestep\n.*greater than 0"),
        ({"friction": math.nan}, "friction\n.*finite number"),
        ({"equilibration": -1}, "equilibration\n.*greater than or equal to 0"),
        ({"replicas": 0}, "replicas\n.*greater than 0"),
        ({"ensemble": "npt"}, "'nvt_langevin'"),
        ({"dt": 1.0}, "dt\n.*not permitted"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        dynamics(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_temperature_ratio": 1.0}, "greater than 1"),
        ({"max_force": 0.0}, "greater than 0"),
        ({"max_force": math.inf}, "finite number"),
        ({"min_distance": 1.0}, "less than 1"),
        ({"min_distnace": 0.5}, "not permitted"),
    ],
)
def test_wrong_guards_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Guards(**settings)


@given(st.integers(1, 50), st.integers(0, 50), st.integers(1, 200))
def test_n_frames_counts_the_whole_strides_after_equilibration(stride, equilibration, steps):
    kept = [step for step in range(1, steps + 1) if step > equilibration and (step - equilibration) % stride == 0]
    if not kept:
        with pytest.raises(ValidationError, match="keep no frame"):
            Dynamics(temperatures=[300.0], steps=steps, stride=stride, equilibration=equilibration)
    else:
        settings = Dynamics(temperatures=[300.0], steps=steps, stride=stride, equilibration=equilibration)
        assert settings.n_frames == len(kept)
