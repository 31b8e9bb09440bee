"""The short form of the matrix of faults: one row of each kind; `matrix.py` makes the full one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import matrix
import pytest
import rows_disk
from rows_processes import diagonal, driver_at_its_files, workers_stopped, workers_struck
from strikes import STAGES, Bench, Row, left_by

pytestmark = pytest.mark.slow

# What the other files here show in full is left to them: the driver killed in every stage, two drivers, calculators.
SHORT: dict[str, tuple[int, matrix.Scenario]] = {
    # The errors begin at the third: none then comes after the call at which a worker has committed its unit and dies.
    "workers-killed-and-disks-that-fail": (
        2 * len(STAGES),
        lambda bench: workers_struck(bench, [*diagonal(0, STAGES, "worker killed"), *rows_disk.errors(2, STAGES)]),
    ),
    "worker-stopped": (1, lambda bench: workers_stopped(bench, ["label"])),
    "driver-files": (9, driver_at_its_files),
    "torn-ledger": (1, lambda bench: rows_disk.torn_ledger(bench, [next(iter(rows_disk.TEARS))])),
    "flipped": (len(STAGES), rows_disk.flipped),
}
"""How many rows each scenario gives, and what it does."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("faults"))
    yield bench
    bench.close()


@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost_and_nothing_doubled(name: str, bench: Bench) -> None:
    n_rows, scenario = SHORT[name]
    rows = scenario(bench)
    assert len(rows) == n_rows
    assert [row for row in rows if not row.good] == []


@pytest.mark.skipif(not rows_disk.can_mount(), reason="a small disk needs root to be mounted")
def test_a_full_disk_is_waited_for(bench: Bench) -> None:
    rows = rows_disk.disk_full(bench, ["label"])
    assert len(rows) == 1
    assert [row for row in rows if not row.good] == []


# --- the matrix itself ------------------------------------------------------------------------------


def test_a_row_tells_what_a_run_has_lost_and_doubled(bench: Bench) -> None:
    """A unit of labels that is missing, and a unit of frames that is there twice under another key."""
    run_dir = rows_disk.copied(bench)
    ids = bench.reference.ids
    unit = next(iter(sorted(run_dir.glob("units/label/*/*"))))
    unit.rename(run_dir / "taken away")
    twice = next(iter(sorted(run_dir.glob("units/generate/*/*/payload.npz")))).parent
    twin = twice.with_name("0" * 32)
    twin.mkdir()
    for file in twice.iterdir():
        (twin / file.name).write_bytes(file.read_bytes())
    row = bench.row("made for this test", "label", run_dir, 0.0, 1, fully=False)
    assert (row.lost, row.duplicates, row.identical, row.good) == (1, 1, False, False)
    assert row.note.startswith("units differ: ")
    assert left_by(bench.undisturbed).ids == ids


def test_what_was_not_injected_is_no_pass() -> None:
    assert not Row(fault="a", stage="b", identical=True).good
    assert Row(fault="a", stage="b", injected=1, survived=1, identical=True).good
    assert not Row(fault="a", stage="b", injected=2, survived=1, identical=True).good
    assert "was not injected" in matrix.table([Row(fault="a", stage="b", identical=True)])[-1]


@pytest.fixture
def argv(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    words = ["matrix.py"]
    monkeypatch.setattr(sys, "argv", words)
    return words


def test_one_command_prints_the_table(
    argv: list[str],
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The rows are made up: what scenarios give is seen above."""
    good = Row(fault="made up", stage="label", injected=2, survived=2, seconds=1.25, identical=True)
    bad = Row(fault="made up", stage="store", injected=2, survived=1, lost=3, note="dataset differs")
    monkeypatch.setattr(matrix, "Bench", lambda *_: bench)
    monkeypatch.setitem(matrix.SCENARIOS, "nanny", lambda _: [good])
    monkeypatch.setitem(matrix.SCENARIOS, "flipped", lambda _: [bad])
    argv += ["--only", "nanny", "--repeat", "2", "--out", str(tmp_path / "table.txt")]
    assert matrix.main() == 0
    said = capsys.readouterr().out
    assert said == (tmp_path / "table.txt").read_text()
    head, _, columns, *lines, _, end = said.splitlines()
    assert head.startswith("$ python tests/faults/matrix.py --only nanny --repeat 2")
    assert columns.split() == list(matrix.HEAD)
    assert [line.split() for line in lines] == [["made", "up", "label", "2", "2", "0", "0", "1.2", "yes"]] * 2
    assert end.startswith("4 faults injected, 4 survived; 0 structures lost, 0 duplicates; 2 of 2 rows bit-identical")
    argv[1:] = ["--only", "flipped"]
    assert matrix.main() == 1
    said = capsys.readouterr().out
    assert "made up | store: dataset differs" in said
    assert "2 faults injected, 1 survived; 3 structures lost" in said


def test_a_scenario_that_breaks_off_has_a_row_of_its_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: Bench) -> list[Row]:
        raise AssertionError("the driver ended with 1")

    monkeypatch.setitem(matrix.SCENARIOS, "nanny", broken)
    (row,) = matrix.rows_of("nanny", bench)
    assert not row.good
    assert (row.fault, row.note) == ("nanny", "AssertionError: the driver ended with 1")
