"""Bars and tables on terminals of several widths, in pipes, and with the variables that people set for colours."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from io import StringIO

import pytest
from rich.console import Console

from daskpipe.cli.progress import fit_table

WIDTHS = [40, 80, 120]

DRAW = """
import time
from rich.console import Console
from daskpipe.core.events import RunStarted, StageFinished, StageStarted, UnitCommitted
from daskpipe.cli.progress import ProgressBars

with ProgressBars(Console(stderr=True)) as bars:
    bars(RunStarted(run_dir="runs/x", name="x", dashboard=None, workers=["a", "b"]))
    for stage, n in (("describe-fit", 1000), ("explore", 123456)):
        bars(StageStarted(stage=stage, n_units=4, n_committed=0, n_inputs=n, what="trajectories"))
        for index in range(3):
            time.sleep(0.3)
            bars(UnitCommitted(
                stage=stage, index=index, key="0", n_inputs=n // 4, n_out=1, n_rejected=0, counts={}, n_bytes=1,
                seconds=1.0, worker="w",
            ))
    time.sleep(0.5)
    bars(StageFinished(stage=stage, seconds=1.0, n_out=n, n_rejected=2))
"""

CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def environment(**variables: str) -> dict[str, str]:
    """That of the tests, without what says how terminals look."""
    left_out = ("JPY_PARENT_PID", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    return {**{name: value for name, value in os.environ.items() if name not in left_out}, **variables}


def on_terminal(words: list[str], width: int) -> list[str]:
    """What a command writes on a terminal of so many columns: each line as often as it is drawn, without colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(TERM="xterm"))
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 4096)
        except OSError:  # the other end was closed
            break
    os.close(ours)
    assert process.wait(60) == 0
    return CONTROL.sub("", seen.decode()).replace("\r", "\n").splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_bars_fit_and_times_are_whole(width: int) -> None:
    lines = on_terminal([sys.executable, "-c", DRAW], width)
    assert max(map(len, lines)) <= width
    drawn = [line for line in lines if line.startswith(("describe (axes)", "explore"))]
    assert not any("…" in line for line in drawn)
    time = r"\d:\d\d:\d\d"
    last = next(line for line in reversed(drawn) if line.startswith("explore"))
    done = rf"123456/123456 trajectories +\d+k?/s {time}" if width >= 80 else "100%"
    assert re.fullmatch(rf"explore +[━╸╺]{{4,}} +{done} left {time} *", last), last
    half_way = "92592/123456 " if width >= 80 else " 75% "
    assert any(re.search(rf"{half_way}.*left {time}", line) for line in drawn)


@pytest.mark.parametrize("colours", [{}, {"FORCE_COLOR": "1"}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}])
def test_a_pipe_gets_a_line_a_stage(colours: dict[str, str]) -> None:
    """As a notebook's shell commands do, which are run with FORCE_COLOR."""
    done = subprocess.run([sys.executable, "-c", DRAW], stderr=subprocess.PIPE, text=True, env=environment(**colours))
    assert done.returncode == 0
    assert "\r" not in done.stderr
    assert COLOUR.sub("", done.stderr).splitlines() == [
        "daskpipe x in runs/x",
        "2 workers",
        "",
        "explore           123456 out, 2 rejected in 1.0 s",
    ]
    assert ("\x1b[" in done.stderr) == bool(colours)


@pytest.mark.parametrize(
    "variables", [{}, {"FORCE_COLOR": "1"}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}]
)
def test_errors_are_red_where_colours_are_wanted(variables: dict[str, str]) -> None:
    words = [sys.executable, "-m", "daskpipe", "run", "no.yaml"]
    said = subprocess.run(words, stderr=subprocess.PIPE, text=True, env=environment(**variables)).stderr
    assert COLOUR.sub("", said).startswith("error: config file no.yaml does not exist")
    assert ("\x1b[" in said) == (variables == {"FORCE_COLOR": "1"})


@pytest.mark.parametrize(("colour", "escaped"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_errors_on_a_terminal(colour: dict[str, str], escaped: bool) -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "daskpipe", "run", "no.yaml"]
    subprocess.run(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(TERM="xterm", **colour))
    os.close(theirs)
    said = os.read(ours, 4096)
    os.close(ours)
    assert said.replace(b"\x1b[1;31m", b"").replace(b"\x1b[0m", b"").startswith(b"error: config file no.yaml")
    assert (b"\x1b" in said) == escaped


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_that_do_not_fit_become_lines(width: int) -> None:
    console = Console(file=StringIO(), width=width)
    columns = ["stage", "units", "planned", "out", "rejected", "lost", "suspect", "yielded"]
    rows = [["describe-fit", "12", "12", "3", "", "", "", ""], ["label [b]x[/]", "1", "2", "0", "3", "4", "", "5"]]
    table = fit_table(columns, rows, console)
    console.print(table, soft_wrap=True)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    if width < 80:
        assert lines == [
            "describe-fit: units 12, planned 12, out 3",
            "label [b]x[/]: units 1, planned 2, out 0, rejected 3, lost 4, yielded 5",
        ]
    else:
        assert [line.split() for line in lines] == [
            columns,
            ["describe-fit", "12", "12", "3"],
            [*["label", "[b]x[/]", "1", "2", "0", "3", "4", "5"]],
        ]
