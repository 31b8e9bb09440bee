"""The verb ``plan``: count what a config would do, and what it would cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daskpipe.cli.options import (
    AsJson,
    ClusterName,
    Overrides,
    ShardOf,
    Target,
    Verbs,
    make_cluster_overrides,
    make_shard_overrides,
    print_answer,
    show_bars,
)

if TYPE_CHECKING:
    from rich.console import Console

app = Verbs()


@app.command()
def plan(
    target: Target,
    overrides: Overrides = None,
    probe: Annotated[bool, typer.Option("--probe", help="Run about 1 % on the cluster to estimate hours")] = False,
    show_script: Annotated[bool, typer.Option("--show-script", help="Show the job scripts of the cluster")] = False,
    cluster: ClusterName = None,
    shard: ShardOf = None,
    run_dir: Annotated[Path | None, typer.Option(help="The run directory to be; a probe works beside it")] = None,
    as_json: AsJson = False,
) -> None:
    """Count what a config would do before anything runs: units, bytes, files; with --probe also hours."""
    from daskpipe.config.load import load_config
    from daskpipe.runs.plan import plan_run

    loaded = load_config(target, [*(overrides or []), *make_cluster_overrides(cluster), *make_shard_overrides(shard)])
    scripts = {}
    if show_script:
        from daskpipe.cluster.job_script import render_scripts
        from daskpipe.core.errors import ConfigError

        if loaded.cluster.name == "local" or loaded.cluster.address:
            raise ConfigError("there are no job scripts without a job queue; type e.g. --cluster slurm --show-script")
        scripts = render_scripts(loaded.cluster)
    measured = None
    if probe:
        from daskpipe.runs.probe import probe_run

        with show_bars(as_json) as bars:
            measured = probe_run(loaded, run_dir, subscribers=[bars])
    answer = plan_run(loaded, measured)
    print_answer({**answer, "scripts": scripts} if show_script else answer, as_json, _show_plan)


def _show_plan(content: dict[str, Any], console: Console) -> None:
    """Print a plan: a table of the stages, and lines on totals, pools, hours, dynamics, doubts and budget."""
    from daskpipe.cli.progress import escape_text, fit_table
    from daskpipe.runs.budget import format_bytes

    probe = content["probe"]
    columns = ["stage", "pool", "inputs", "outputs (at most)", "units", "bytes", "inodes"]
    rows = []
    for stage, row in content["stages"].items():
        size = "?" if row["bytes"] is None else format_bytes(row["bytes"])
        numbers = [f"{row[name]:,}" for name in ("inputs", "outputs", "units")]
        times = [f"{row['seconds_a_unit']:.3g}", f"{row['hours']:.3g}"] if probe else []
        rows.append([stage, row["pool"], *numbers, size, f"{row['inodes']:,}", *times])
    columns += ["s a unit", "hours"] if probe else []
    console.print(fit_table(columns, rows, console, left=["pool"]))
    totals = content["totals"]
    size = "unknown" if totals["bytes"] is None else format_bytes(totals["bytes"])
    lines = [
        f"{totals['units']:,} units, each one Dask task; {size} in {totals['inodes']:,} files and folders; "
        f"{content['md_steps']:,} MD steps of single structures"
        + (f", at most {content['relaxation_steps']:,} of relaxation" if content["relaxation_steps"] else ""),
        *(_format_pool(name, pool) for name, pool in content["pools"].items()),
        "hours unknown: type --probe" if probe is None else _format_probe(content),
        *_format_dynamics(content["dynamics"]),
        *(f"{stage}: {text}" for stage, text in content["evaluators"].items()),
        *content["doubts"],
    ]
    if content["budget"]:
        lines.append(f"budget: {content['budget']['says']}")
    for name, script in content.get("scripts", {}).items():
        lines += ["", f"# --- job script of {name} ---", script.rstrip()]
    for line in lines:
        console.print(escape_text(line), highlight=False, soft_wrap=True)


def _format_pool(name: str, pool: dict[str, Any]) -> str:
    """Format the workers, hours and stages of a pool."""
    workers = "workers not known" if pool["workers"] is None else f"{pool['workers']} workers"
    hours = "" if pool["hours"] is None else f", {pool['hours']:.3g} h of work, {pool['wall_hours']:.3g} h on the clock"
    return f"pool {name} ({workers}{hours}): {', '.join(pool['stages'])}"


def _format_dynamics(dynamics: dict[str, Any]) -> list[str]:
    """Format the ensembles and time steps of sampled seeds, and the warning."""
    if not dynamics["n_sampled"]:
        return []
    ensembles = ", ".join(f"{n} in {name}" for name, n in dynamics["ensembles"].items())
    steps = ", ".join(f"{n} with {step} fs" for step, n in dynamics["timesteps"].items())
    lines = [f"dynamics of {dynamics['n_sampled']} sampled seeds: {ensembles}; time steps: {steps}"]
    return lines + ([f"warning: {dynamics['warning']}"] if dynamics["warning"] else [])


def _format_probe(content: dict[str, Any]) -> str:
    """Format the wall time of a run, and how far it is extrapolated."""
    probe = content["probe"]
    explore = probe["stages"]["explore"]
    spread = "" if explore["spread"] is None else f"; its units differ by {explore['spread']:.0%}"
    seconds = content["seconds"]
    clock = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.2f} h"
    return (
        f"on these workers the run takes {clock}, {content['totals']['hours']:.3g} h of work; probed in "
        f"{probe['seconds']:.0f} s, exploration extrapolated by {explore['extrapolated_by']:.3g}{spread}"
    )
