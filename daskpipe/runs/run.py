"""Run a config to its dataset, and resume a run: `daskpipe.run` and `daskpipe.resume`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskpipe import potentials
from daskpipe.cluster import settings
from daskpipe.cluster.connect import check_cluster, connect
from daskpipe.cluster.joining import join_scheduler
from daskpipe.config import saved
from daskpipe.config.load import change_config, load_config
from daskpipe.config.models import Config
from daskpipe.core.errors import EXIT_COMPLETE, EXIT_QUARANTINED, ConfigError, DiskError, count_reasons
from daskpipe.core.events import Emit, Notice, RunFinished, fan_out
from daskpipe.core.files import write_atomically
from daskpipe.core.shared_disk import FORBIDDEN, disk_error
from daskpipe.engine.attempts import list_given_up
from daskpipe.engine.ledger import Ledger
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.pipeline.completed import read_completed
from daskpipe.pipeline.labels import identify_teachers
from daskpipe.pipeline.run_pipeline import run_pipeline
from daskpipe.pipeline.steps import hash_content
from daskpipe.runs.budget import BudgetLimiter
from daskpipe.runs.lease import Lease, WalltimeNear, hold_lease
from daskpipe.stages import describe
from daskpipe.stages.generate.stage import list_requests
from daskpipe.store.quality.gate import judge
from daskpipe.store.quality.verdict import Outcome, Verdict

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class Result:
    """Result of a run.

    Parameters
    ----------
    run_dir, dataset
        Paths of the run directory and of the dataset.
    stages
        Per stage: units, computed now, inputs, outputs, rejected, wall seconds, counts by system type, tallies.
    quarantined
        Rejected structures by reason.
    seconds
        Wall time of this driver.
    verdict
        Verdict of the quality gate; ``quality.json`` in the run directory.
    """

    run_dir: Path
    dataset: Path
    stages: dict[str, dict[str, Any]]
    quarantined: dict[str, int]
    seconds: float
    verdict: Verdict

    @property
    def exit_code(self) -> int:
        """0, or 10 if structures were quarantined."""
        return EXIT_QUARANTINED if self.quarantined else EXIT_COMPLETE


def run(
    target: str | Config,
    overrides: Sequence[str] = (),
    *,
    run_dir: str | Path | None = None,
    client: Client | None = None,
    subscribers: Iterable[Emit] = (),
) -> Result:
    """Run a config to its dataset, or resume a run of the same config.

    Parameters
    ----------
    target
        Name of a preset, path of a YAML file, or a validated config.
    overrides
        ``group=choice`` or ``key.path=value``.
    run_dir
        The run directory; by default ``runs/NAME``, and of a shard ``runs/NAME-2of8``.
    client
        A Dask client to use, whose workers have one thread each and see the run directory; by default ``cluster`` of
        the config says what to start.
    subscribers
        Called with each event.

    Returns
    -------
    Result

    Raises
    ------
    ConfigError
        If the config is wrong, or the run directory holds a run of another one.
    InputError
        If a model or file cannot be used, or nothing is left to work on.
    ClusterError
        If workers cannot be had, or those of the client cannot compute units.
    Interrupted
        If the config's budget of hours or bytes is spent before the end, or `Lease.check` ends the run.
    """
    config = target if isinstance(target, Config) else load_config(target, overrides)
    root = Path(run_dir) if run_dir is not None else Path("runs") / config.run_name
    directory = RunDirectory(root.absolute())
    return _start_run(directory, config, client, subscribers)


def resume(
    run_dir: str | Path,
    overrides: Sequence[str] = (),
    *,
    cluster: settings.Cluster | None = None,
    client: Client | None = None,
    subscribers: Iterable[Emit] = (),
    detached: Detached | None = None,
) -> Result:
    """Resume a run; nothing that is committed is computed again.

    Parameters
    ----------
    run_dir
        A run directory.
    overrides
        ``cluster.KEY=VALUE`` and ``budget.KEY=VALUE``: what may change in a run that has begun.
    cluster
        Cluster to run on, instead of the one in the config.
    client, subscribers
        As in `run`.
    detached
        Settings of a driver that is a job of its own.

    Raises
    ------
    ConfigError
        If it is no run directory, another driver works in it, or an override is of anything else.
    """
    directory, config = load_stored_run(run_dir, overrides, cluster=cluster)
    return _start_run(directory, config, client, subscribers, detached or Detached())


def load_stored_run(
    run_dir: str | Path, overrides: Sequence[str] = (), *, cluster: settings.Cluster | None = None
) -> tuple[RunDirectory, Config]:
    """Load the config of a run directory, changed where it may change; parameters and errors as of `resume`."""
    directory = RunDirectory(Path(run_dir).absolute())
    config = saved.from_yaml(directory.config)
    if cluster is not None:
        config = config.model_copy(update={"cluster": cluster})
    return directory, change_config(config, overrides) if overrides else config


@dataclass(frozen=True, kw_only=True)
class Detached:
    """Settings of a driver that is a job of its own.

    Parameters
    ----------
    token
        Name of the driver in the lease; None for a driver that is no such job.
    patience
        Seconds to wait for another driver to end.
    hand_over
        Called when the job ends soon, after the cluster was closed and before the lease is released.
    """

    token: str | None = None
    patience: float = 0.0
    hand_over: Callable[[], None] = lambda: None


def _start_run(
    directory: RunDirectory,
    config: Config,
    client: Client | None,
    subscribers: Iterable[Emit],
    detached: Detached | None = None,
) -> Result:
    """Check everything that can be checked before anything runs, then run."""
    detached = detached or Detached()
    with open_run(directory, config, client, patience=detached.patience, token=detached.token) as (lease, identities):
        try:
            return _drive_all(directory, config, identities, client, subscribers, lease)
        except BaseException:
            if isinstance(lease.stop, WalltimeNear):
                detached.hand_over()
            raise


@contextmanager
def open_run(
    directory: RunDirectory,
    config: Config,
    client: Client | None = None,
    *,
    patience: float = 0.0,
    token: str | None = None,
) -> Iterator[tuple[Lease, dict[str, potentials.Identity]]]:
    """Check everything that can be checked before anything runs, and open the run directory for one driver.

    The config is written and compared under the lease: of two drivers that begin at once, one has written its config
    before the other compares.

    Parameters
    ----------
    directory, config
        The run directory, which is made if it is absent, and the config of the run.
    client
        A Dask client to use, if there is one.
    patience, token
        As `daskpipe.runs.lease.hold_lease` takes them.

    Yields
    ------
    lease : Lease
    identities : dict
        As `check_inputs` returns them; those that the run began with.

    Raises
    ------
    ConfigError
        If the run directory holds a run of another config, or another driver works in it.
    """
    if client is None:
        check_cluster(config.cluster)
    identities = check_inputs(config)
    if directory.config.is_file():  # a run of another config is left alone
        _compare_config(directory, config)
    else:
        _make_folder(directory.root)
    with hold_lease(directory.root, patience=patience, token=token) as lease:
        if directory.config.is_file():
            _compare_config(directory, config)
        else:
            write_atomically(directory.config, saved.to_yaml(config))
        yield lease, _record_potentials(directory, identities)


def check_inputs(config: Config) -> dict[str, potentials.Identity]:
    """Check that models and inputs exist, before anything runs.

    Returns
    -------
    dict
        Identity of the potential, or of the descriptor's model, of each stage that uses one.

    Raises
    ------
    InputError
        For a model or file that does not exist.
    """
    list_requests(config.generate.sources, config.generate.paths, config.generate.base_dir)
    if config.select.against is not None:
        hash_content(Path(config.select.against))
    explorer = config.explore.potential
    identities = {"explore": potentials.identify_potential(explorer.name, explorer.params), **identify_teachers(config)}
    model = describe.identify_model(config.describe)
    return identities if model is None else {**identities, "describe": model}


def _compare_config(directory: RunDirectory, config: Config) -> None:
    """Raise ConfigError if a run directory holds a run of another config."""
    if different := saved.list_differences(config, saved.from_yaml(directory.config)):
        raise ConfigError(
            f"{directory.root} holds a run of another config ({'; '.join(different[:3])}). "
            "Give another --run-dir, or remove it"
        )


def _record_potentials(
    directory: RunDirectory, identities: dict[str, potentials.Identity]
) -> dict[str, potentials.Identity]:
    """Record the potentials of a run, or return those that it began with.

    Raises
    ------
    ConfigError
        If one is not the one that the run began with.
    """
    record = directory.root / "potentials.json"
    if not record.exists():
        rows = {
            stage: {"name": recorded.name, "hash": recorded.hash}
            | ({"packages": dict(recorded.packages)} if recorded.packages else {})
            for stage, recorded in identities.items()
        }
        write_atomically(record, json.dumps(rows, indent=1))
        return identities
    recorded = dict(identities)
    for stage, before in json.loads(record.read_text()).items():
        now = identities[stage]
        if before["hash"] == now.hash:
            continue
        if now.packages and "packages" not in before:
            # Such a record has versions of packages in its hash. Name and params are compared with the config.
            recorded[stage] = replace(now, hash=before["hash"], current=now.hash)
            continue
        what = {"describe": "describe.params.model", "second": "label.second"}.get(stage, f"{stage}.potential")
        raise ConfigError(
            f"{what} is not the one that {directory.root} began with: {before['name']} ({before['hash'][:12]}) then, "
            f"{now.name} ({now.hash[:12]}) now. Put the earlier model back, or give another --run-dir"
        )
    return recorded


def _make_folder(root: Path) -> None:
    """Make a run directory that only its owner may read.

    Raises
    ------
    ConfigError
        If it lies below a file, or holds something else than a run.
    DiskError
        If it cannot be made.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = [path.name for path in root.iterdir() if not path.name.startswith(".") and path.name != "drivers"]
        if not names:
            root.chmod(0o700)  # an existing folder may be readable by others
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{root} is or lies below a file; give another --run-dir") from None
    except OSError as error:
        if error.errno in FORBIDDEN and (cause := disk_error(error, path=root)) is not None:
            raise cause from error
        raise DiskError(f"cannot make {root}: {error.strerror}. Make room or give another --run-dir") from error
    # A kill between mkdir and the first rename leaves a hidden temporary file; one between lease and config leaves
    # the lease. Another driver may be writing its config at this moment.
    if names and not (root / "config.yaml").exists():
        raise ConfigError(f"{root} is neither empty nor a run directory; give another --run-dir")


def _drive_all(
    directory: RunDirectory,
    config: Config,
    identities: dict[str, potentials.Identity],
    client: Client | None,
    subscribers: Iterable[Emit],
    lease: Lease,
) -> Result:
    """Run the pipeline under a lease, and judge the dataset.

    A complete run of earlier stages is not computed again.
    """
    started = time.perf_counter()
    before = list_given_up(directory)
    directory.remove_leftovers()
    emit = fan_out(lambda _: lease.check_stop(), Ledger(directory), *subscribers, BudgetLimiter(directory, config))
    for event in before:
        emit(event)
    if (completed := read_completed(directory, config)) is not None:
        stages = completed
        emit(
            Notice(
                message="this run is complete; an earlier version of daskpipe made it, and its dataset stays as it is. "
                "To make it anew, give another --run-dir"
            )
        )
        seconds = time.perf_counter() - started
        emit(
            RunFinished(
                dataset=str(directory.dataset), seconds=seconds, quarantined=count_reasons(directory.read_quarantine())
            )
        )
    elif client is not None:
        stages = run_pipeline(
            directory,
            config,
            identities,
            join_scheduler(client, directory.root, emit),
            emit,
            check_stop=lease.check_stop,
        )
    else:
        with connect(config.cluster, directory.root / "workers.log", emit) as workers:
            stages = run_pipeline(directory, config, identities, workers, emit, check_stop=lease.check_stop)
    seen = Outcome(system_types=sorted(stages["generate"]["counts"]))
    verdict = judge(directory.dataset, config.quality, outcome=seen)
    write_atomically(directory.root / "quality.json", json.dumps(verdict.as_json(), indent=1))
    seconds = time.perf_counter() - started
    return Result(
        directory.root, directory.dataset, stages, count_reasons(directory.read_quarantine()), seconds, verdict
    )
