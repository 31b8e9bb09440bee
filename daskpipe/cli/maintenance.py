"""The verbs that check and mend a run directory, and that list and release rejected structures."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daskpipe.cli.options import AsJson, RunDir, Verbs, print_answer, print_lines
from daskpipe.core.errors import EXIT_INTERNAL, ConfigError, describe_unknown

if TYPE_CHECKING:
    from rich.console import Console

app = Verbs()
ACTIONS = ["list", "show", "release"]
"""Actions of the verb ``quarantine``."""

LONGEST = 50
"""Most findings that are printed for people; --json has all."""

ID_LENGTH = 8
"""Characters of an id that are printed for people."""


@app.command()
def fsck(
    run_dir: RunDir,
    rehash: Annotated[bool, typer.Option("--rehash", help="Read every byte, and compare its checksum")] = False,
    mend: Annotated[
        bool, typer.Option("--mend", help="Move what is damaged to RUN/damaged, so that resume makes it again")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare a run directory with what its units committed; exit 1 if something is wrong."""
    from daskpipe.runs.fsck import check_run

    report = check_run(run_dir, rehash=rehash, mend=mend)
    print_answer(report.as_json(), as_json, _show_audit)
    if report.findings:
        raise typer.Exit(EXIT_INTERNAL)


def _show_audit(answer: dict[str, Any], console: Console) -> None:
    """Print repairs, findings, leftovers and what to type."""
    lines = [f"mended: {what}" for what in answer["mended"]]
    lines += [finding["says"] for finding in answer["findings"][:LONGEST]]
    if (more := len(answer["findings"]) - LONGEST) > 0:
        lines.append(f"and {more:,} more; see --json")
    lines += [f"left over: {left['path']} ({left['what']}, {left['bytes']:,} bytes)" for left in answer["leftovers"]]
    lines += [f"moved aside and not made again yet: {unit}" for unit in answer["waiting"]]
    units = sum(row["units"] for row in answer["stages"].values())
    how = "every byte read" if answer["rehashed"] else "sizes and counts; --rehash reads every byte"
    state = "clean" if answer["clean"] else f"{len(answer['findings']):,} things wrong"
    lines.append(f"{answer['run_dir']}: {state}; {units:,} units ({how})")
    lines += [f"type: {command}" for command in answer["next"]]
    print_lines(lines, console)


@app.command()
def quarantine(
    run_dir: RunDir,
    action: Annotated[str, typer.Argument(metavar="list|show|release", help="What to do with them")] = "list",
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids, or how they begin")] = None,
    reason: Annotated[str | None, typer.Option(help="Release all of this reason, e.g. explore/overlap")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Release all")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Release them; without it, count what would be made again")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the structures that a run rejected, show one with its evidence, or release some to be tried again."""
    if action not in ACTIONS:
        raise ConfigError(describe_unknown("action", action, ACTIONS))
    if action != "release" and (reason is not None or all_ or yes):
        raise ConfigError("--reason, --all and --yes belong to release; type: daskpipe quarantine RUN release ...")
    if action == "list":
        _print_all(run_dir, as_json)
    elif action == "show":
        _print_one(run_dir, ids or [], as_json)
    else:
        _release_chosen(run_dir, _choose_ids(run_dir, ids or [], reason, all_), yes, as_json)


def _print_one(run_dir: Path, ids: list[str], as_json: bool) -> None:
    """Print one rejection with its evidence."""
    from daskpipe.runs.quarantine import find_ids, list_rejections

    if len(ids) != 1:
        raise ConfigError(f"show takes one id, received {len(ids)}; see: daskpipe quarantine {quote(str(run_dir))}")
    (name,) = find_ids(run_dir, ids)
    content = {"id": name, **next(rejection for key, rejection in list_rejections(run_dir) if key == name).as_json()}
    print_answer(content, as_json, _show_rejection)


def _release_chosen(run_dir: Path, ids: list[str], yes: bool, as_json: bool) -> None:
    """Release rejections, or count what would be made again; without ``--yes`` exit with 2."""
    from daskpipe.runs.quarantine import release_rejections

    done = release_rejections(run_dir, ids, try_out=not yes)
    answer = {
        "released": done.ids if yes else [],
        "made_again": done.units,
        "next": f"daskpipe resume {quote(str(run_dir))}" if yes else "the same with --yes; nothing was released",
    }
    print_answer(answer, as_json, _show_release)
    if not yes:
        raise typer.Exit(ConfigError.exit_code)


def _choose_ids(run_dir: Path, ids: list[str], reason: str | None, everything: bool) -> list[str]:
    """Return the ids that the options of ``release`` choose."""
    from daskpipe.runs.quarantine import DUPLICATE, list_rejections

    if bool(ids) + (reason is not None) + everything != 1:
        raise ConfigError("give ids, or --reason R, or --all; see: daskpipe quarantine RUN")
    if ids:
        return ids
    kinds = {name: (each.kind, each.reason) for name, each in list_rejections(run_dir) if each.kind != DUPLICATE}
    chosen = [name for name, of in kinds.items() if everything or reason in of]
    if not chosen and reason is not None:
        raise ConfigError(describe_unknown("reason", reason, sorted({kind for kind, _ in kinds.values()})))
    if not chosen:
        raise ConfigError(f"the quarantine of {run_dir} holds nothing that can be tried again")
    return chosen


def _print_all(run_dir: Path, as_json: bool) -> None:
    """Print the rejections of a run: for people their number by reason, each with an example."""
    from daskpipe.runs.quarantine import list_rejections

    rejected = ({"id": name, **rejection.as_json()} for name, rejection in list_rejections(run_dir))
    if as_json:
        typer.echo(json.dumps({"run_dir": str(run_dir), "rejections": list(rejected)}, indent=1))
        return
    counts: dict[str, list[Any]] = {}
    for row in rejected:
        counts.setdefault(f"{row['stage']}/{row['reason']}", [0, row])[0] += 1
    lines = [
        f"{kind}: {count:,}, e.g. {row['id'][:ID_LENGTH]} {row['structure']}: {row['evidence']}"
        for kind, (count, row) in sorted(counts.items())
    ]
    lines = lines or ["nothing was rejected"]
    if counts:
        lines.append(f"one of them: daskpipe quarantine {quote(str(run_dir))} show {row['id'][:ID_LENGTH]}")
    from rich.console import Console

    print_lines(lines, Console())


def _show_rejection(answer: dict[str, Any], console: Console) -> None:
    """Print the fields of a rejection, a line each."""
    names = ("id", "stage", "structure", "reason", "evidence", "attempts")
    lines = [f"{name:<10} {answer[name]}" for name in names]
    if answer["details"]:
        lines.append(json.dumps(answer["details"], indent=1, ensure_ascii=False))
    print_lines(lines, console)


def _show_release(answer: dict[str, Any], console: Console) -> None:
    """Print how many units are made again, and what to type."""
    made_again = ", ".join(f"{n:,} of {stage}" for stage, n in answer["made_again"].items()) or "none"
    lines = [f"units to be made again: {made_again}, and the dataset", f"type: {answer['next']}"]
    if answer["released"]:
        lines.insert(0, f"released {len(answer['released']):,}")
    print_lines(lines, console)
