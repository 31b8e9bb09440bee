"""The verbs that run a config to its dataset, and go on with a run."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daskpipe.cli.options import (
    AsJson,
    ClusterName,
    Detach,
    Overrides,
    RunDir,
    ShardOf,
    Stopped,
    Target,
    Verbs,
    make_cluster_overrides,
    make_shard_overrides,
)
from daskpipe.cli.status import print_detached
from daskpipe.core.errors import Interrupted

if TYPE_CHECKING:
    from daskpipe.runs.run import Result

app = Verbs()


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
    import daskpipe
    from daskpipe.config.load import load_config
    from daskpipe.runs.detached import submit_run

    config = load_config(target, [*(overrides or []), *make_cluster_overrides(cluster), *make_shard_overrides(shard)])
    root = run_dir or Path("runs") / config.run_name
    if detach:
        print_detached(root, submit_run(config, root), as_json)
        return
    with _watch_run(root, as_json) as subscribers:
        result = daskpipe.run(config, run_dir=root, subscribers=subscribers)
    _print_result(result, as_json)


@app.command()
def resume(
    run_dir: RunDir,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Of cluster and budget, e.g. budget.hours=8")
    ] = None,
    cluster: ClusterName = None,
    detach: Detach = False,
    token: Annotated[str | None, typer.Option("--detached", hidden=True, help="Names the job of --detach")] = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a run that was stopped; nothing that is committed is computed again."""
    import daskpipe
    from daskpipe.config.load import load_cluster
    from daskpipe.config.saved import from_yaml
    from daskpipe.runs.detached import drive_detached, submit_resume

    settings = load_cluster(make_cluster_overrides(cluster)) if cluster is not None else None
    if detach:
        print_detached(run_dir, submit_resume(run_dir, overrides or [], cluster=settings), as_json)
        return
    from_yaml(run_dir / "config.yaml")  # refuses what is no run directory before a log is begun there
    with _watch_run(run_dir, as_json) as subscribers:
        if token is not None:
            result = drive_detached(run_dir, token, subscribers)
        else:
            result = daskpipe.resume(run_dir, overrides or [], cluster=settings, subscribers=subscribers)
    _print_result(result, as_json)


@contextmanager
def _watch_run(root: Path, as_json: bool) -> Iterator[list[Any]]:
    """Yield subscribers for a run: bars on the screen (unless for machines), and lines in the run's log file.

    Raises
    ------
    Interrupted
        If SIGINT or SIGTERM arrived; names the command that goes on with the run.
    """
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
                log.write_line("".join(traceback.format_exception(error)))
        if isinstance(error, Stopped) and root.joinpath("config.yaml").exists():
            raise Interrupted(f"interrupted; to go on type: daskpipe resume {quote(str(root))}") from error
        raise


def _print_result(result: Result, as_json: bool) -> None:
    """Print what a run made, and end with its exit code."""
    from rich.console import Console

    from daskpipe.cli.progress import dump_result, print_summary

    if as_json:
        typer.echo(json.dumps(dump_result(result), indent=1))
    else:
        print_summary(result, Console())
    if result.exit_code:
        raise typer.Exit(result.exit_code)
