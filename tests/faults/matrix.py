"""Run the matrix of faults: real drivers, one fault at a time or several in a row, and the fate of the structures.

    python tests/faults/matrix.py [--only NAME ...] [--stage STAGE ...] [--repeat N] [--out FILE]

Names are those of `SCENARIOS`. The rows of Slurm need it, and root; those of two nodes and of full disks need root.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # as on daskpipe's workers, before any import
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import rows_calculators
import rows_disk as disk
import rows_processes as processes
import rows_slurm
import rows_two_nodes
import slurm
import two_nodes
from strikes import STAGES, Bench, Row

Scenario = Callable[[Bench], list[Row]]


def _scenarios() -> Iterator[tuple[str, Scenario]]:
    """Yield the name and the function of each scenario, in the order of the table."""
    steps, moments, errors = len(processes.STEPS), len(processes.LEDGER_MOMENTS), len(disk.ERRORS)
    yield from _rotated("worker", processes.workers_at_steps, steps)
    yield "worker-files", processes.workers_at_more_steps
    yield "worker-published", processes.worker_has_published
    yield "nanny", processes.nannies_killed
    yield from _rotated("driver", processes.driver_while_units_commit, steps)
    yield "driver-published", processes.driver_while_published
    yield from _rotated("ledger", processes.driver_at_its_ledger, moments)
    yield "driver-files", processes.driver_at_its_files
    yield "scheduler", processes.schedulers_killed
    yield "worker-stopped", processes.workers_stopped
    yield "local-worker-stopped", processes.local_worker_stopped
    yield "driver-stopped", processes.driver_stopped
    yield "two-drivers", processes.two_drivers_at_once
    yield "calculators", rows_calculators.calculators
    yield from _rotated("disk-errors", disk.disk_errors, errors)
    yield "driver-disk-errors", disk.driver_disk_errors
    if disk.can_mount():
        yield "disk-full", disk.disk_full
    yield "torn-ledger", disk.torn_ledger
    yield "flipped", disk.flipped
    yield "dataset-flipped", disk.dataset_flipped
    if slurm.missing() is None:
        for name, disturb in rows_slurm.DISTURBANCES.items():
            yield name, partial(_on_slurm, disturb=disturb)
    if two_nodes.missing() is None:
        for name, disturb_nodes in rows_two_nodes.DISTURBANCES.items():
            yield name, partial(_on_two_nodes, disturb=disturb_nodes)


def _rotated(name: str, scenario: Callable[..., list[Row]], n: int) -> Iterator[tuple[str, Scenario]]:
    """Yield a scenario in each of its rotations: together they are all pairs of a stage and a step."""
    for rotation in range(n):
        yield f"{name}-{rotation}", partial(scenario, rotation=rotation)


def _on_slurm(bench: Bench, disturb: Callable[[Bench, slurm.Slurm], list[Row]]) -> list[Row]:
    with slurm.running() as running:
        try:
            return disturb(bench, running)
        finally:
            bench.close()


def _on_two_nodes(bench: Bench, disturb: Callable[[Bench, two_nodes.TwoNodes], list[Row]]) -> list[Row]:
    with two_nodes.running() as running:
        try:
            return disturb(bench, running)
        finally:
            bench.close()


SCENARIOS: dict[str, Scenario] = dict(_scenarios())


def rows_of(name: str, bench: Bench) -> list[Row]:
    """Return the rows of a scenario, or one row with the error that ended it."""
    try:
        return SCENARIOS[name](bench)
    except Exception as error:  # its row says so, and the other scenarios are run
        traceback.print_exc()
        bench.close()
        (line,) = traceback.format_exception_only(error)[-1:]
        return [Row(fault=name, stage="-", note=" ".join(line.split())[:300])]


HEAD = ("fault", "stage", "injected", "survived", "lost", "duplicates", "seconds", "bit-identical")


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table."""
    cells = [HEAD] + [
        (
            row.fault,
            row.stage,
            f"{row.injected}",
            f"{row.survived}",
            f"{row.lost}",
            f"{row.duplicates}",
            f"{row.seconds:.1f}",
            "yes" if row.identical else "NO",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    details = [f"{row.fault} | {row.stage}: {row.detail}" for row in rows if row.detail]
    notes = [f"{row.fault} | {row.stage}: {row.note or 'was not injected'}" for row in rows if not row.good]
    return lines + (["", *details, *notes] if details or notes else [])


def summary(rows: Sequence[Row]) -> str:
    """Return the last line."""
    total = {name: sum(getattr(row, name) for row in rows) for name in ("injected", "survived", "lost", "duplicates")}
    return (
        f"{total['injected']} faults injected, {total['survived']} survived; {total['lost']} structures lost, "
        f"{total['duplicates']} duplicates; {sum(row.identical for row in rows)} of {len(rows)} rows bit-identical"
    )


def machine() -> str:
    """Return date, machine and load, on which the seconds depend."""
    day, python, load = time.strftime("%Y-%m-%d"), platform.python_version(), os.getloadavg()[0]
    return f"{day}, {os.cpu_count()} cores, {platform.machine()}, Python {python}, load {load:.1f} at the start"


def main() -> int:
    """Run scenarios and print their rows; return 1 if one of them is not good."""
    parser = argparse.ArgumentParser(
        description="Inject faults into runs of daskpipe, and print the fate of the structures."
    )
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="NAME", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    words = " ".join(sys.argv[1:]).replace(f"--out {chosen.out}", "").strip()  # a folder of this machine
    head = f"$ python tests/faults/matrix.py {words}".rstrip() + f"   ({machine()})"
    started = time.monotonic()
    rows: list[Row] = []
    text = ""
    with tempfile.TemporaryDirectory(prefix="daskpipe-faults-") as folder:
        bench = Bench(Path(folder), chosen.stage)
        for name in [*(chosen.only or SCENARIOS)] * chosen.repeat:
            began = time.monotonic()
            made = rows_of(name, bench)
            rows += made
            good = "" if all(row.good for row in made) else ", not all good"
            print(f"{name}: {len(made)} rows in {time.monotonic() - began:.0f} s{good}", file=sys.stderr)
            end = f"{summary(rows)}; {(time.monotonic() - started) / 60:.0f} minutes"
            text = "\n".join([head, "", *table(rows), "", end]) + "\n"
            if chosen.out:
                chosen.out.write_text(text)  # each time: it takes hours
    print(text, end="")
    return 0 if rows and all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
