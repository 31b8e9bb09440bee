"""The command line: each verb is a thin call of a library function.

Heavy imports stand inside the verbs, so that ``daskpipe --help`` answers at once.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from daskpipe.cli import dataset, maintenance, plan, status
from daskpipe.cli.options import (
    AsJson,
    ClusterName,
    Detach,
    Force,
    Frames,
    Overrides,
    RunDir,
    ShardOf,
    Target,
    Verbs,
    bars_on_screen,
    close_standalone,
    cluster_overrides,
    paths_and_overrides,
    print_answer,
    shard_overrides,
)
from daskpipe.core.errors import EXIT_INTERNAL, EXIT_INTERRUPTED, ConfigError, DaskpipeError, Interrupted
from daskpipe.core.shared_disk import disk_error
from daskpipe.core.text import make_printable

if TYPE_CHECKING:
    from types import FrameType

    from rich.console import Console

app = Verbs(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a short config to a labelled dataset for machine-learning interatomic potentials.",
    epilog="Exit codes: 0 complete, 1 internal error, 2 wrong config, 3 input rejected, 4 no cluster, 5 disk, "
    "10 complete with quarantined structures, 75 interrupted (daskpipe resume goes on).",
)
config_app = Verbs(no_args_is_help=True, help="Show the composed config, or the schema of all keys.")
app.add_typer(config_app, name="config")
app.add_typer(dataset.app)
app.add_typer(status.app)
app.add_typer(plan.app)
app.add_typer(maintenance.app)


@app.command()
def run(
    target: Target,
    overrides: Overrides = None,
    cluster: ClusterName = None,
    shard: ShardOf = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where everything goes; by default runs/NAME")] = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Run a config to its dataset; go on if the run directory holds a run of the same config."""
    from daskpipe.config.load import load_config
    from daskpipe.runs import detached as jobs
    from daskpipe.runs import run as runs

    loaded = load_config(target, [*(overrides or []), *cluster_overrides(cluster), *shard_overrides(shard)])
    root = run_dir or Path("runs") / loaded.run_name
    if detach:
        status.print_detached(root, jobs.run(loaded, root), as_json)
        return
    with _watched(root, as_json) as subscribers:
        result = runs.run(loaded, run_dir=root, subscribers=subscribers)
    _close(result, as_json)


@app.command()
def resume(
    run_dir: RunDir,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Of cluster and budget, e.g. budget.hours=8")
    ] = None,
    cluster: ClusterName = None,
    detach: Detach = False,
    detached: Annotated[str | None, typer.Option(hidden=True, help="What the job of --detach types")] = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a run that was stopped; nothing that is committed is computed again."""
    from daskpipe.config import saved
    from daskpipe.config.load import load_cluster
    from daskpipe.runs import detached as jobs
    from daskpipe.runs import run as runs

    settings = None
    if cluster is not None:
        settings = load_cluster(cluster_overrides(cluster))
    if detach:
        status.print_detached(run_dir, jobs.resume(run_dir, overrides or [], cluster=settings), as_json)
        return
    saved.from_yaml(run_dir / "config.yaml")
    with _watched(run_dir, as_json) as subscribers:
        if detached is not None:
            result = jobs.drive(run_dir, detached, subscribers)
        else:
            result = runs.resume(run_dir, overrides or [], cluster=settings, subscribers=subscribers)
    _close(result, as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what works here: GPUs, potentials, schedulers, disk."""
    from daskpipe.runs.doctor import examine

    print_answer(examine(), as_json, _doctor_table)


@app.command()
def select(
    frames: Frames,
    n: Annotated[int, typer.Option("-n", min=1, help="Frames to pick")],
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write, *.extxyz")],
    method: Annotated[str, typer.Option(help="kmeans, direct, fps, environments, random, stride")] = "kmeans",
    against: Annotated[
        Path | None, typer.Option(help="A dataset.zarr, or a file of frames, that the picks shall differ from")
    ] = None,
    cluster: ClusterName = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Pick the frames of your own files that differ most; e.g. select md.extxyz -n 500 -o picked.extxyz."""
    from daskpipe.config.compose import quoted
    from daskpipe.pipeline import frames as standalone

    paths, overrides = paths_and_overrides(frames)
    overrides = [f"select={method}", *overrides, *cluster_overrides(cluster)]
    if method == "environments":
        overrides.insert(0, "describe.level=atom")
    if against is not None:
        overrides.append(f"select.against={quoted(str(against))}")
    with bars_on_screen(as_json) as bars:
        done = standalone.select(paths, n, out, overrides, force=force, subscribers=[bars])
    close_standalone(done, as_json)


@app.command()
def describe(
    frames: Frames,
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write, *.zarr or *.npz")],
    cluster: ClusterName = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Describe the frames of your own files; e.g. describe md.extxyz -o features.zarr describe.level=atom."""
    from daskpipe.pipeline import frames as standalone

    paths, overrides = paths_and_overrides(frames)
    with bars_on_screen(as_json) as bars:
        done = standalone.describe(
            paths, out, [*overrides, *cluster_overrides(cluster)], force=force, subscribers=[bars]
        )
    close_standalone(done, as_json)


@config_app.command("show")
def config_show(target: Target, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print a config as composed and validated, defaults filled in."""
    from daskpipe.config import saved
    from daskpipe.config.load import load_config

    loaded = load_config(target, overrides or [])
    typer.echo(json.dumps(loaded.model_dump(mode="json"), indent=1) if as_json else saved.to_yaml(loaded).rstrip())


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the config, for editors."""
    from daskpipe.config.saved import schema

    typer.echo(json.dumps(schema(), indent=1))


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived. Not an `Exception`: no library on the way may swallow it."""


def main() -> None:
    """Entry point: run a verb; turn errors into one message and an exit code."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    as_json = "--json" in sys.argv
    try:
        # For people typer draws its own box around a wrong option; for machines it is an error as all others.
        sys.exit(app(standalone_mode=not as_json))
    except Stopped:
        _fail("interrupted", EXIT_INTERRUPTED, as_json)
    except DaskpipeError as error:
        _fail(str(error), error.exit_code, as_json)
    except OSError as error:
        if (found := disk_error(error)) is None:
            _fail_internally(error, as_json)
        _fail(str(found), found.exit_code, as_json)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's word for a wrong option
            _fail(error.format_message(), ConfigError.exit_code, as_json)
        _fail_internally(error, as_json)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Stopped


def _fail_internally(error: Exception, as_json: bool) -> NoReturn:
    """Say that it is our fault, and keep the traceback."""
    typer.echo(make_printable("".join(traceback.format_exception(error))), err=True)
    _fail(f"internal error: {type(error).__name__}: {error}", EXIT_INTERNAL, as_json)


def _fail(message: str, code: int, as_json: bool) -> NoReturn:
    if as_json:
        typer.echo(json.dumps({"error": message, "exit_code": code}))
    else:
        from rich.console import Console
        from rich.text import Text

        console = Console(stderr=True)
        said = Text.assemble(("error: ", "" if console.no_color else "bold red"), make_printable(message))
        console.print(said, soft_wrap=True)
    sys.stdout.flush()
    sys.exit(code)


@contextmanager
def _watched(root: Path, as_json: bool) -> Iterator[list[Any]]:
    """Yield subscribers for a run: bars on the screen (unless for machines), lines in the run's log file."""
    from rich.console import Console

    from daskpipe.cli.progress import LogFile, ProgressBars

    log = LogFile(root / "daskpipe.log")
    bars = ProgressBars(Console(stderr=True, quiet=as_json))
    try:
        with bars:
            yield [log, bars]
    except BaseException as error:
        # Before its first event a driver may turn out to be in another one's directory, and must leave it alone.
        if log.begun:
            with suppress(OSError):  # a disk that is full or may not be written; the error itself is printed below
                log.write("".join(traceback.format_exception(error)))
        if isinstance(error, Stopped) and root.joinpath("config.yaml").exists():
            raise Interrupted(f"interrupted; to go on type: daskpipe resume {quote(str(root))}") from error
        raise


def _close(result: Any, as_json: bool) -> None:
    from rich.console import Console

    from daskpipe.cli import progress

    if as_json:
        typer.echo(json.dumps(progress.as_json(result), indent=1))
    else:
        progress.summary(result, Console())
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _doctor_table(content: dict[str, Any], console: Console) -> None:
    from rich.table import Table

    from daskpipe.cli.progress import escape

    for section, rows in content.items():
        table = Table(
            title=section, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
        )
        for name, row in rows.items():
            mark = {True: "[green]ok[/]", False: "[yellow]--[/]"}[row["ok"]]
            table.add_row(mark, name, escape(row["says"]))
        console.print(table)
        console.print()


if __name__ == "__main__":
    main()
