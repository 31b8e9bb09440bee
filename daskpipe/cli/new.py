"""The verb ``new``: write a config for a formula, a SMILES or files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from daskpipe.cli.options import AsJson, Force, Verbs

app = Verbs()


@app.command()
def new(
    systems: Annotated[list[str], typer.Argument(help="Formulas (MgO), molecules (H2O), SMILES (CCO), files (my.cif)")],
    kinds: Annotated[
        str | None,
        typer.Option(
            help="bulk, alloys, defects, surfaces, clusters, amorphous, 2d, adsorbates, molecules, dimers, liquid, "
            "reference; with commas. By default what is usual for the systems"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write, *.yaml")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented config for what you want to study; e.g. new MgO, new CuZn --kinds bulk,surfaces, new CCO."""
    from daskpipe.config.proposal import propose_config

    names = None if kinds is None else [name.strip() for name in kinds.split(",") if name.strip()]
    proposal = propose_config(systems, out, kinds=names, force=force)
    if as_json:
        typer.echo(json.dumps({"file": str(proposal.path), "says": list(proposal.lines)}))
        return
    for line in proposal.lines:
        typer.echo(line)
    typer.echo(f"wrote {proposal.path}")
    typer.echo(f"daskpipe plan {proposal.path} --probe  # what it costs")
    typer.echo(f"daskpipe run {proposal.path}")
