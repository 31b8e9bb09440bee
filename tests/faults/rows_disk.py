"""Rows of the matrix of faults: disks that are full or fail, and bytes that are not what was written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from driver import Driver
from injected import FILLER
from rows_processes import ATTEMPT, STEPS, at_step, workers_struck
from small_runs import committed, manifests
from strikes import STAGES, Bench, Row, Strike, ended, striking

from daskpipe.core.errors import EXIT_INTERNAL, EXIT_QUARANTINED, DiskError

ERRORS: dict[str, tuple[str, dict[str, str]]] = {
    "no room for its folder": ("ENOSPC", STEPS["before its folder is made"]),
    "no room for payload.npz": ("ENOSPC", STEPS["before payload.npz is synced"]),
    "EIO from fsync of manifest.json": ("EIO", STEPS["after manifest.json"]),
    "EIO from fsync of its folder": ("EIO", {"call": "fsync", "when": "before", "pattern": f"{ATTEMPT}$"}),
    "EIO from fsync after the rename": ("EIO", STEPS["before the receipt returns"]),
}

TIMES = 2
"""Number of times each is raised: as often as two workers can meet it at once."""


def errors(rotation: int, stages: Sequence[str]) -> list[Strike]:
    """Return errors of system calls for units of each stage; each at the next call."""
    names = list(ERRORS)
    strikes = []
    for index, stage in enumerate(STAGES):
        name = names[(index + rotation) % len(names)]
        number, step = ERRORS[name]
        if stage in stages:
            strikes.append(at_step(f"worker: {name}", stage, step, act=f"raise {number}", times=TIMES))
    return strikes


def disk_errors(bench: Bench, rotation: int) -> list[Row]:
    """Let system calls of units fail in each stage; the units are tried again."""
    return workers_struck(bench, errors(rotation, bench.stages))


def driver_disk_errors(bench: Bench) -> list[Row]:
    """Let what the driver writes fail: it ends with the code of a full disk, and is resumed when there is room."""
    folder = bench.fresh()
    places: tuple[tuple[str, str, dict[str, str]], ...] = (
        (
            "a line of its ledger",
            "explore",
            {
                "call": "write",
                "when": "before",
                "file": r"ledger/\d+\.jsonl$",
                "pattern": '"event": "UnitCommitted", "stage": "explore"',
            },
        ),
        (
            "a quarantined structure",
            "generate",
            {"call": "fsync", "when": "before", "pattern": r"/quarantine/\.\w+\.json-\w+$"},
        ),
    )
    strikes = [
        Strike(fault=f"driver: no room for {name}", stage=stage, act="raise ENOSPC", **step)
        for name, stage, step in places
    ]
    starts: list[float] = []
    with striking(folder / "plan", strikes) as plan:
        for expected in (DiskError.exit_code, DiskError.exit_code, EXIT_QUARANTINED):
            starts.append(time.time())
            driver = bench.start(folder / "run")
            ended(driver, expected)
            assert expected == EXIT_QUARANTINED or "daskpipe resume" in " ".join(driver.log.read_text().split())
    return bench.rows(plan, folder / "run", starts)


DISK = "32m"
FULL_SECONDS = 2.0


def can_mount() -> bool:
    """Return whether a small disk can be mounted here."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a disk with little room."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "daskpipe-faults", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def disk_full(bench: Bench, stages: Sequence[str] = ("explore", "label", "store-sort")) -> list[Row]:
    """Fill a real disk to the last byte before a unit is written, and make room a while later."""
    folder = bench.fresh()
    fault = f"disk full for {FULL_SECONDS:g} s"
    strikes = [
        at_step(fault, stage, STEPS["before its folder is made"], act="fill")
        for stage in stages
        if stage in bench.stages
    ]
    n_starts = 0
    with small_disk(folder / "disk") as disk:
        run_dir, filler = disk / "run", disk / "run" / FILLER
        with striking(folder / "plan", strikes) as plan:
            code = DiskError.exit_code
            while code != EXIT_QUARANTINED:
                n_starts += 1
                driver = bench.start(run_dir, "faults.disk_reserve=0MB")
                while driver.process.poll() is None:
                    if filler.exists() and plan.n_struck and time.time() - filler.stat().st_mtime > FULL_SECONDS:
                        filler.unlink()
                    time.sleep(0.05)
                filler.unlink(missing_ok=True)
                code = ended(driver, EXIT_QUARANTINED, DiskError.exit_code)
                assert n_starts <= len(strikes) + 1
        return bench.rows(plan, run_dir)


# --- bytes ------------------------------------------------------------------------------------------


def copied(bench: Bench) -> Path:
    """Return a copy of the undisturbed run, with the names that the dataset's files have in common with units'."""
    copy = bench.fresh() / "run"
    subprocess.run(["cp", "-a", bench.undisturbed, copy], check=True)
    return copy


def daskpipe(run_dir: Path, *words: str, code: int) -> str:
    """Type a command; return its output."""
    driver = Driver(run_dir, *words)
    ended(driver, code)
    return driver.log.read_text()


def flipped(bench: Bench) -> list[Row]:
    """Flip one byte of one unit of each stage: fsck reports it, and that unit alone is made again."""
    run_dir = copied(bench)
    before = committed(run_dir)
    struck: dict[str, str] = {}
    for path in manifests(run_dir):
        stage = json.loads(path.read_text())["unit"]["stage"]
        if stage in bench.stages and stage not in struck:
            struck[stage] = path.parent.name
            flip(path.with_name("payload.npz"))
    at = time.time()
    report = json.loads(daskpipe(run_dir, "fsck", str(run_dir), "--rehash", "--json", code=EXIT_INTERNAL))
    reported = {stage: any(key in finding["says"] for finding in report["findings"]) for stage, key in struck.items()}
    daskpipe(run_dir, "fsck", str(run_dir), "--rehash", "--mend", code=0)
    daskpipe(run_dir, "resume", str(run_dir), code=EXIT_QUARANTINED)
    after = committed(run_dir)
    again = {key for key in after if after[key] != before.get(key)}
    assert again == set(struck.values()), f"made again: {sorted(again)}"
    rows = []
    for stage in struck:
        row = bench.row("one byte of payload.npz flipped", stage, run_dir, at, 1)
        row.survived = int(reported[stage])
        rows.append(row)
    return rows


def dataset_flipped(bench: Bench) -> list[Row]:
    """Flip one byte of the dataset, which is one of a unit of store-write too."""
    run_dir = copied(bench)
    before = committed(run_dir)
    files = sorted(path for path in (run_dir / "dataset.zarr").glob("*/c/**/*") if path.is_file())
    flip(files[0])
    at = time.time()
    output = daskpipe(run_dir, "fsck", str(run_dir), "--rehash", code=EXIT_INTERNAL)
    assert "dataset.zarr" in output
    daskpipe(run_dir, "fsck", str(run_dir), "--rehash", "--mend", code=0)
    daskpipe(run_dir, "resume", str(run_dir), code=EXIT_QUARANTINED)
    after = committed(run_dir)
    again = {
        json.loads(path.read_text())["unit"]["stage"]
        for path in manifests(run_dir)
        if after[path.parent.name] != before.get(path.parent.name)
    }
    assert again <= {"store-write", "store"}, f"made again: {sorted(again)}"
    return [bench.row("one byte of the dataset flipped", "store", run_dir, at, 1)]


def flip(path: Path) -> None:
    """Flip the lowest bit of the byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:  # in place: a hard link stays one
        file.write(content)


TEARS: dict[str, Callable[[bytes], bytes]] = {
    "ledger cut in the middle of a line": lambda text: text[: middle(text)],
    "a line in the middle of the ledger torn": lambda text: text[: middle(text)] + text[middle(text) + 40 :],
    "ledger with zeros at its end": lambda text: text[: middle(text)] + bytes(512),
}


def torn_ledger(bench: Bench, faults: Sequence[str] = tuple(TEARS)) -> list[Row]:
    """Cut the ledger in the middle of a line, or put a hole into it; nothing is computed again."""
    rows = []
    for fault in faults:
        run_dir = copied(bench)
        before = committed(run_dir)
        (segment,) = (run_dir / "ledger").glob("*.jsonl")
        segment.write_bytes(TEARS[fault](segment.read_bytes()))
        at = time.time()
        daskpipe(run_dir, "status", str(run_dir), code=0)
        daskpipe(run_dir, "resume", str(run_dir), code=EXIT_QUARANTINED)
        assert committed(run_dir) == before
        daskpipe(run_dir, "fsck", str(run_dir), "--mend", code=0)
        rows.append(bench.row(fault, "all", run_dir, at, 1))
    return rows


def middle(text: bytes) -> int:
    """Return an index within the line in the middle."""
    lines: list[Any] = text.splitlines(keepends=True)
    before = b"".join(lines[: len(lines) // 2])
    return len(before) + len(lines[len(lines) // 2]) // 2
