"""Run stages on files in a temporary run directory."""

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
from daskpipe.config.load import load_config
from daskpipe.config.models import Config
from daskpipe.config.overrides import parse_overrides
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
"""Sections of the config that count where frames are described and picked."""

DATASET_SECTIONS = ("store", "describe", "cluster", "seed")
"""Sections of the config that count where a dataset is made."""

Outputs = tuple[list[Receipt], int, dict[str, Any]]
"""Units of frames, number of rows or frames written, and a report."""


@dataclass(frozen=True, kw_only=True)
class FilesResult:
    """Result of a verb that works on files.

    Parameters
    ----------
    out
        The file written.
    n_frames, n_out
        Frames described, and rows or frames written.
    rejected
        Frames that could not be read, by reason.
    examples
        Frame and evidence of one rejection of each reason.
    report
        Of ``select``: method, near-duplicates left out, coverage, and picks whose atoms overlap. Of ``describe``: its
        settings, and versions of packages. Of ``merge`` and ``import``: the splits. Of ``import`` also frames with each
        label (``labels``), frames by the keys that their labels were read from (``sources``), and frames by what they
        hold that a dataset does not take (``left_out``).
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
    """Compose a config, of which some sections count, from the presets of SOAP and k-means.

    Raises
    ------
    ConfigError
        For an override of another section, or a wrong value.
    """
    for override in parse_overrides(overrides):
        if override.section not in sections:
            raise ConfigError(f"{override.text!r} cannot be used here: overrides begin with {', '.join(sections)}")
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
    """Do work in a temporary run directory beside `out`, and remove the directory.

    Parameters
    ----------
    name
        Name of the verb, for the screen.
    config
        Config of the cluster and of the stages.
    out
        What the work writes.
    client
        A Dask client to use; by default ``cluster`` of the config says what to start.
    subscribers
        Called with each event.
    work
        Called with the run directory, the workers and a subscriber; writes `out`.

    Raises
    ------
    DiskError
        If the folder of `out` cannot be written, or its disk is full.
    """
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
        # The advice to resume does not fit: the temporary directory is removed.
        advice = "Have the disk checked" if isinstance(error, DiskUnreachable) else "Make room"
        raise type(error)(f"{str(error).partition('. ')[0]}. {advice}, or give another -o") from error
    finally:
        # Renamed first: units that still run after an interruption cannot add files to it.
        gone = folder.with_name(f"{folder.name}-gone")
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)
