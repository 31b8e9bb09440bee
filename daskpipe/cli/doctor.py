"""The verb ``doctor``: try what a run may need on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daskpipe.cli.options import AsJson, Verbs, print_answer

if TYPE_CHECKING:
    from rich.console import Console

app = Verbs()


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what works here: GPUs, potentials, schedulers, disk."""
    from daskpipe.runs.doctor import examine_machine

    print_answer(examine_machine(), as_json, _show_examination)


def _show_examination(content: dict[str, Any], console: Console) -> None:
    from rich.table import Table

    from daskpipe.cli.progress import escape_text

    for section, rows in content.items():
        table = Table(
            title=section, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
        )
        for name, row in rows.items():
            mark = {True: "[green]ok[/]", False: "[yellow]--[/]"}[row["ok"]]
            table.add_row(mark, name, escape_text(row["says"]))
        console.print(table)
        console.print()
