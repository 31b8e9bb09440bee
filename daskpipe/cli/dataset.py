"""The verbs that take a dataset, or make one from existing data."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daskpipe.cli.options import (
    AsJson,
    ClusterName,
    DatasetPath,
    Force,
    Frames,
    NewDataset,
    Verbs,
    close_files_verb,
    make_cluster_overrides,
    print_answer,
    print_lines,
    separate_overrides,
    show_bars,
)
from daskpipe.core.errors import EXIT_INTERNAL

if TYPE_CHECKING:
    from rich.console import Console

app = Verbs()


@app.command()
def merge(
    datasets: Annotated[
        list[str], typer.Argument(metavar="DATASET|KEY=VALUE", help="Datasets or runs; overrides after them")
    ],
    out: NewDataset,
    cluster: ClusterName = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Merge datasets into one: each structure once, all described and split anew."""
    import daskpipe

    paths, overrides = separate_overrides(datasets)
    with show_bars(as_json) as bars:
        done = daskpipe.merge(
            paths, out, [*overrides, *make_cluster_overrides(cluster)], force=force, subscribers=[bars]
        )
    close_files_verb(done, as_json)


@app.command("import")
def import_(
    frames: Frames,
    out: NewDataset,
    method: Annotated[str, typer.Option(help="One word for how the labels were made, e.g. PBE-D3")],
    energy: Annotated[
        str | None, typer.Option(metavar="KEY", help="Key of the energy; the rest has its prefix")
    ] = None,
    forces: Annotated[
        str | None, typer.Option(metavar="KEY", help="Key of the forces; none for energies alone")
    ] = None,
    stress: Annotated[str | None, typer.Option(metavar="KEY", help="Key of the stress; none to leave it out")] = None,
    virial: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Key of the virial, minus stress times volume; none to leave it out"),
    ] = None,
    energy_unit: Annotated[
        str | None, typer.Option(metavar="UNIT", help="e.g. hartree; by default as declared, or eV")
    ] = None,
    forces_unit: Annotated[str | None, typer.Option(metavar="UNIT", help="e.g. hartree/bohr; else eV/Å")] = None,
    stress_unit: Annotated[str | None, typer.Option(metavar="UNIT", help="e.g. GPa; else eV/Å^3")] = None,
    virial_unit: Annotated[str | None, typer.Option(metavar="UNIT", help="e.g. hartree; else eV")] = None,
    cluster: ClusterName = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make a dataset of labelled frames: extxyz, .traj, .db, .aselmdb, OUTCAR, vasprun.xml; split without leakage."""
    import daskpipe
    from daskpipe.stages.generate.reading.labels import LabelKeys

    paths, overrides = separate_overrides(frames)
    with show_bars(as_json) as bars:
        done = daskpipe.import_labelled(
            paths,
            out,
            [*overrides, *make_cluster_overrides(cluster)],
            method=method,
            keys=LabelKeys(
                energy=energy,
                forces=forces,
                stress=stress,
                virial=virial,
                energy_unit=energy_unit,
                forces_unit=forces_unit,
                stress_unit=stress_unit,
                virial_unit=virial_unit,
            ),
            force=force,
            subscribers=[bars],
        )
    close_files_verb(done, as_json)


@app.command()
def verify(dataset: DatasetPath, as_json: AsJson = False) -> None:
    """Compare each file of a dataset with its checksum; exit 1 if one differs."""
    from daskpipe import store
    from daskpipe.store.reader import dataset_of

    path = dataset_of(dataset)
    problems = store.verify(path)
    print_answer({"dataset": str(path), "problems": problems}, as_json, _show_verification)
    if problems:
        raise typer.Exit(EXIT_INTERNAL)


@app.command()
def export(
    dataset: DatasetPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File or folder to write")],
    to: Annotated[
        str,
        typer.Option("--to", help="extxyz, ase-db, mace-hdf5, aselmdb, hdf5, parquet, csv, or cold (Zarr, compressed)"),
    ] = "extxyz",
    split: Annotated[str | None, typer.Option(help="Only train, val or test")] = None,
    cluster: ClusterName = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a dataset in another format, and read all of it back."""
    from daskpipe.pipeline.datasets import export_on_cluster

    done = export_on_cluster(dataset, to, out, split=split, force=force, overrides=make_cluster_overrides(cluster))
    print_answer(done, as_json, _show_export)


def _show_export(answer: dict[str, Any], console: Console) -> None:
    """Print what was written, and how it was read back."""
    line = f"{answer['structures']:,} structures in {answer['out']}, read back with {answer['reader']}"
    print_lines([line], console)


@app.command()
def quality(
    dataset: DatasetPath,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="quality.KEY=VALUE", help="e.g. quality.forces=15, quality.profile=reference"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a dataset by thresholds: GO (exit 0) or NO-GO (exit 1), with reasons."""
    from daskpipe.config.load import load_quality
    from daskpipe.store.quality.gate import judge
    from daskpipe.store.quality.verdict import format_verdict
    from daskpipe.store.reader import dataset_of

    path = dataset_of(dataset)
    verdict = judge(path, load_quality(path.parent, overrides or []))
    print_answer(verdict.as_json(), as_json, lambda _, console: print_lines(format_verdict(verdict), console))
    if not verdict.go:
        raise typer.Exit(EXIT_INTERNAL)


@app.command()
def report(
    target: Annotated[Path, typer.Argument(metavar="RUN|DATASET", help="A run directory, or a dataset.zarr")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Page to write; by default RUN/report.html")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a report of a run or a dataset: one HTML page that needs no network."""
    from daskpipe.runs.report import write_report

    written = write_report(target, out)
    print_answer({"report": str(written)}, as_json, lambda answer, console: print_lines([answer["report"]], console))


@app.command()
def train(
    dataset: DatasetPath,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Options of mace_run_train, e.g. lr=0.005")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder to make; by default RUN/model, or NAME.mace beside it")
    ] = None,
    size: Annotated[str, typer.Option(help="small (two cores suffice) or medium")] = "small",
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data; by default by its size")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after the first epoch that ends later")] = None,
    foundation: Annotated[str | None, typer.Option(help="Begin with this MACE: bundled, a file, a name")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or float64")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of the weights and the order of the data")] = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train a MACE model on a dataset, and measure its errors on the test split."""
    from daskpipe.cli.progress import TrainingLines
    from daskpipe.train import train as train_on

    trained = train_on(
        dataset,
        out,
        size=size,
        epochs=epochs,
        max_minutes=minutes,
        device=device,
        dtype=dtype,
        seed=seed,
        foundation=foundation,
        overrides=overrides or [],
        force=force,
        subscribers=[] if as_json else [TrainingLines()],
    )
    print_answer({"out": str(trained.out), "model": str(trained.model), **trained.metrics}, as_json, _show_training)


def _show_training(answer: dict[str, Any], console: Console) -> None:
    """Print the errors on each split, the model, and a command that explores with it."""
    from daskpipe.config.overrides import quote_value

    rows = [format_errors(split, groups["all"]) for split, groups in answer["splits"].items()]
    model = answer["model"]
    rows += [
        f"Model {model} after {answer['seconds']:.0f} s",
        f"explore with it: daskpipe run quickstart {quote(f'explore.potential.params.model={quote_value(model)}')}",
    ]
    print_lines(rows, console)


def format_errors(split: str, errors: dict[str, Any]) -> str:
    """Format the errors of a split; `errors` as `daskpipe.train.accuracy.measure_errors` returns them."""
    energy, forces = errors["energy"], errors["forces"]
    if energy is None or forces is None:
        failures = ", ".join(f"{count:,} {reason}" for reason, count in errors["failures"].items())
        return f"{split:<5}  no errors, for the model failed on all of its structures: {failures}"
    if forces["times_better"] is not None:
        gain = f"{forces['times_better']:.1f} times better than no forces at all"
    elif forces["mean_predictor_rmse"] == 0:
        gain = "all forces of its labels are 0"
    else:
        gain = "those of its labels, exactly"
    return f"{split:<5}  energy RMSE {1e3 * energy['rmse']:.1f} meV/atom, forces RMSE {forces['rmse']:.4f} eV/Å: {gain}"


def _show_verification(answer: dict[str, Any], console: Console) -> None:
    """Print the files that differ, and whether the dataset is as it was written."""
    from daskpipe.cli.progress import escape_text

    for problem in answer["problems"]:
        console.print(escape_text(problem), highlight=False, soft_wrap=True)
    state = "[red]damaged[/]: copy it again, or make it anew" if answer["problems"] else "[green]as it was written[/]"
    console.print(f"{escape_text(answer['dataset'])} is {state}", highlight=False, soft_wrap=True)
