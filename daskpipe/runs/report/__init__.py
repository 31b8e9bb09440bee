"""Report: one HTML page on a run or a dataset, which needs no network.

Needs: a run directory, complete or not, or a ``dataset.zarr``; the verdict of the quality gate if there is one.
Makes: ``report.html``, which contains plotly.js and fetches nothing.
Entry: `write_report`.
Memory: one block of atoms (2**20), and some 60 bytes a structure; pictures and points are samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daskpipe.core.errors import ConfigError, InputError

__all__ = ["write"]


def write_report(
    target: Path | str, out: Path | str | None = None, *, verdict: Mapping[str, Any] | None = None
) -> Path:
    """Write a report of a run or of a dataset.

    Parameters
    ----------
    target
        A run directory, complete or not, or a ``dataset.zarr``.
    out
        The page; by default ``report.html`` in the run directory, or ``NAME.report.html`` beside ``NAME.zarr``. It
        appears when it is complete, in place of an older one.
    verdict
        Verdict of the quality gate, as JSON types; by default ``quality.json`` beside the dataset, if it exists.

    Returns
    -------
    pathlib.Path
        The page.

    Raises
    ------
    InputError
        If `target` is neither a run directory nor a dataset, or the verdict cannot be read.
    ConfigError
        If `out` is a directory.
    IntegrityError
        If the files of a committed unit of the run have changed.
    """
    from daskpipe.core.files import write_atomically
    from daskpipe.core.outputs import resolve_output
    from daskpipe.engine.run_directory import RunDirectory
    from daskpipe.runs.report import facts
    from daskpipe.runs.report.contents import measure_contents
    from daskpipe.runs.report.page import render_page

    target = Path(target)
    directory = RunDirectory(target)
    if directory.config.is_file():
        contents = measure_contents(directory.dataset) if directory.dataset.exists() else None
        collected = facts.collect_run_facts(directory, contents, verdict)
        default = target / "report.html"
    elif (target / "zarr.json").is_file():
        contents = measure_contents(target)
        collected = facts.collect_dataset_facts(contents, verdict)
        default = target.with_name(f"{target.stem}.report.html")
    else:
        what = (
            "is neither a run directory (it has no config.yaml) nor a dataset" if target.exists() else "does not exist"
        )
        raise InputError(f"{target} {what}; give a run or a dataset, e.g. runs/NAME or runs/NAME/dataset.zarr")
    out = Path(out) if out is not None else default
    if out.is_dir():
        raise ConfigError(f"{out} is a directory; give the name of a file, e.g. {out / 'report.html'}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(resolve_output(out), render_page(collected, contents))
    return out
