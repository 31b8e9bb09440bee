"""What a person sees of a run: a bar a stage with rate and time left, and a closing summary; and the log file."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rich.console import Console, RenderableType
from rich.markup import escape as escape_markup
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from daskpipe import events
from daskpipe.errors import printable
from daskpipe.lease import JOB_VARIABLES
from daskpipe.outcome_lines import label_lines, move_lines, seed_lines, selection_lines, split_lines
from daskpipe.store import quality
from daskpipe.work import Tree

if TYPE_CHECKING:
    from daskpipe.runs import Result
    from daskpipe.standalone import Done
    from daskpipe.store.quality import Verdict

TITLES = {
    "generate": "generate",
    "explore": "explore",
    "read": "read",
    "describe-against": "describe (old)",
    "describe-fit": "describe (axes)",
    "describe": "describe",
    "select": "select",
    "label": "label",
    "store-sort": "store (sort)",
    "store-plan": "store (split)",
    "store-write": "store (write)",
    "store": "store",
}

LOST = {"infrastructure": "lost its worker", "suspect": "ended its worker"}
"""What became of a unit, by the class of the fault."""

STEPS = ("store-sort", "store-plan", "store-write")
"""Stages that are part of the one that follows them: of interest while they run, and not afterwards."""


WIDE = 80
"""Columns of a terminal from which on a bar shows all that is known of its stage."""

UNBOUNDED = 10_000
"""Columns that no table needs."""


def redraws(console: Console) -> bool:
    """Tell whether a console can redraw what it has printed.

    FORCE_COLOR makes rich take a pipe for a terminal, and Jupyter runs ``!commands`` on one without a cursor.
    """
    return console.is_interactive and console.file.isatty() and "JPY_PARENT_PID" not in os.environ


def escape(text: object) -> str:
    """Return text from outside as rich may be given it: no markup, and nothing that a terminal would heed."""
    return escape_markup(printable(text))


class ProgressBars:
    """Subscriber that draws one bar a stage.

    Parameters
    ----------
    console
        Where to draw. Where nothing can be redrawn, only finished stages are printed, a line each. On less than `WIDE`
        columns there is no room for counts, rates and the time that has passed.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.draws = redraws(console)
        wide = console.width >= WIDE
        done = "{task.completed:.0f}/{task.total:.0f} {task.fields[what]}" if wide else "{task.percentage:.0f}%"
        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn(done),
            *([TextColumn("{task.fields[rate]}", justify="right"), TimeElapsedColumn()] if wide else []),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        self._bars = Progress(*columns, console=console, disable=not self.draws)
        self._task: TaskID | None = None
        self._started = 0.0
        self._done = 0

    def __enter__(self) -> ProgressBars:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def __call__(self, event: events.Event) -> None:
        """Draw what an event changes."""
        match event:
            case events.RunStarted():
                self.console.print(f"[bold]daskpipe[/] {event.name} in {escape(event.run_dir)}", highlight=False)
                n = len(event.workers)
                workers = f"{n} worker{'s' * (n != 1)}" if n else "workers come as jobs start"
                where = f", dashboard {event.dashboard}" if event.dashboard else ""
                self.console.print(f"{workers}{where}", highlight=False)
                if event.dashboard and (words := tunnel(event.dashboard)):
                    self.console.print(f"to see it from elsewhere: {words}", highlight=False, soft_wrap=True)
                self.console.print()
            case events.Notice():
                self.console.print(f"[yellow]{escape(event.message)}[/]", highlight=False, soft_wrap=True)
            case events.StageStarted():
                share = event.n_committed / event.n_units if event.n_units else 1.0
                self._started, self._done = time.monotonic(), 0
                self._task = self._bars.add_task(
                    TITLES.get(event.stage, event.stage),
                    total=event.n_inputs,
                    completed=round(event.n_inputs * share),
                    what=event.what,
                    rate="",
                )
            case events.UnitCommitted() if self._task is not None:
                self._done += event.n_inputs
                rate = self._done / max(time.monotonic() - self._started, 1e-3)
                in_words = f"{rate:.3g}/s" if rate < 1000 else f"{rate / 1000:,.0f}k/s"
                self._bars.update(self._task, advance=event.n_inputs, rate=in_words)
            case events.UnitLost():
                self.console.print(f"[yellow]{event.stage} unit {event.index} {LOST[event.kind]}; trying again[/]")
            case events.StageFinished():
                if self._task is not None:
                    self._bars.update(self._task, completed=self._bars.tasks[self._task].total)
                    self._bars.stop_task(self._task)
                if not self.draws and event.stage not in STEPS:
                    rejected = f", {event.n_rejected} rejected" if event.n_rejected else ""
                    self.console.print(
                        f"{TITLES.get(event.stage, event.stage):<16} {event.n_out:>7} out{rejected} "
                        f"in {event.seconds:.1f} s",
                        highlight=False,
                    )


def tunnel(dashboard: str) -> str | None:
    """Return what to type on one's own machine to see a dashboard, which is on loopback; None if it is this one."""
    if "SSH_CONNECTION" not in os.environ and not any(name in os.environ for name in JOB_VARIABLES):
        return None
    port = urlsplit(dashboard).port
    return f"ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}"


class TrainingLines:
    """Subscriber that prints a training on the error stream: its first epochs, and then one every few seconds."""

    SECONDS = 5.0
    """Time between two lines."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._last = 0.0

    def __call__(self, event: events.Event) -> None:
        """Print what an event says, if it is time."""
        from daskpipe.train import EpochFinished, TrainingStarted

        match event:
            case TrainingStarted():
                counts = ", ".join(f"{count:,} {split}" for split, count in event.counts.items())
                line = (
                    f"training on {counts} ({event.device}, at most {event.n_epochs} epochs); MACE's log: {event.log}"
                )
            case EpochFinished() if event.epoch == event.n_epochs - 1 or event.seconds >= self._last + self.SECONDS:
                self._last, line = event.seconds, str(event)
            case _:
                return
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class LogFile:
    """Subscriber that appends a line an event to a file.

    Parameters
    ----------
    path
        The file; it is made when the first event arrives, and `begun` is true from then on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun = False

    def __call__(self, event: events.Event) -> None:
        """Append an event."""
        self.begun = True
        fields = " ".join(f"{key}={value}" for key, value in event.as_json().items() if key != "event")
        self.write(f"{type(event).__name__} {fields}".replace("\n", "\\n"))

    def write(self, text: str) -> None:
        """Append a line with the time in front."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable(text)}\n")


def summary(result: Result, console: Console) -> None:
    """Print counts by stage and system type, rejections by reason, where the dataset is and what to type next."""
    types = sorted({name for row in result.stages.values() for name in row["counts"]})
    rows = [
        [TITLES.get(stage, stage), str(row["inputs"]), str(row["out"])]
        + [str(row["counts"].get(name, "")) for name in types]
        + [str(row["rejected"] or ""), f"{row['seconds']:.1f}"]
        for stage, row in _folded(result.stages).items()
    ]
    console.print()
    console.print(table_that_fits(["stage", "in", "out", *types, "rejected", "seconds"], rows, console))
    if result.quarantined:
        console.print("\n[yellow]Quarantined[/] (stage/reason: structures, with the first of each)")
        rejections = Tree(result.run_dir).quarantined()
        for name, count in result.quarantined.items():
            first = next(item for item in rejections if item.kind == name)
            line = f"  {name}: {count}, e.g. {first.structure}: {first.evidence}"
            console.print(escape(line), highlight=False, soft_wrap=True)
        console.print(f"  all of them, one file each: {escape(shown(result.run_dir))}/quarantine/", highlight=False)
    console.print()
    explored, selected, planned = (result.stages[stage] for stage in ("explore", "select", "store-plan"))
    lines = [
        *seed_lines(result.stages["generate"]["tallies"]), *move_lines(explored["tallies"]),
        *selection_lines(selected["report"]), *split_lines(planned["report"]),
    ]  # fmt: skip
    for line in lines:
        console.print(escape(line), highlight=False, soft_wrap=True)
    console.print(f"\n[bold]Dataset[/] {escape(shown(result.dataset))} after {result.seconds:.0f} s", highlight=False)
    verdict_summary(result.verdict, console)
    console.print("\nNext", style="bold")
    for command in next_commands(result):
        console.print(f"  {escape(command)}", highlight=False, soft_wrap=True)


def table_that_fits(
    columns: Sequence[str], rows: Iterable[Sequence[str]], console: Console, *, left: Sequence[str] = ()
) -> RenderableType:
    """Return a table of plain text; a line a row if the console is too narrow for the table.

    Parameters
    ----------
    columns
        Their headings; the first names the rows.
    rows
        Cells of each row.
    console
        Where it is printed.
    left
        Headings of columns, besides the first, whose cells are aligned to the left.
    """
    rows = list(rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in (columns[0], *left) else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    unbounded = console.options.update(max_width=UNBOUNDED)
    if console.measure(table, options=unbounded).maximum <= console.width:
        return table
    described = (zip(columns[1:], row[1:], strict=True) for row in rows)
    cells = (", ".join(f"{name} {cell}" for name, cell in pairs if cell) for pairs in described)
    return Text("\n".join(f"{row[0]}: {line}" for row, line in zip(rows, cells, strict=True)))


def verdict_summary(verdict: Verdict, console: Console) -> None:
    """Print what the quality gate says: the checks that fail or warn alone, and the verdict."""
    for row in quality.check_lines(check for check in verdict.checks if check.verdict in ("fail", "warn")):
        console.print(escape(row), highlight=False, soft_wrap=True)
    color = "green" if verdict.go else "red"
    console.print(f"[bold]Quality[/] [{color}]{escape(quality.last_line(verdict))}[/]", highlight=False, soft_wrap=True)


def _folded(stages: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the rows of stages, the seconds of `STEPS` added to those of the stage that they are part of."""
    steps = sum(row["seconds"] for stage, row in stages.items() if stage in STEPS)
    shown = {stage: row for stage, row in stages.items() if stage not in STEPS}
    return {stage: row | {"seconds": row["seconds"] + steps * (stage == "store")} for stage, row in shown.items()}


def next_commands(result: Result) -> list[str]:
    """Commands worth typing after a run."""
    run_dir, dataset = shown(result.run_dir), shown(result.dataset)
    program = f"import daskpipe; print(daskpipe.open_dataset({dataset!r}))"
    return [
        f"daskpipe report {quote(run_dir)}",
        f"daskpipe export {quote(dataset)} --to extxyz {quote(f'{run_dir}/dataset.extxyz')}",
        f'python -c "{program}"' if quote(dataset) == dataset else f"python -c {quote(program)}",
    ]


def as_json(result: Result) -> dict[str, Any]:
    """Return a result as JSON types."""
    return {
        "run_dir": str(result.run_dir),
        "dataset": str(result.dataset),
        "stages": result.stages,
        "quarantined": result.quarantined,
        "seconds": round(result.seconds, 2),
        "quality": result.verdict.as_json(),
        "exit_code": result.exit_code,
    }


def standalone_summary(done: Done, console: Console) -> None:
    """Print what was made of the frames of files: counts, what was left out and why, and how well picks cover."""
    rejected = sum(done.rejected.values())
    left_out = f", {rejected} rejected" if rejected else ""
    console.print(f"\n{done.n_frames:,} frames described{left_out} in {done.seconds:.1f} s", highlight=False)
    for reason, count in done.rejected.items():
        console.print(escape(f"  {reason}: {count}, e.g. {done.examples[reason]}"), highlight=False, soft_wrap=True)
    lines = selection_lines(done.report) if "coverage" in done.report else []
    if "n_doubled" in done.report:
        n_conflicts = done.report["n_conflicts"]
        differing = f", {n_conflicts:,} of them with another energy" if n_conflicts else ""
        lines = [f"doubled structures left out: {done.report['n_doubled']:,}{differing}", *split_lines(done.report)]
        lines = [*label_lines(done.report, done.n_frames), *lines]
    for line in lines:
        console.print(escape(line), highlight=False, soft_wrap=True)
    what = "structures" if "n_doubled" in done.report else "frames"
    console.print(f"[bold]Wrote[/] {escape(shown(done.out.absolute()))}: {done.n_out:,} {what}", highlight=False)


def standalone_as_json(done: Done) -> dict[str, Any]:
    """Return what was made of the frames of files as JSON types."""
    return {**asdict(done), "out": str(done.out), "seconds": round(done.seconds, 2), "exit_code": done.exit_code}


def shown(path: Path) -> str:
    """Path relative to the present directory where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
