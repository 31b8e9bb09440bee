"""Options of the command line, each defined once, and functions that print answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from daskpipe.core.errors import ConfigError
from daskpipe.core.text import make_printable

if TYPE_CHECKING:
    from rich.console import Console

Target = Annotated[str, typer.Argument(metavar="PRESET|FILE.yaml", help="A preset, e.g. quickstart, or your own file")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="e.g. select.n=128 generate=files cluster.workers=2"),
]
ClusterName = Annotated[
    str | None, typer.Option("--cluster", metavar="NAME|ADDRESS", help="local, a site or its file, or tls://host:port")
]
ShardOf = Annotated[
    str | None, typer.Option("--shard", metavar="I/N", help="Part of a campaign over several schedulers, e.g. 2/8")
]
Detach = Annotated[bool, typer.Option("--detach", help="Drive the run from a job of its own; needs --cluster SITE")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory")]
DatasetPath = Annotated[Path, typer.Argument(metavar="DATASET", help="A dataset.zarr, or a run directory")]
Frames = Annotated[
    list[str], typer.Argument(metavar="FRAMES|KEY=VALUE", help="Files, folders, globs; overrides after them")
]
NewDataset = Annotated[Path, typer.Option("-o", "--out", help="Dataset to make, *.zarr")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite OUT")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text")]


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived. Not an `Exception`, so that no library on the way catches it."""


class _NoTypeOfFlags:
    """Mixin of typer's commands that shows no type beside flags, which take no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all parameters of the command, ``--help`` among them."""
        params = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False) and param.metavar is None:
                param.metavar = ""
        return params


class Command(_NoTypeOfFlags, TyperCommand):
    """A verb of the command line."""


class Group(_NoTypeOfFlags, TyperGroup):
    """A group of verbs."""


class Verbs(typer.Typer):
    """App of verbs, each of them a `Command`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=Group, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Return the decorator that makes a function a verb."""
        return super().command(name, cls=Command, **options)


Table = Callable[[dict[str, Any], "Console"], None]
"""Function that prints an answer for people."""


def make_cluster_overrides(cluster: str | None) -> list[str]:
    """Return ``--cluster`` as overrides of the config."""
    if cluster is None:
        return []
    if "://" in cluster:
        return [f"cluster.address={cluster}"]
    from daskpipe.config.overrides import quote_value
    from daskpipe.core.files import package_folder

    if cluster in (file.stem for file in (package_folder("configs") / "cluster").glob("*.yaml")):
        named = f"cluster={cluster}"
    else:  # a site of the user's own
        named = f"cluster.name={quote_value(cluster)}"
    return [named, "cluster.address=null", "cluster.tls=null"]  # replaces a scheduler that the config joins


def make_shard_overrides(shard: str | None) -> list[str]:
    """Return ``--shard`` as overrides of the config."""
    return [] if shard is None else [f"shard='{shard}'"]


@contextmanager
def show_bars(as_json: bool) -> Iterator[Any]:
    """Yield a subscriber that draws bars on the screen, unless for machines."""
    from rich.console import Console

    from daskpipe.cli.progress import ProgressBars

    with ProgressBars(Console(stderr=True, quiet=as_json)) as bars:
        yield bars


def separate_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Separate the words of a verb into paths and overrides.

    Raises
    ------
    ConfigError
        If no word is a path.
    """
    from daskpipe.config.overrides import separate_paths

    paths, overrides = separate_paths(words)
    if not paths:
        raise ConfigError("no frames: give a file, a folder or a glob, e.g. md.extxyz")
    return paths, overrides


def close_files_verb(done: Any, as_json: bool) -> None:
    """Print the result of a verb on files, and end with its exit code."""
    from rich.console import Console

    from daskpipe.cli import progress

    if as_json:
        typer.echo(json.dumps(progress.dump_files_result(done), indent=1))
    else:
        progress.print_files_summary(done, Console())
    if done.exit_code:
        raise typer.Exit(done.exit_code)


def print_answer(content: dict[str, Any], as_json: bool, table: Table) -> None:
    """Print an answer, as JSON for machines."""
    from rich.console import Console

    if as_json:
        typer.echo(json.dumps(content, indent=1))
    else:
        table(content, Console())


def print_lines(lines: Iterable[str], console: Console) -> None:
    """Print lines without markup and without line breaks; control characters are spelled out."""
    for line in lines:
        console.print(make_printable(line), markup=False, highlight=False, soft_wrap=True)
