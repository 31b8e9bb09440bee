"""The verbs ``config show`` and ``config schema``."""

from __future__ import annotations

import json

import typer

from daskpipe.cli.options import AsJson, Overrides, Target, Verbs

app = Verbs(no_args_is_help=True, help="Show the composed config, or the schema of all keys.")


@app.command()
def show(target: Target, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print a config as composed and validated, defaults filled in."""
    from daskpipe.config.load import load_config
    from daskpipe.config.saved import to_yaml

    loaded = load_config(target, overrides or [])
    typer.echo(json.dumps(loaded.model_dump(mode="json"), indent=1) if as_json else to_yaml(loaded).rstrip())


@app.command()
def schema() -> None:
    """Print the JSON schema of the config, for editors."""
    from daskpipe.config.saved import build_schema

    typer.echo(json.dumps(build_schema(), indent=1))
