"""Do work on files in a run directory that lives as long as the call."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from daskpipe.cluster.connect import check_cluster, connect
from daskpipe.cluster.joining import join_scheduler
from daskpipe.config.compose import list_sections
from daskpipe.config.load import load_config
from daskpipe.config.models import Config
from daskpipe.core.errors import (
    EXIT_COMPLETE,
    EXIT_QUARANTINED,
    ConfigError,
    DiskError,
    DiskUnreachable,
    count_reasons,
)
from daskpipe.core.events import Emit, RunStarted, fan_out
from daskpipe.core.outputs import check_output, resolve_output
from daskpipe.engine.dask_pool import Workers, read_offers
from daskpipe.engine.driver import report_stale_deadlines
from daskpipe.engine.ledger import Ledger
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Receipt

if TYPE_CHECKING:
    from distributed import Client

FRAMES_A_UNIT = 512
"""Frames read and described by one task."""


PICKING_SECTIONS = ("describe", "select", "cluster", "seed")


DATASET_SECTIONS = ("store", "describe", "cluster", "seed")
"""What of the config counts where frames are described and picked, and where a dataset is made."""


Outputs = tuple[list[Receipt], int, dict[str, Any]]
"""Units of frames, how much was written, and what to report."""


@dataclass(frozen=True, kw_only=True)
class FilesResult:
    """What was made of the frames of files.

    Parameters
    ----------
    out
        The file written.
    n_frames, n_out
        Frames described, and rows or frames written.
    rejected
        Frames that could not be read, by reason.
    examples
        One of each reason: what it was.
    report
        Of `select`: method, near-duplicates left out, coverage, and picks whose atoms overlap. Of `describe`: its
        settings, and versions. Of `import`: ``labels``, the frames that have each label, ``sources``, by the keys that
        their labels come from, and ``left_out``, by what they hold that no dataset has room for.
    seconds
        Wall time.
    """

    out: Path
    n_frames: int
    n_out: int
    seconds: float
    rejected: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0, or 10 if frames were rejected."""
        return EXIT_QUARANTINED if self.rejected else EXIT_COMPLETE


def compose_sections(overrides: Sequence[str], sections: Sequence[str] = PICKING_SECTIONS) -> Config:
    """Compose the sections that count, from the presets of SOAP and k-means."""
    for override, section in zip(overrides, list_sections(overrides), strict=True):
        if section not in sections:
            raise ConfigError(f"{override!r} is of no use here: overrides begin with {', '.join(sections)}")
    return load_config("quickstart", ["describe=soap", "select=kmeans", *overrides])


def check_target(out: str | Path, suffixes: Sequence[str], force: bool) -> Path:
    """Return the path of what is to be written, if it may be.

    Raises
    ------
    ConfigError
        If its name ends otherwise than in one of the suffixes, or it exists and `force` is not set.
    """
    out = Path(out)
    if out.suffix not in suffixes:
        raise ConfigError(f"{out} must end in {' or '.join(suffixes)}; type e.g. -o {quote(out.stem + suffixes[0])}")
    check_output(out, force)
    return out


def run_in_workspace(
    name: str,
    config: Config,
    out: Path,
    client: Client | None,
    subscribers: Iterable[Emit],
    work: Callable[[RunDirectory, Workers, Emit], Outputs],
) -> FilesResult:
    """Do the work in a run directory beside `out`, and remove it."""
    started = time.perf_counter()
    if client is None:
        check_cluster(config.cluster)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=resolve_output(out).parent))
    except OSError as error:
        raise DiskError(f"cannot write beside {out}: {error.strerror}; give another -o") from error
    try:
        directory = RunDirectory(folder)
        emit = fan_out(Ledger(directory), *subscribers)
        with (
            nullcontext(join_scheduler(client, folder, emit))
            if client is not None
            else connect(config.cluster, folder / "workers.log", emit)
        ) as workers:
            dashboard = workers.client.dashboard_link or None
            emit(
                RunStarted(
                    run_dir=str(out), name=name, dashboard=dashboard, workers=sorted(read_offers(workers.client))
                )
            )
            report_stale_deadlines(emit)
            frames, n_out, report = work(directory, workers, emit)
        rejections = directory.read_quarantine()
        return FilesResult(
            out=out,
            n_frames=sum(receipt.n_out for receipt in frames),
            n_out=n_out,
            seconds=time.perf_counter() - started,
            rejected=count_reasons(rejections),
            examples={item.kind: f"{item.structure}: {item.evidence}" for item in reversed(rejections)},
            report=report,
        )
    except DiskError as error:
        # There is no run to go on with.
        advice = "Have the disk looked at" if isinstance(error, DiskUnreachable) else "Make room"
        raise type(error)(f"{str(error).partition('. ')[0]}. {advice}, or give another -o") from error
    finally:
        # Away in one step: units that are still under way after an interruption find nothing to add to.
        gone = folder.with_name(f"{folder.name}-gone")
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)
