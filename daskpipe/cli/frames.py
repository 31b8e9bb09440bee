"""The verbs of one stage alone: generate seeds; select, describe and label the frames of files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daskpipe.cli.options import (
    AsJson,
    ClusterName,
    Force,
    Frames,
    Overrides,
    Target,
    Verbs,
    close_files_verb,
    make_cluster_overrides,
    separate_overrides,
    show_bars,
)

app = Verbs()


@app.command()
def generate(
    target: Target,
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write, *.extxyz")],
    overrides: Overrides = None,
    cluster: ClusterName = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Generate the seeds of a config without a run, and tell how diverse they are; e.g. generate mix -o mix.extxyz."""
    from daskpipe.pipeline.seeds import generate_file

    with show_bars(as_json) as bars:
        done = generate_file(
            target, out, [*(overrides or []), *make_cluster_overrides(cluster)], force=force, subscribers=[bars]
        )
    close_files_verb(done, as_json)


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
    from daskpipe.config.overrides import quote_value
    from daskpipe.pipeline.frames import select_files

    paths, overrides = separate_overrides(frames)
    overrides = [f"select={method}", *overrides, *make_cluster_overrides(cluster)]
    if method == "environments":
        overrides.insert(0, "describe.level=atom")
    if against is not None:
        overrides.append(f"select.against={quote_value(str(against))}")
    with show_bars(as_json) as bars:
        done = select_files(paths, n, out, overrides, force=force, subscribers=[bars])
    close_files_verb(done, as_json)


@app.command()
def describe(
    frames: Frames,
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write, *.zarr or *.npz")],
    cluster: ClusterName = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Describe the frames of your own files; e.g. describe md.extxyz -o features.zarr describe.level=atom."""
    from daskpipe.pipeline.frames import describe_files

    paths, overrides = separate_overrides(frames)
    with show_bars(as_json) as bars:
        done = describe_files(
            paths, out, [*overrides, *make_cluster_overrides(cluster)], force=force, subscribers=[bars]
        )
    close_files_verb(done, as_json)


@app.command()
def label(
    frames: Frames,
    teacher: Annotated[str, typer.Option(help="xtb, chgnet, mace, pyscf, cp2k, sevennet, or another potential")],
    out: Annotated[Path, typer.Option("-o", "--out", help="File or dataset to write, *.extxyz or *.zarr")],
    cluster: ClusterName = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Label the structures of your own files; e.g. label md.extxyz --teacher xtb -o labelled.extxyz."""
    from daskpipe.pipeline.label_files import label_files

    paths, overrides = separate_overrides(frames)
    with show_bars(as_json) as bars:
        done = label_files(
            paths,
            out,
            [*overrides, *make_cluster_overrides(cluster)],
            teacher=teacher,
            force=force,
            subscribers=[bars],
        )
    close_files_verb(done, as_json)
