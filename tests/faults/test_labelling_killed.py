"""A worker and the driver die while a costly teacher labels: no label is made twice, by the teacher's own count."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest
from driver import Driver, resume, wait_for_the_end_of
from small_runs import SMALL, files_of
from waiting import wait_until

import daskpipe

TEACHER = '''
"""EMT that takes its time, and writes down what it does."""
import os
import time
from hashlib import sha256
from ase.calculators.emt import EMT

class SlowEMT(EMT):
    def __init__(self, log):
        super().__init__()
        self.log = log

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        self.note("begin", atoms)
        time.sleep(1.0)
        super().calculate(atoms, properties, system_changes)
        self.note("end", atoms)

    def note(self, word, atoms):
        line = f"{word} {sha256(atoms.positions.tobytes()).hexdigest()} {os.getppid()}\\n"
        with open(self.log, "a") as stream:
            stream.write(line)
'''


def read_log(log: Path, word: str) -> list[list[str]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [line.split() for line in lines if line.startswith(word)]


@pytest.mark.slow
def test_nothing_is_labelled_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_emt.py").write_text(TEACHER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(tmp_path))
    log, run_dir = tmp_path / "log", tmp_path / "run"
    words = [
        *SMALL, "select.n=8", "label.batch_size=4", "label.potential.name=ase", "label.isolated_atoms=false",
        f"label.potential.params={{calculator: slow_emt:SlowEMT, arguments: {{log: {log}}}}}",
        "label.checks.finite_differences=null", "cluster.workers=2", "cluster.gpus=0",
    ]  # fmt: skip
    driver = Driver(run_dir, "run", "emt_alloy", *words, "--run-dir", str(run_dir))
    wait_until(lambda: len(read_log(log, "begin")) >= 3)
    os.kill(int(read_log(log, "begin")[-1][2]), signal.SIGKILL)  # the worker of the child that has just begun
    n_begun = len(read_log(log, "begin"))
    wait_until(lambda: len(read_log(log, "begin")) > n_begun)
    children = psutil.Process(driver.process.pid).children(recursive=True)
    assert driver.send(signal.SIGKILL) == -signal.SIGKILL
    wait_for_the_end_of(children)
    last = resume(run_dir)
    assert last.finish() == 0, last.log.read_text()

    made = Counter(line[1] for line in read_log(log, "end"))
    assert len(made) == len(daskpipe.open_dataset(run_dir / "dataset.zarr")["energy"]) >= 5
    assert set(made.values()) == {1}
    assert len(read_log(log, "begin")) <= len(made) + 3, "one was under way in the worker, and two with the driver"
    again = daskpipe.run("emt_alloy", words, run_dir=tmp_path / "again")
    assert files_of(again.dataset) == files_of(run_dir / "dataset.zarr")
