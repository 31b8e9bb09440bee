"""The verbs ``env create``, ``env list`` and ``env remove``: environments of teachers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from daskpipe.cli.options import AsJson, Verbs, print_answer, print_lines

if TYPE_CHECKING:
    from rich.console import Console

app = Verbs(no_args_is_help=True, help="Environments of teachers that cannot be installed beside daskpipe.")

Teacher = Annotated[str, typer.Argument(metavar="NAME|FILE.py", help="A teacher, e.g. sevennet, or your own file")]


@app.command()
def create(
    teacher: Teacher,
    python: Annotated[str | None, typer.Option(help="Interpreter; by default the one that runs daskpipe")] = None,
    share: Annotated[bool, typer.Option("--share", help="Use packages of this environment where they fit")] = False,
    as_json: AsJson = False,
) -> None:
    """Create the environment of a teacher in the cache folder; e.g. env create sevennet."""
    import sys

    from daskpipe.potentials.isolated import environments

    found = environments.create_environment(
        environments.read_teacher(teacher),
        python=python or sys.executable,
        share=share,
        say=(lambda _: None) if as_json else (lambda line: typer.echo(line, err=True)),
    )
    print_answer(environments.describe_environment(found), as_json, _print_one)


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List the environments of teachers, and the teachers that have none yet."""
    from daskpipe.potentials.isolated import environments

    found = [environments.describe_environment(each) for each in environments.list_environments()]
    names = {each["name"] for each in found}
    missing = [name for name in environments.known_teachers() if name not in names]
    print_answer({"environments": found, "not_created": missing}, as_json, _print_all)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the teacher")], as_json: AsJson = False
) -> None:
    """Remove the environment of a teacher."""
    from daskpipe.potentials.isolated import environments

    folder = environments.remove_environment(name)
    line = f"removed {folder}"
    print_answer({"removed": str(folder)}, as_json, lambda content, console: print_lines([line], console))


def _print_one(content: dict[str, Any], console: Console) -> None:
    print_lines(
        [
            f"{content['name']}: Python {content['python']}, {content['bytes'] / 1e6:,.0f} MB, {content['folder']}",
            f"  {', '.join(content['requirements'])}",
        ],
        console,
    )


def _print_all(content: dict[str, Any], console: Console) -> None:
    for each in content["environments"]:
        _print_one(each, console)
    if missing := content["not_created"]:
        print_lines([f"without an environment: {', '.join(missing)}; type: daskpipe env create NAME"], console)
