import math

import pytest
from explore_samples import dynamics
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from daskpipe.stages.explore.settings import Dynamics, Exploration, Guards, MonteCarlo, Ramp


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 10, "stride": 20}, r"steps=10 with equilibration=0 and stride=20 keep no frame; make steps larger"),
        ({"steps": 20, "stride": 10, "equilibration": 15}, "equilibration=15 and stride=10 keep no frame"),
        ({"temperatures": []}, r"temperatures is empty; give at least one, K, e.g. temperatures=\[300\]"),
        ({"temperatures": [300.0, -1.0]}, r"temperatures.1.\[number\]\n.*greater than 0"),
        (
            {"temperatures": [300.0, 300.0]},
            "received 300, 300; a temperature given twice makes the same trajectory twice",
        ),
        ({"temperatures": [math.inf]}, "finite number"),
        ({"temperatures": [Ramp(start=300, end=-1)]}, "received 300to-1 K; a temperature must be greater than 0 K"),
        ({"temperatures": [{"start": 300, "end": 500, "step": 3}]}, r"temperatures.0.\[ramp\].step\n.*not permitted"),
        ({"pressures": []}, "at least 1 item"),
        ({"pressures": [1.0, 1.0]}, "a pressure given twice makes the same trajectory twice, use replicas"),
        ({"timestep": 25.0}, "less than or equal to 20"),
        ({"timestep": 0.0}, r"timestep.\[number\]\n.*greater than 0"),
        ({"timestep": "fast"}, r"timestep.\[word\]\n.*'auto'"),
        ({"thermostat_time": 1.5}, "must be longer than timestep=2 fs; ten steps and more are sensible"),
        ({"barostat_time": 1.5}, "must be longer than timestep=2 fs"),
        ({"friction": math.nan}, "friction\n.*finite number"),
        ({"equilibration": -1}, "equilibration\n.*greater than or equal to 0"),
        ({"replicas": 0}, "replicas\n.*greater than 0"),
        ({"ensemble": "npt"}, "'npt_isotropic', 'npt_anisotropic'"),
        ({"ensembles": {"alloy": "npt"}}, "ensembles.alloy\n.*'npt_isotropic'"),
        ({"change": 0.0}, "change\n.*greater than 0"),
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
        ({"max_volume_ratio": 1.0}, "greater than 1"),
        ({"evaporation": 1.0}, "greater than 1"),
        ({"on_stop": "again"}, "'keep', 'retry' or 'quarantine'"),
        ({"min_distnace": 0.5}, "not permitted"),
    ],
)
def test_wrong_guards_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Guards(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no trial moves: give swaps or hops, or leave monte_carlo out"),
        ({"swaps": -1}, "greater than or equal to 0"),
        ({"hops": 3, "every": 0}, "greater than 0"),
        ({"swap": 3}, "not permitted"),
    ],
)
def test_wrong_moves_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        MonteCarlo(**settings)


def test_moves_need_a_thermostat():
    with pytest.raises(ValidationError, match="nve has none; give ensemble=nvt_langevin or leave monte_carlo out"):
        Exploration(dynamics=dynamics(ensembles={"cluster": "nve"}), monte_carlo=MonteCarlo(swaps=1))


@given(st.integers(1, 50), st.integers(0, 50), st.integers(1, 200))
def test_n_frames_counts_the_whole_strides_after_equilibration(stride, equilibration, steps):
    kept = [step for step in range(1, steps + 1) if step > equilibration and (step - equilibration) % stride == 0]
    if not kept:
        with pytest.raises(ValidationError, match="keep no frame"):
            Dynamics(temperatures=[300.0], steps=steps, stride=stride, equilibration=equilibration)
    else:
        settings = Dynamics(temperatures=[300.0], steps=steps, stride=stride, equilibration=equilibration)
        assert settings.n_frames == len(kept)
        assert settings.n_steps == kept[-1]


@pytest.mark.parametrize(
    ("cycles", "expected"),
    [(0, [300, 400, 500, 600, 700]), (1, [300, 500, 700, 500, 300]), (2, [300, 700, 300, 700, 300])],
)
def test_ramps_go_from_the_end_of_equilibration_to_the_last_frame(cycles, expected):
    settings = dynamics(steps=50, stride=10, equilibration=10)
    ramp = Ramp(start=300, end=700, cycles=cycles)
    assert [settings.value_at(ramp, step) for step in (10, 20, 30, 40, 50)] == pytest.approx(expected)
    assert [settings.value_at(ramp, step) for step in (0, 5)] == [300, 300]
    assert settings.value_at(450.0, 20) == 450.0
