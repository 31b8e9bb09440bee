"""A run directory is opened by one driver: lease first, then the config."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from daskpipe.config.load import load_config
from daskpipe.config.models import Config
from daskpipe.config.saved import from_yaml
from daskpipe.core.errors import ConfigError
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs import detached, lease, run

ROUNDS = 25
"""How often two drivers begin at once."""

DRIVER = """
import sys
from pathlib import Path
from daskpipe.config.load import load_config
from daskpipe.core.errors import ConfigError
from daskpipe.runs.run import open_run
from daskpipe.engine.run_directory import RunDirectory

config = load_config("emt_alloy", [f"seed={sys.argv[1]}"])
print("ready", flush=True)
while folder := sys.stdin.readline().strip():
    try:
        with open_run(RunDirectory(Path(folder)), config):
            print("opened", flush=True)
            sys.stdin.readline()
    except ConfigError as error:
        print("refused:", error, flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def drivers() -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that open run directories, each with a config of its own."""
    with ExitStack() as stack:
        command = [sys.executable, "-c", DRIVER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes = [stack.enter_context(subprocess.Popen([*command, str(seed)], **pipes)) for seed in (1, 2)]  # type: ignore[call-overload]
        for driver in processes:
            assert driver.stdout.readline() == "ready\n"
        yield processes
        for driver in processes:
            driver.stdin.close()


def tell_process(driver: subprocess.Popen[str], line: str) -> None:
    assert driver.stdin is not None
    driver.stdin.write(f"{line}\n")
    driver.stdin.flush()


def read_answer(driver: subprocess.Popen[str]) -> str:
    assert driver.stdout is not None
    return driver.stdout.readline()


def test_of_two_configs_that_begin_at_once_one_wins(drivers: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    for number in range(ROUNDS):
        root = tmp_path / str(number)
        for driver in drivers if number % 2 else drivers[::-1]:
            tell_process(driver, str(root))
        answers = [read_answer(driver) for driver in drivers]
        (winner,) = [index for index, said in enumerate(answers) if said == "opened\n"]
        refused = answers[1 - winner]
        assert f"another daskpipe works in {root}" in refused or f"{root} holds a run of another config" in refused
        assert from_yaml(root / "config.yaml").seed == winner + 1
        for driver in drivers:
            tell_process(driver, "")


def test_another_config_is_refused_after_the_first_has_ended(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with run.open_run(directory, load_config("emt_alloy")):
        assert lease.find_driver(directory.root) is not None
    before = sorted(path.name for path in (directory.root / "drivers").iterdir())
    with (
        pytest.raises(ConfigError, match=r"holds a run of another config \(seed: 1 here, 0 there\)"),
        run.open_run(directory, load_config("emt_alloy", ["seed=1"])),
    ):
        pass
    assert sorted(path.name for path in (directory.root / "drivers").iterdir()) == before


def test_a_driver_that_died_before_its_config_leaves_a_folder_that_can_be_used(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.root.mkdir()
    with lease.hold_lease(directory.root):
        pass
    with run.open_run(directory, load_config("emt_alloy")):
        assert from_yaml(directory.config) == load_config("emt_alloy")
    (tmp_path / "other" / "drivers").mkdir(parents=True)
    (tmp_path / "other" / "notes.txt").write_text("")
    with (
        pytest.raises(ConfigError, match="other is neither empty nor a run directory"),
        run.open_run(RunDirectory(tmp_path / "other"), load_config("emt_alloy")),
    ):
        pass


def test_a_detached_driver_is_submitted_under_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that are submitted at once one finds the other."""
    site = tmp_path / "site.yaml"
    site.write_text("class: SLURM\npools: {cpu: {}}\n")
    config: Config = load_config("emt_alloy", [f"cluster.name={site}"])
    root = tmp_path / "run"

    def submit(run_dir: Path, *_: object) -> None:
        assert lease.find_driver(run_dir) is not None
        with pytest.raises(ConfigError, match="another daskpipe works in"):
            detached.submit_run(config, run_dir)

    monkeypatch.setattr(detached, "_submit_job", submit)
    monkeypatch.setattr(run, "check_cluster", lambda cluster: None)
    detached.submit_run(config, root)
    assert lease.find_driver(root) is None
