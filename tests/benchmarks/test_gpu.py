"""The measurements of `benchmarks/gpu.py`, in a tiny form: on a CPU always, and on a GPU where torch sees one."""

from __future__ import annotations

import math
from pathlib import Path

import gpu
import gpu_measurements
import pytest
import torch
from gpu import ASE, BARE, RATE, Job, Row
from gpu_samples import ROWS

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU with CUDA")]

MINUTE = 60

LIMIT = 20
"""Seconds in which a process starts, also where the machine is busy."""

ENERGY_AGREEMENT = 1e-5
"""As between daskpipe's evaluators, eV/atom."""


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def job(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Job(device=request.param, n_systems=2, n_steps=2, folder=tmp_path)


def measure(function: str, *args: object) -> dict[str, Row]:
    """Return the rows of a measurement, all of which must have a value."""
    rows = list(getattr(gpu_measurements, function)(*args))
    assert [row for row in rows if math.isnan(row.value)] == []
    return {row.what: row for row in rows}


def some_row(value: float, what: str = "daskpipe, torch", unit: str = RATE) -> Row:
    return Row("bundled", what, value, unit)


# --- measurements ---------------------------------------------------------------------------------------


def test_bits_are_the_same(job: Job) -> None:
    rows = measure("measure_repeatability", job, "bundled")
    assert list(rows) == ["a batch twice: same bits", "alone and in a batch: same bits", "a unit twice: same bits"]
    if job.device == "cpu":
        assert [row.value for row in rows.values()] == [1, 1, 1]
    assert rows["a unit twice: same bits"].note == "2 frames"


def test_memory_of_the_largest_batch(job: Job) -> None:
    largest, peak, growth = measure("measure_memory", job, "bundled").values()
    assert largest.value >= 32  # 1024 atoms on a CPU
    assert peak.value > 0
    assert growth.note.count(",") >= gpu_measurements.N_UNITS - 1


def test_descriptors(job: Job) -> None:
    (row,) = measure("measure_describe", job, "bundled").values()
    assert row.value > 0
    assert row.note == "48 features"


def test_labels(job: Job) -> None:
    assert min(row.value for row in measure("measure_label", job, "bundled").values()) > 0


def test_loading(job: Job) -> None:
    rows = measure("measure_load", job)
    assert list(rows) == ["load to cpu"] if job.device == "cpu" else ["load to cuda", "load to cuda, pinned"]
    assert min(row.value for row in rows.values()) > 0


@pytest.mark.slow
def test_dynamics(job: Job) -> None:
    rows = measure("measure_dynamics", job, "bundled" if job.device == "cpu" else "foundation")
    assert {ASE, BARE, "daskpipe, torch"} <= rows.keys()
    assert min(row.value for row in rows.values() if row.unit == RATE) > 0


@pytest.mark.slow
@pytest.mark.parametrize("job", [pytest.param("cuda", marks=needs_gpu)], indirect=True)
def test_compiled_dynamics(job: Job) -> None:
    assert measure("measure_compiled", job, "bundled")["daskpipe, torch.compile"].value > 0


@pytest.mark.slow
def test_native_evaluation_agrees_with_torch(job: Job) -> None:
    try:
        backend = gpu_measurements.find_backend(job.device)
    except RuntimeError as error:
        pytest.skip(str(error))
    one, every = (f"symmetrix {backend}, {systems}" for systems in ("one system", "all systems"))
    rows = measure("measure_native", job, "small")
    assert list(rows) == [one, every]
    assert max(float(row.note.split()[0]) for row in rows.values()) < ENERGY_AGREEMENT


def test_no_backend_of_symmetrix(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("symmetrix", reason="needs symmetrix: pip install 'daskpipe[fast]'")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (1, 2))
    with pytest.raises(
        RuntimeError, match="has no backend for cuda here but cpu.*pip install symmetrix-xl-cuda13-sm90"
    ):
        gpu_measurements.find_backend("cuda")


def test_half_of_the_systems_where_all_do_not_fit() -> None:
    def rate(structures: list[int]) -> float:
        if len(structures) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 5.0

    assert gpu_measurements.run_what_fits(rate, list(range(4))) == (5.0, "2 systems: more do not fit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another fault"):
        gpu_measurements.run_what_fits(lambda _: raise_error("another fault"), list(range(4)))  # type: ignore[arg-type]


def raise_error(message: str) -> float:
    raise ValueError(message)


def test_a_failure_is_a_row() -> None:
    row = gpu_measurements.try_row("bundled", "something", RATE, lambda: raise_error("no\nsuch kernel"))
    assert math.isnan(row.value)
    assert row.note == "failed: ValueError: no such kernel"


# --- processes and time ---------------------------------------------------------------------------------


def test_rows_of_another_process() -> None:
    assert gpu.run_apart("gpu_samples", "two_rows_and_a_wait", (0,), "", MINUTE) == ROWS


@pytest.mark.slow
def test_a_measurement_is_ended_at_its_limit() -> None:
    *rows, last = gpu.run_apart("gpu_samples", "two_rows_and_a_wait", (10 * MINUTE,), "bundled", LIMIT)
    assert rows == ROWS
    assert last.note == f"ended after {LIMIT} s"


@pytest.mark.parametrize(
    ("how", "why"), [("exit", "failed with exit code 9"), ("strange", "failed: ValueError: strange")]
)
def test_an_end_keeps_the_rows_before_it(how: str, why: str) -> None:
    *rows, last = gpu.run_apart("gpu_samples", "two_rows_and_an_end", (how,), "", MINUTE)
    assert rows == ROWS
    assert last.note == why


def test_what_does_not_fit_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(device="cpu", n_systems=2, n_steps=2, folder=tmp_path)
    measurements = gpu.list_measurements(["bundled", "foundation"])
    rows = gpu.run_all(measurements, job, minutes=0.1)
    assert [row.what for row in rows] == [entry.function for entry in measurements]
    assert {row.note for row in rows} == {"left out: 6 s of 0.1 min are left"}
    assert capsys.readouterr().out.count("left out") == len(measurements)


def test_all_measurements_fit_into_eight_minutes() -> None:
    measurements = gpu.list_measurements(["bundled", "foundation"])
    assert sum(entry.seconds for entry in measurements) <= 8 * MINUTE
    assert all(hasattr(gpu_measurements, entry.function) for entry in measurements)


@pytest.mark.slow
def test_the_command_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu-cpu.txt"
    words = ["--device=cpu", "--systems=2", "--steps=2", "--models=bundled", "--only=measure_load", f"--out={out}"]
    assert gpu.main(words) == 0
    written = out.read_text()
    assert written in capsys.readouterr().out
    assert f"torch {torch.__version__.partition('+')[0]}" in written
    assert "load to cpu" in written
    assert "bundled: goal 20 times ASE one by one: not measured" in written


def test_an_unknown_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--only=measure_speed"])
    assert "there is no measure_speed; give some of measure_dynamics, measure_repeat" in capsys.readouterr().err


def test_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "torch sees no GPU with CUDA: give --device cpu" in capsys.readouterr().err


# --- the table ------------------------------------------------------------------------------------------


def test_rates_are_compared() -> None:
    rows = [some_row(10.0, ASE), some_row(200.0, BARE), some_row(250.0)]
    line = gpu.format_row(rows[2], gpu.collect_rates(rows))
    assert "25.00 x ASE; 1.25 x torch-sim" in line
    assert gpu.judge(rows, ["bundled"]) == [
        "bundled: goal 20 times ASE one by one: 25.00, reached",
        "bundled: goal 0.9 of bare torch-sim: 1.25, reached",
        "bundled: goal 80 % busy: not measured",
    ]


def test_a_goal_that_is_missed() -> None:
    rows = [some_row(10.0, ASE), some_row(100.0), some_row(70.0, "GPU busy, daskpipe, torch", "%")]
    lines = gpu.judge(rows, ["bundled"])
    assert lines[0] == "bundled: goal 20 times ASE one by one: 10.00, not reached"
    assert lines[2] == "bundled: goal 80 % busy: 70.00, not reached"


def test_a_row_without_a_value_gives_its_reason() -> None:
    assert gpu.format_row(some_row(math.nan)._replace(note="failed: x")).endswith("failed: x")


def test_yes_and_no() -> None:
    words = [gpu.format_row(some_row(value, unit="yes/no")).split()[-2] for value in (0.0, 1.0)]
    assert words == ["no", "yes"]
