"""Show the progress of a run: a bar for each stage with rate and time left, a summary at the end, and a log file."""

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

from daskpipe.cluster.queues import find_job_id
from daskpipe.core import events
from daskpipe.core.text import make_printable
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs.outcome_lines import (
    format_evaluators,
    format_labels,
    format_left_out_of_seeds,
    format_moves,
    format_refused,
    format_selection,
    format_splits,
)
from daskpipe.stages.generate.diversity import format_diversity
from daskpipe.stages.generate.stage import count_refused
from daskpipe.store.quality.verdict import format_checks, format_result

if TYPE_CHECKING:
    from daskpipe.pipeline.workspace import FilesResult
    from daskpipe.runs.run import Result
    from daskpipe.store.quality.verdict import Verdict

TITLES = {
    "generate": "generate",
    "explore": "explore",
    "read": "read",
    "describe-against": "describe (old)",
    "describe-fit": "describe (axes)",
    "describe": "describe",
    "select": "select",
    "label": "label",
    "label-check": "label (checks)",
    "label-judge": "label (outliers)",
    "label-atoms": "label (atoms)",
    "write": "write",
    "store-sort": "store (sort)",
    "store-plan": "store (split)",
    "store-write": "store (write)",
    "store": "store",
}

LOST = {"infrastructure": "lost its worker", "suspect": "ended its worker"}
"""What happened to a unit, by the class of the fault."""

STEPS = ("store-sort", "store-plan", "store-write")
"""Stages that are part of the one after them: shown while they run, and not in the summary."""

WIDE = 80
"""Columns of a terminal on which a bar also shows counts, rate and elapsed time."""

UNBOUNDED = 10_000
"""Width in columns that no table exceeds."""


def can_redraw(console: Console) -> bool:
    """Tell whether a console can redraw what it has printed.

    FORCE_COLOR makes rich take a pipe for a terminal, and Jupyter runs ``!commands`` on one without a cursor.
    """
    return console.is_interactive and console.file.isatty() and "JPY_PARENT_PID" not in os.environ


def escape_text(text: object) -> str:
    """Escape text from outside for rich: its markup, and control characters of a terminal."""
    return escape_markup(make_printable(text))


class ProgressBars:
    """Subscriber that draws one bar a stage.

    Parameters
    ----------
    console
        Console to draw on. Where it cannot redraw, finished stages are printed, a line each. With fewer than `WIDE`
        columns there is no room for counts, rates and elapsed time.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.draws = can_redraw(console)
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
        """Draw the change that an event brings."""
        match event:
            case events.RunStarted():
                self.console.print(f"[bold]daskpipe[/] {event.name} in {escape_text(event.run_dir)}", highlight=False)
                n = len(event.workers)
                workers = f"{n} worker{'s' * (n != 1)}" if n else "workers come as jobs start"
                where = f", dashboard {event.dashboard}" if event.dashboard else ""
                self.console.print(f"{workers}{where}", highlight=False)
                if event.dashboard and (words := suggest_tunnel(event.dashboard)):
                    self.console.print(f"to see it from elsewhere: {words}", highlight=False, soft_wrap=True)
                self.console.print()
            case events.Notice():
                self.console.print(f"[yellow]{escape_text(event.message)}[/]", highlight=False, soft_wrap=True)
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


def suggest_tunnel(dashboard: str) -> str | None:
    """Return what to type on one's own machine to see a dashboard, which is on loopback; None if it is this one."""
    if "SSH_CONNECTION" not in os.environ and find_job_id(os.environ) is None:
        return None
    port = urlsplit(dashboard).port
    return f"ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}"


class TrainingLines:
    """Subscriber that prints epochs of a training to the error stream: the first, and then one every few seconds."""

    SECONDS = 5.0
    """Seconds between two lines."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._last = 0.0

    def __call__(self, event: events.Event) -> None:
        """Print an event, if the last line is old enough."""
        from daskpipe.train import EpochFinished, TrainingStarted

        match event:
            case TrainingStarted():
                counts = ", ".join(f"{count:,} {split}" for split, count in event.counts.items())
                line = (
                    f"training on {counts} ({event.device}, at most {event.n_epochs} epochs); MACE's log: {event.log}"
                )
            case EpochFinished() if event.epoch == event.n_epochs - 1 or event.seconds >= self._last + self.SECONDS:
                self._last, line = event.seconds, str(event)
            case events.Notice():
                line = event.message
            case _:
                return
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class LogFile:
    """Subscriber that appends a line an event to a file.

    Parameters
    ----------
    path
        The file; the first event creates it, and sets `begun`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun = False

    def __call__(self, event: events.Event) -> None:
        """Append an event."""
        self.begun = True
        fields = " ".join(f"{key}={value}" for key, value in event.as_json().items() if key != "event")
        self.write_line(f"{type(event).__name__} {fields}".replace("\n", "\\n"))

    def write_line(self, text: str) -> None:
        """Append a line with the time in front."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {make_printable(text)}\n")


def print_summary(result: Result, console: Console) -> None:
    """Print counts by stage and system type, rejections by reason, the path of the dataset, and what to type next."""
    types = sorted({name for row in result.stages.values() for name in row["counts"]})
    rows = [
        [TITLES.get(stage, stage), str(row["inputs"]), str(row["out"])]
        + [str(row["counts"].get(name, "")) for name in types]
        + [str(row["rejected"] or ""), f"{row['seconds']:.1f}"]
        for stage, row in _merge_steps(result.stages).items()
    ]
    console.print()
    console.print(fit_table(["stage", "in", "out", *types, "rejected", "seconds"], rows, console))
    if result.quarantined:
        console.print("\n[yellow]Quarantined[/] (stage/reason: structures, with the first of each)")
        rejections = RunDirectory(result.run_dir).read_quarantine()
        for name, count in result.quarantined.items():
            first = next(item for item in rejections if item.kind == name)
            line = f"  {name}: {count}, e.g. {first.structure}: {first.evidence}"
            console.print(escape_text(line), highlight=False, soft_wrap=True)
        console.print(
            f"  all of them, one file each: {escape_text(shorten_path(result.run_dir))}/quarantine/", highlight=False
        )
    console.print()
    explored, selected, planned = (result.stages[stage] for stage in ("explore", "select", "store-plan"))
    lines = [
        *format_left_out_of_seeds(result.stages["generate"]["tallies"]),
        *format_refused(count_refused(result.stages["generate"]["tallies"])),
        *format_evaluators(explored["tallies"]),
        *format_moves(explored["tallies"]),
        *format_selection(selected["report"]),
        *format_splits(planned["report"]),
    ]
    for line in lines:
        console.print(escape_text(line), highlight=False, soft_wrap=True)
    console.print(
        f"\n[bold]Dataset[/] {escape_text(shorten_path(result.dataset))} after {result.seconds:.0f} s", highlight=False
    )
    print_verdict(result.verdict, console)
    console.print("\nNext", style="bold")
    for command in list_next_commands(result):
        console.print(f"  {escape_text(command)}", highlight=False, soft_wrap=True)


def fit_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], console: Console, *, left: Sequence[str] = ()
) -> RenderableType:
    """Return a table of plain text, or one line for each row if the console is too narrow for the table.

    Parameters
    ----------
    columns
        Headings; the first column names the rows.
    rows
        Cells of each row.
    console
        Console on which it will be printed.
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


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Print the verdict of the quality gate, and the checks that fail or warn."""
    for row in format_checks(check for check in verdict.checks if check.verdict in ("fail", "warn")):
        console.print(escape_text(row), highlight=False, soft_wrap=True)
    color = "green" if verdict.go else "red"
    console.print(
        f"[bold]Quality[/] [{color}]{escape_text(format_result(verdict))}[/]",
        highlight=False,
        soft_wrap=True,
    )


def _merge_steps(stages: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the rows of stages, with the seconds of `STEPS` added to those of the stage that they are part of."""
    steps = sum(row["seconds"] for stage, row in stages.items() if stage in STEPS)
    shown = {stage: row for stage, row in stages.items() if stage not in STEPS}
    return {stage: row | {"seconds": row["seconds"] + steps * (stage == "store")} for stage, row in shown.items()}


def list_next_commands(result: Result) -> list[str]:
    """List commands to type after a run."""
    run_dir, dataset = shorten_path(result.run_dir), shorten_path(result.dataset)
    program = f"import daskpipe; print(daskpipe.open_dataset({dataset!r}))"
    return [
        f"daskpipe report {quote(run_dir)}",
        f"daskpipe export {quote(dataset)} --to extxyz {quote(f'{run_dir}/dataset.extxyz')}",
        f'python -c "{program}"' if quote(dataset) == dataset else f"python -c {quote(program)}",
    ]


def dump_result(result: Result) -> dict[str, Any]:
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


def print_files_summary(done: FilesResult, console: Console) -> None:
    """Print the result of a verb on files: counts, rejections by reason, and diversity, coverage or splits."""
    rejected = sum(done.rejected.values())
    left_out = f", {rejected} rejected" if rejected else ""
    counted = "structures generated" if "diversity" in done.report else "frames described"
    if "teacher" in done.report:
        counted = f"frames read, {done.n_out:,} labelled with {done.report['teacher']}"
    console.print(f"\n{done.n_frames:,} {counted}{left_out} in {done.seconds:.1f} s", highlight=False)
    for reason, count in done.rejected.items():
        console.print(
            escape_text(f"  {reason}: {count}, e.g. {done.examples[reason]}"), highlight=False, soft_wrap=True
        )
    lines = format_selection(done.report) if "coverage" in done.report else []
    if "n_doubled" in done.report:
        n_conflicts = done.report["n_conflicts"]
        differing = f", {n_conflicts:,} of them with another energy" if n_conflicts else ""
        lines = [f"doubled structures left out: {done.report['n_doubled']:,}{differing}", *format_splits(done.report)]
        lines = [*format_labels(done.report, done.n_frames), *lines]
    if "diversity" in done.report:
        lines = [*format_refused(done.report["refused"]), *format_diversity(done.report["diversity"])]
    if "differences" in done.report:
        lines = format_differences(done.report["differences"])
    for line in lines:
        console.print(escape_text(line), highlight=False, soft_wrap=True)
    what = "structures" if {"n_doubled", "diversity"} & set(done.report) else "frames"
    console.print(
        f"[bold]Wrote[/] {escape_text(shorten_path(done.out.absolute()))}: {done.n_out:,} {what}", highlight=False
    )


def format_differences(outcomes: dict[str, int]) -> list[str]:
    """Return a line on how many labels agree with differences of energies; none if none was checked.

    Examples
    --------
    >>> format_differences({"ok": 4, "forces": 1})
    ['forces and stresses agree with the energies in 4 of 5 structures that were checked (forces wrong: 1)']
    """
    total = sum(outcomes.values())
    if not total:
        return []
    words = {"forces": "forces wrong", "stress": "stress wrong", "forces_and_stress": "both wrong"}
    wrong = ", ".join(f"{words.get(name, name)}: {n}" for name, n in sorted(outcomes.items()) if name != "ok")
    n_good = outcomes.get("ok", 0)
    line = f"forces and stresses agree with the energies in {n_good} of {total} structures that were checked"
    return [f"{line} ({wrong})" if wrong else line]


def dump_files_result(done: FilesResult) -> dict[str, Any]:
    """Return the result of a verb on files as JSON types."""
    return {**asdict(done), "out": str(done.out), "seconds": round(done.seconds, 2), "exit_code": done.exit_code}


def shorten_path(path: Path) -> str:
    """Return a path relative to the present directory, if it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
