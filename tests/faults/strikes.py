"""Inject faults into runs, and compare what they left with an undisturbed run."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
from driver import PATIENCE, Driver
from small_runs import SMALL, UNITS, files_of, manifests

from daskpipe.core.errors import EXIT_QUARANTINED
from daskpipe.core.structures import hex_ids
from daskpipe.engine.rows import read_unit
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs.fsck import check_run

STAGES = tuple(UNITS)
HOLD_STRUCTURES = ("generate", "explore", "label")
"""Stages whose units hold structures with an id; `dataset.zarr` is the fourth place."""

UNIT = re.compile(r"units/[a-z-]+/[0-9a-f]{2}/\.([0-9a-f]{32})")

HURRIED = (str(Path(__file__).with_name("hurried.py")),)
"""Program of a driver that waits less for workers and jobs."""


@dataclass(frozen=True, kw_only=True)
class Strike:
    """Describe one fault at one call.

    Parameters
    ----------
    fault, stage
        For the table.
    call, when, pattern
        `mkdir`, `fsync`, `rename` or `write`, and `before`, `after` or (of a write) `half`; what the path, or of a
        write the path and the text, must match.
    act
        ``kill self|parent|FILE ...``, ``stop``, ``raise ERRNO``, ``fill``, ``wait FILE``.
    times
        Number of strikes.
    file
        Of a write: what the path must match.
    """

    fault: str
    stage: str
    call: str
    when: str
    pattern: str
    act: str = "kill self"
    times: int = 1
    file: str = ""


@dataclass(frozen=True)
class Struck:
    """Hold the content of a marker."""

    at: float
    pid: int
    parent: int
    subject: str


@dataclass
class Plan:
    """Hold the strikes that wait for the processes of a driver."""

    folder: Path
    strikes: Sequence[Strike]

    def struck(self, strike: Strike) -> list[Struck]:
        """Return the markers of a strike, in their order."""
        markers = []
        for path in sorted(self.folder.glob(f"struck-{self.strikes.index(strike)}-*")):
            text = path.read_text()
            if text:  # else it is just being written
                markers.append(Struck(**json.loads(text)))
        return markers

    @property
    def n_struck(self) -> int:
        """Number of strikes so far."""
        return len(list(self.folder.glob("struck-*")))


@contextmanager
def striking(folder: Path, strikes: Sequence[Strike]) -> Iterator[Plan]:
    """Strike the processes that are started in the block."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import injected\n")
    (folder / "strikes.json").write_text(json.dumps([asdict(strike) for strike in strikes]))
    paths = [str(folder), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
        patch.setenv("FAULTS_PLAN", str(folder))
        yield Plan(folder, strikes)


# --- what a run left --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Left:
    """Hold what a run left: ids by place, checksums of the files of units, dataset, quarantine."""

    ids: dict[str, Counter[str]]
    units: dict[str, object]
    dataset: dict[str, bytes]
    quarantine: dict[str, bytes]


def left_by(run_dir: Path) -> Left:
    """Read a run directory, and check each byte of it."""
    from daskpipe.store.reader import open_dataset

    units, ids = {}, {stage: Counter[str]() for stage in HOLD_STRUCTURES}
    for path in manifests(run_dir):
        manifest = json.loads(path.read_text())
        stage, key = manifest["unit"]["stage"], manifest["unit"]["key"]
        units[f"{stage}/{key}"] = manifest["files"]
        if stage in HOLD_STRUCTURES and manifest["receipt"]["n_out"]:
            ids[stage].update(hex_ids(read_unit(run_dir, stage, key)))
    if RunDirectory(run_dir).dataset.exists():
        ids["dataset"] = Counter(hex_ids(open_dataset(RunDirectory(run_dir).dataset).compute(scheduler="synchronous")))
    # Hidden files are those that were never renamed.
    quarantine = {path.name: path.read_bytes() for path in (run_dir / "quarantine").glob("[!.]*.json")}
    return Left(ids, units, files_of(run_dir / "dataset.zarr"), quarantine)


@dataclass(kw_only=True)
class Row:
    """Hold one line of the table."""

    fault: str
    stage: str
    injected: int = 0
    survived: int = 0
    lost: int = 0
    duplicates: int = 0
    seconds: float = 0.0
    """Longest time from a strike until the struck unit was committed, or the next driver committed."""
    identical: bool = False
    note: str = ""
    detail: str = ""
    """Further text for the table, whether or not the row is good."""

    @property
    def good(self) -> bool:
        """Whether faults were injected and survived, nothing was lost or doubled, and the bytes are the same."""
        survived = self.injected > 0 and self.survived == self.injected
        return survived and self.identical and self.lost == self.duplicates == 0


def judged(run_dir: Path, reference: Left, *, fully: bool = True) -> tuple[dict[str, int], list[str]]:
    """Compare a run with an undisturbed one; return ids lost, ids twice, and what is wrong in words."""
    left = left_by(run_dir)
    numbers = {"lost": 0, "duplicates": 0}
    for place, expected in reference.ids.items():
        here = left.ids.get(place, Counter())
        numbers["lost"] += (expected - here).total()
        numbers["duplicates"] += (here - expected).total()
    wrong = []
    if left.dataset != reference.dataset:
        wrong.append("dataset differs")
    if left.units != reference.units:
        names = sorted(key for key in left.units | reference.units if left.units.get(key) != reference.units.get(key))
        wrong.append(f"units differ: {', '.join(name[:22] for name in names)}")
    if left.quarantine != reference.quarantine:
        wrong.append("quarantine differs")
    if fully:
        # Leftovers of killed attempts are no finding: the next driver removes them.
        wrong += [f"fsck: {finding}" for finding in check_run(run_dir, rehash=True).findings]
    return numbers, wrong


# --- a bench ----------------------------------------------------------------------------------------


@dataclass
class Bench:
    """Start runs in a folder, and keep what an undisturbed one left.

    One of its seeds is rejected, so that there is a quarantine.
    """

    folder: Path
    stages: Sequence[str] = STAGES
    undisturbed: Path = field(init=False)
    reference: Left = field(init=False)
    _runs: int = 0
    _drivers: list[Driver] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "overlap.xyz").write_text("2\n\nCu 0 0 0\nAu 0 0 0.3\n")
        self.undisturbed = self.folder / "undisturbed"
        driver = self.start(self.undisturbed)
        ended(driver, EXIT_QUARANTINED)
        self.reference = left_by(self.undisturbed)
        _, wrong = judged(self.undisturbed, self.reference)
        assert not wrong, wrong
        assert self.reference.dataset
        assert self.reference.quarantine

    def words(self, run_dir: Path, *overrides: str) -> list[str]:
        """Return the command line that runs the config."""
        paths = f"generate.paths=['{self.folder}/overlap.xyz']"
        local = ["cluster.workers=2", "cluster.gpus=0"]
        return ["run", "emt_alloy", *SMALL, paths, *local, *overrides, "--run-dir", str(run_dir)]

    def start(
        self,
        run_dir: Path,
        *overrides: str,
        program: Sequence[str] = ("-m", "daskpipe"),
        prefix: Sequence[str] = (),
    ) -> Driver:
        """Start a driver, or resume: the same config in the same directory is the same run."""
        driver = Driver(run_dir, *self.words(run_dir, *overrides), program=program, prefix=prefix)
        self._drivers.append(driver)
        return driver

    def close(self) -> None:
        """Kill the drivers that a failed scenario has left."""
        for driver in self._drivers:
            driver.process.kill()
            driver.process.wait()
        self._drivers.clear()

    def fresh(self) -> Path:
        """Return a folder for a scenario."""
        self._runs += 1
        folder = self.folder / f"{self._runs}"
        folder.mkdir()
        return folder

    def rows(self, plan: Plan, run_dir: Path, starts: Sequence[float] = ()) -> list[Row]:
        """Return a row for each strike of a plan, after the end of its run.

        `starts` are the times at which further drivers were started: one that was killed has recovered when the next
        one commits.
        """
        numbers, wrong = judged(run_dir, self.reference)
        commits = {path.parent.name: path.stat().st_mtime for path in manifests(run_dir)}
        rows = []
        for strike in plan.strikes:
            struck = plan.struck(strike)
            rows.append(
                Row(
                    fault=strike.fault,
                    stage=strike.stage,
                    injected=len(struck),
                    survived=len(struck),
                    seconds=max((recovered(mark, commits, starts, run_dir) - mark.at for mark in struck), default=0.0),
                    identical=not wrong,
                    note="; ".join(wrong),
                    **numbers,
                )
            )
        return rows

    def row(self, fault: str, stage: str, run_dir: Path, at: float, injected: int, *, fully: bool = True) -> Row:
        """Return the row of a fault that was injected from outside at some time, after the end of its run."""
        numbers, wrong = judged(run_dir, self.reference, fully=fully)
        commits = [path.stat().st_mtime for path in manifests(run_dir)]
        back = min([moment for moment in commits if moment > at], default=newest(run_dir))
        return Row(
            fault=fault,
            stage=stage,
            injected=injected,
            survived=injected,
            seconds=back - at,
            identical=not wrong,
            note="; ".join(wrong),
            **numbers,
        )


def recovered(mark: Struck, commits: dict[str, float], starts: Sequence[float], run_dir: Path) -> float:
    """Return when the struck unit was committed; of a driver, when the next one committed or had nothing to commit."""
    unit = UNIT.search(mark.subject)
    after = next((start for start in starts if start > mark.at), None)
    if after is None and unit is not None and commits[unit[1]] > mark.at:
        return commits[unit[1]]
    return min((at for at in commits.values() if at > (after or mark.at)), default=newest(run_dir))


def newest(run_dir: Path) -> float:
    """Return when a run last wrote to its ledger."""
    return max(path.stat().st_mtime for path in (run_dir / "ledger").glob("*.jsonl"))


def ended(driver: Driver, *codes: int) -> int:
    """Wait for a driver; check its exit code."""
    code = driver.process.wait(PATIENCE)
    assert code in codes, f"the driver ended with {code}: {driver.log.read_text()[-3000:]}"
    return code


PYTHON = sys.executable
