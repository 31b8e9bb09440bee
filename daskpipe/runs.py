"""Runs: from a config and a directory to a dataset; what `daskpipe.run` and ``daskpipe run`` call."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskpipe import config as configs
from daskpipe import describe, potentials
from daskpipe.attempts import given_up
from daskpipe.budget import BudgetKeeper
from daskpipe.cluster import check as check_cluster
from daskpipe.cluster import connect
from daskpipe.completed import read_completed
from daskpipe.config import Config
from daskpipe.errors import EXIT_COMPLETE, EXIT_QUARANTINED, ConfigError, DiskError, reasons
from daskpipe.events import Emit, Notice, RunFinished, fan_out
from daskpipe.generate.stage import requests
from daskpipe.joining import join
from daskpipe.lease import Lease, WalltimeNear, hold
from daskpipe.ledger import Ledger
from daskpipe.pipeline import content_of, corridor
from daskpipe.shared_disk import FORBIDDEN, disk_error
from daskpipe.store.quality import Outcome, Verdict, judge
from daskpipe.work import Tree, write_atomically

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class Result:
    """What a run made.

    Parameters
    ----------
    run_dir, dataset
        Where it is.
    stages
        Per stage: units, computed now, inputs, outputs, rejected, wall seconds, counts by system type, tallies.
    quarantined
        Rejected structures by reason.
    seconds
        Wall time of this driver.
    verdict
        What the quality gate says of the dataset; ``quality.json`` in the run directory.
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
    """Run a config to its dataset, or go on with a run of the same config.

    Parameters
    ----------
    target
        Name of a preset, path of a YAML file, or a validated config.
    overrides
        ``group=choice`` or ``key.path=value``.
    run_dir
        Where everything goes; by default ``runs/NAME``, and of a shard ``runs/NAME-2of8``.
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
    config = target if isinstance(target, Config) else configs.load(target, overrides)
    root = Path(run_dir) if run_dir is not None else Path("runs") / config.run_name
    tree = Tree(root.absolute())
    return _start(tree, config, client, subscribers)


def resume(
    run_dir: str | Path,
    overrides: Sequence[str] = (),
    *,
    cluster: configs.Cluster | None = None,
    client: Client | None = None,
    subscribers: Iterable[Emit] = (),
    detached: Detached | None = None,
) -> Result:
    """Go on with a run; nothing that is committed is computed again.

    Parameters
    ----------
    run_dir
        A run directory.
    overrides
        ``cluster.KEY=VALUE`` and ``budget.KEY=VALUE``: what may change in a run that has begun.
    cluster
        Where to run instead of where the config says.
    client, subscribers
        As in `run`.
    detached
        What this driver is, if it is a job of its own.

    Raises
    ------
    ConfigError
        If it is no run directory, another driver works in it, or an override is of anything else.
    """
    tree, config = stored(run_dir, overrides, cluster=cluster)
    return _start(tree, config, client, subscribers, detached or Detached())


def stored(
    run_dir: str | Path, overrides: Sequence[str] = (), *, cluster: configs.Cluster | None = None
) -> tuple[Tree, Config]:
    """Return a run directory and its config with what may change; parameters and errors as of `resume`."""
    tree = Tree(Path(run_dir).absolute())
    config = configs.from_yaml(tree.config)
    if cluster is not None:
        config = config.model_copy(update={"cluster": cluster})
    return tree, configs.changed(config, overrides) if overrides else config


@dataclass(frozen=True, kw_only=True)
class Detached:
    """A driver that is a job of its own.

    Parameters
    ----------
    token
        Its name in the lease; None for a driver that is no such job.
    patience
        Seconds that it waits for another driver to end.
    hand_over
        Called when the job ends soon, after the cluster was closed and before the lease is given back.
    """

    token: str | None = None
    patience: float = 0.0
    hand_over: Callable[[], None] = lambda: None


def _start(
    tree: Tree, config: Config, client: Client | None, subscribers: Iterable[Emit], detached: Detached | None = None
) -> Result:
    """Check all that can be checked before anything runs, then run."""
    detached = detached or Detached()
    with open_run(tree, config, client, patience=detached.patience, token=detached.token) as (lease, identities):
        try:
            return _drive_all(tree, config, identities, client, subscribers, lease)
        except BaseException:
            if isinstance(lease.stop, WalltimeNear):
                detached.hand_over()
            raise


@contextmanager
def open_run(
    tree: Tree, config: Config, client: Client | None = None, *, patience: float = 0.0, token: str | None = None
) -> Iterator[tuple[Lease, dict[str, potentials.Identity]]]:
    """Check all that can be checked before anything runs, and open the run directory for one driver.

    The config is written and compared under the lease: of two drivers that begin at once one has written its config
    before the other compares.

    Parameters
    ----------
    tree, config
        The run directory, which is made if it is not there, and what is to run in it.
    client
        A Dask client to use, if there is one.
    patience, token
        As `daskpipe.lease.hold` takes them.

    Yields
    ------
    lease : Lease
    identities : dict
        As `prepare`; those that the run began with.

    Raises
    ------
    ConfigError
        If the run directory holds a run of another config, or another driver works in it.
    """
    if client is None:
        check_cluster(config.cluster)
    identities = prepare(config)
    if tree.config.is_file():  # a run of another config is left alone
        _compare(tree, config)
    else:
        _make_folder(tree.root)
    with hold(tree.root, patience=patience, token=token) as lease:
        if tree.config.is_file():
            _compare(tree, config)
        else:
            write_atomically(tree.config, configs.to_yaml(config))
        yield lease, _recorded(tree, identities)


def prepare(config: Config) -> dict[str, potentials.Identity]:
    """Check, before anything runs, that models and inputs are there.

    Returns
    -------
    dict
        Identity of the potential, or of the descriptor's model, of each stage that uses one.

    Raises
    ------
    InputError
        For a model or file that is not there.
    """
    requests(config.generate.sources, config.generate.paths, config.generate.base_dir)
    if config.select.against is not None:
        content_of(Path(config.select.against))
    found = {
        stage: potentials.identity(choice.name, choice.params)
        for stage, choice in (("explore", config.explore.potential), ("label", config.label.potential))
    }
    model = describe.identity(config.describe)
    return found if model is None else {**found, "describe": model}


def _compare(tree: Tree, config: Config) -> None:
    """Raise ConfigError if a run directory holds a run of another config."""
    if different := configs.differences(config, configs.from_yaml(tree.config)):
        raise ConfigError(
            f"{tree.root} holds a run of another config ({'; '.join(different[:3])}). "
            "Give another --run-dir, or remove it"
        )


def _recorded(tree: Tree, identities: dict[str, potentials.Identity]) -> dict[str, potentials.Identity]:
    """Record the potentials of a run, or return those that it began with.

    Raises
    ------
    ConfigError
        If one is not the one that the run began with.
    """
    record = tree.root / "potentials.json"
    if not record.exists():
        rows = {
            stage: {"name": found.name, "hash": found.hash}
            | ({"packages": dict(found.packages)} if found.packages else {})
            for stage, found in identities.items()
        }
        write_atomically(record, json.dumps(rows, indent=1))
        return identities
    found = dict(identities)
    for stage, before in json.loads(record.read_text()).items():
        now = identities[stage]
        if before["hash"] == now.hash:
            continue
        if now.packages and "packages" not in before:
            # Versions of packages were part of the hash in such a record. The config tells the rest: name and params.
            found[stage] = replace(now, hash=before["hash"])
            continue
        what = "describe.params.model" if stage == "describe" else f"{stage}.potential"
        raise ConfigError(
            f"{what} is not the one that {tree.root} began with: {before['name']} ({before['hash'][:12]}) then, "
            f"{now.name} ({now.hash[:12]}) now. Put the model of then back, or give another --run-dir"
        )
    return found


def _make_folder(root: Path) -> None:
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = [path.name for path in root.iterdir() if not path.name.startswith(".") and path.name != "drivers"]
        if not names:
            root.chmod(0o700)  # it may have been there before
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{root} is or lies below a file; give another --run-dir") from None
    except OSError as error:
        if error.errno in FORBIDDEN and (found := disk_error(error, path=root)) is not None:
            raise found from error
        raise DiskError(f"cannot make {root}: {error.strerror}. Make room or give another --run-dir") from error
    # A kill between mkdir and the first rename leaves a hidden temporary file.
    # One between the lease and the config leaves the lease. Another driver may write its config just now.
    if names and not (root / "config.yaml").exists():
        raise ConfigError(f"{root} is neither empty nor a run directory; give another --run-dir")


def _drive_all(
    tree: Tree,
    config: Config,
    identities: dict[str, potentials.Identity],
    client: Client | None,
    subscribers: Iterable[Emit],
    lease: Lease,
) -> Result:
    started = time.perf_counter()
    before = given_up(tree)
    tree.sweep()
    emit = fan_out(lambda _: lease.check(), Ledger(tree), *subscribers, BudgetKeeper(tree, config))
    for event in before:
        emit(event)
    if (completed := read_completed(tree, config)) is not None:
        stages = completed
        emit(
            Notice(
                message="this run is complete; an earlier version of daskpipe made it, and its dataset stays as it is. "
                "To make it anew, give another --run-dir"
            )
        )
        seconds = time.perf_counter() - started
        emit(RunFinished(dataset=str(tree.dataset), seconds=seconds, quarantined=reasons(tree.quarantined())))
    elif client is not None:
        stages = corridor(tree, config, identities, join(client, tree.root, emit), emit, go_on=lease.check)
    else:
        with connect(config.cluster, tree.root / "workers.log", emit) as workers:
            stages = corridor(tree, config, identities, workers, emit, go_on=lease.check)
    seen = Outcome(system_types=sorted(stages["generate"]["counts"]))
    verdict = judge(tree.dataset, config.quality, outcome=seen)
    write_atomically(tree.root / "quality.json", json.dumps(verdict.as_json(), indent=1))
    seconds = time.perf_counter() - started
    return Result(tree.root, tree.dataset, stages, reasons(tree.quarantined()), seconds, verdict)
