"""The verbs that show the progress of a run and stop it, on any machine that shares its directory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daskpipe.cli.options import AsJson, RunDir, Verbs, print_answer, print_lines
from daskpipe.core.text import make_printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from daskpipe.runs.detached import DriverRecord
    from daskpipe.runs.status import RunWatcher

WATCH_SECONDS = 2.0
"""Seconds between two readings of the progress."""

app = Verbs()


@app.command()
def status(
    run_dir: RunDir,
    watch: Annotated[bool, typer.Option("--watch", help="Read again every two seconds until the run ends")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the progress of a run, from its directory alone, on any machine that shares it."""
    from daskpipe.runs.status import RunWatcher

    watched = RunWatcher(run_dir)
    if not watch:
        print_answer(watched.read_status(), as_json, _show_status)
    elif as_json:
        _watch_lines(watched, json.dumps)
    else:
        _watch_screen(watched)


@app.command()
def cancel(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Stop a run, wherever its driver and its jobs are; daskpipe resume goes on."""
    from daskpipe.runs.cancel import cancel_run

    print_answer(cancel_run(run_dir), as_json, _show_cancellation)


def print_detached(run_dir: Path, record: DriverRecord, as_json: bool) -> None:
    """Print which job will drive a run, and how to watch and stop it."""
    answer = {"run_dir": str(run_dir), "job_id": record.job_id, "log": record.log}
    print_answer(answer, as_json, _show_submission)


def _show_submission(answer: dict[str, Any], console: Console) -> None:
    run = quote(answer["run_dir"])
    lines = (
        f"job {answer['job_id']} will drive {answer['run_dir']}; its log: {answer['log']}",
        f"to watch it: daskpipe status {run} --watch",
        f"to stop it: daskpipe cancel {run}",
    )
    print_lines(lines, console)


def _show_cancellation(answer: dict[str, Any], console: Console) -> None:
    lines = []
    if answer["driver"]:
        lines.append(f"stopped the driver: {answer['driver']}")
    if answer["jobs"]:
        lines.append(f"cancelled jobs: {', '.join(answer['jobs'])}")
    lines = [*lines, f"to go on: daskpipe resume {quote(answer['run_dir'])}"] if lines else ["nothing runs"]
    print_lines([*lines, *answer["notes"]], console)


def _watch_screen(watched: RunWatcher) -> None:
    """Redraw the progress in place on a terminal, append lines elsewhere, until the run ends."""
    from rich.console import Console, Group
    from rich.live import Live

    from daskpipe.cli.progress import can_redraw

    console = Console()
    if not can_redraw(console):
        _show_status(_watch_lines(watched, format_line), console)
        return
    with Live(console=console, auto_refresh=False) as live:
        for state in _iterate_states(watched):
            live.update(Group(*list_parts(state, console)), refresh=True)


def _watch_lines(watched: RunWatcher, said: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """Print a line for each change; return the last state."""
    before: str | None = None
    state: dict[str, Any] = {}
    for state in _iterate_states(watched):
        if (now := said(state)) != before:
            typer.echo(now)
        before = now
    return state


def _iterate_states(watched: RunWatcher) -> Iterator[dict[str, Any]]:
    """Yield the state of a run every two seconds until it ends."""
    from daskpipe.runs.status import UNDER_WAY

    while True:
        state = watched.read_status()
        yield state
        if state["state"] not in UNDER_WAY:
            return
        time.sleep(WATCH_SECONDS)


def format_line(state: dict[str, Any]) -> str:
    """Format a state on one line."""
    if state["stage"] is None:
        return f"{state['state']}{_format_place(state)}"
    row = state["stages"][state["stage"]]
    gone = "".join(f", {row[kind]} {kind}" for kind in ("lost", "suspect") if row[kind])
    return f"{state['stage']} {row['committed']}/{row['planned']}{gone}{_format_pace(state)}"


def _format_place(state: dict[str, Any]) -> str:
    if driver := state["driver"]:
        job = f", job {driver['job_id']}" if driver["job_id"] else ""
        return f" on {driver['host']}, process {driver['pid']}{job}, since {driver['since']}"
    if queued := state["queued"]:
        return f" as job {queued['job_id']} since {queued['since']}"
    return ""


def _format_pace(state: dict[str, Any]) -> str:
    if state["rate"] is None:
        return ""
    return f", {state['rate']:.3g} units/s, some {time.strftime('%H:%M:%S', time.gmtime(state['seconds_left']))} left"


def _show_status(state: dict[str, Any], console: Console) -> None:
    for part in list_parts(state, console):
        console.print(part, soft_wrap=True)


def list_parts(state: dict[str, Any], console: Console) -> list[RenderableType]:
    """Return the state of a run for the screen: a line, a table if there is room for it, and more lines."""
    from rich.text import Text

    from daskpipe.cli.progress import fit_table

    head = Text.assemble(
        (make_printable(state["run_dir"]), "bold"), f" is {state['state']}{make_printable(_format_place(state))}"
    )
    head.append(f"; drivers started: {state['driver_starts']}")
    usual, faults = ("committed", "planned", "out"), ("rejected", "lost", "suspect", "yielded")
    cells = [
        [stage, *(str(row[name]) for name in usual), *(str(row[name] or "") for name in faults)]
        for stage, row in state["stages"].items()
    ]
    rows = fit_table(["stage", "units", *usual[1:], *faults], cells, console)
    below = [format_line(state)] if state["stage"] is not None else []
    below += [state["notice"]] if state["notice"] else []
    below += [f"quarantined {reason}: {count}" for reason, count in state["quarantined"].items()]
    if state["log"] and state["state"] != "complete":
        below.append(f"log of the driver: {state['log']}")
    if state["dataset"]:
        below.append(f"dataset {state['dataset']}")
    if state["state"] == "stopped":
        below.append(f"to go on: daskpipe resume {quote(state['run_dir'])}")
    return [head, rows, *(Text(make_printable(text)) for text in below)]
