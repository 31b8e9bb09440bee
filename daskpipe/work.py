"""Unit of work: key, attempt directory, commit by rename, receipt, quarantine; and the driver's window.

Truth is a tree of write-once directories; Dask moves work and holds none of it::

    units/STAGE/K0/KEY/   payload.npz  rejected.json  manifest.json, and files of the unit's own
    quarantine/KEY.json   one file a rejected structure, written by the driver from the committed units
    ledger/0001.jsonl     one segment a driver start: an index, rebuildable from the tree

A unit may run twice, anywhere, at any time: the first rename wins and the other attempt is thrown away.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import time
import uuid
from collections.abc import Buffer, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from daskpipe.errors import ClusterError, ConfigError, DaskpipeError, DiskError, IntegrityError, Rejection, Yielded
from daskpipe.events import Emit, Event, UnitCommitted, UnitLost, UnitYielded

if TYPE_CHECKING:
    import xarray as xr

LOSS_LIMIT = 10
"""How often a unit may be lost with its worker before the run stops; a preemption is rare, a crash repeats."""

NO_WORKER_SECONDS = 120.0
"""How long a run waits without a single living worker before it gives up."""


# --- keys -------------------------------------------------------------------------------------------


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no white space: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def key_of(stage: str, version: int, params: Mapping[str, Any], upstream: Sequence[Any], seed: int) -> str:
    """Return the key of a unit: 32 hex digits that hash all that decides its bytes.

    Parameters
    ----------
    stage, version
        The room and the version of its algorithm.
    params
        Parameters that decide the numbers (not: worker counts or devices), model hashes among them.
    upstream
        Keys, and rows, of what the unit reads.
    seed
        The run's seed.
    """
    text = canonical_json([stage, version, dict(params), list(upstream), seed])
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"daskpipe-unit").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One partition of one stage."""

    stage: str
    index: int
    key: str
    n_inputs: int
    upstream: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.stage} unit {self.index} ({self.key[:8]})"


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What a unit made: arrays by name, and the inputs that it rejected.

    `files` are kept beside the arrays, byte for byte: what is mapped, or becomes a part of the dataset, as it is.
    """

    arrays: Mapping[str, np.ndarray]
    n_out: int
    rejected: list[Rejection] = field(default_factory=list)
    seconds: float = 0.0
    tallies: Mapping[str, int] = field(default_factory=dict)
    """Counts of what happened, such as trial moves; they are summed over units."""
    files: Mapping[str, Buffer] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a task returns instead of data: under 2 kB, all that the driver needs to go on."""

    stage: str
    index: int
    key: str
    n_inputs: int
    n_out: int
    n_rejected: int
    counts: dict[str, int]
    n_bytes: int
    seconds: float
    worker: str
    tallies: dict[str, int] = field(default_factory=dict)


# --- the tree ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """The run directory."""

    root: Path

    @property
    def dataset(self) -> Path:
        """Where the dataset is published."""
        return self.root / "dataset.zarr"

    @property
    def config(self) -> Path:
        """The config as resolved."""
        return self.root / "config.yaml"

    def unit_dir(self, stage: str, key: str) -> Path:
        """Directory of a committed unit."""
        return self.root / "units" / stage / key[:2] / key

    def receipt(self, unit: Unit) -> Receipt | None:
        """Return the receipt of a committed unit, ``None`` if it is not committed."""
        folder = self.unit_dir(unit.stage, unit.key)
        if not folder.exists():
            return None
        manifest = self._manifest(folder)
        return Receipt(**manifest["receipt"])

    def load(
        self, stage: str, key: str, names: Iterable[str] | None = None, *, optional: Iterable[str] = ()
    ) -> dict[str, np.ndarray]:
        """Return the arrays of a committed unit, all or by name, after checking their digest.

        Raises
        ------
        IntegrityError
            If the payload is not what was committed.
        """
        data = self._committed(self.unit_dir(stage, key), "payload.npz")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in (arrays.files if names is None else names)}
            return found | {name: arrays[name] for name in optional if name in arrays.files}

    def file(self, stage: str, key: str, name: str) -> Path:
        """Return the path of one file of a committed unit, after checking its size.

        Raises
        ------
        IntegrityError
            If it is missing or was cut.
        """
        folder = self.unit_dir(stage, key)
        path = folder / name
        if not path.is_file():
            raise self._damaged(folder, name, "it is missing")
        if path.stat().st_size != self._manifest(folder)["files"][name]["size"]:
            raise self._damaged(folder, name, "its size differs")
        return path

    def forget(self, unit: Unit) -> None:
        """Remove a committed unit, so that it is made again."""
        folder = self.unit_dir(unit.stage, unit.key)
        trash = folder.with_name(f".{unit.key}-{uuid.uuid4().hex[:8]}-attempt")
        os.rename(folder, trash)
        shutil.rmtree(trash)

    def rejected(self, stage: str, key: str) -> list[Rejection]:
        """Return what a committed unit rejected; raises as `load` does."""
        rows = json.loads(self._committed(self.unit_dir(stage, key), "rejected.json"))
        return [Rejection(**row) for row in rows]

    def _committed(self, folder: Path, name: str) -> bytes:
        """Return the bytes of one file of a committed unit, after checking their digest."""
        expected = self._manifest(folder)["files"][name]["sha256"]
        try:
            data = (folder / name).read_bytes()
        except FileNotFoundError:
            raise self._damaged(folder, name, "it is missing") from None
        if hashlib.sha256(data).hexdigest() != expected:
            raise self._damaged(folder, name, "its sha256 differs")
        return data

    def _manifest(self, folder: Path) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        except (FileNotFoundError, ValueError) as error:
            raise self._damaged(folder, "manifest.json", f"{type(error).__name__}") from error
        return manifest

    def _damaged(self, folder: Path, name: str, how: str) -> IntegrityError:
        return IntegrityError(
            f"{folder / name} is not what was committed ({how}). Remove {folder} and type: daskpipe resume {self.root}"
        )

    def quarantine(self, rejections: Iterable[Rejection]) -> None:
        """Write one file a rejected structure; the same rejection twice gives the same file."""
        folder = self.root / "quarantine"
        folder.mkdir(exist_ok=True)
        for rejection in rejections:
            name = hashlib.blake2b(canonical_json([rejection.stage, rejection.structure]).encode(), digest_size=16)
            target = folder / f"{name.hexdigest()}.json"
            if not target.exists():
                write_atomically(target, json.dumps(rejection.as_json(), indent=1, ensure_ascii=False))

    def quarantined(self) -> list[Rejection]:
        """Return all rejections, ordered by file name."""
        files = sorted((self.root / "quarantine").glob("*.json"))
        return [Rejection(**json.loads(file.read_text())) for file in files]

    def sweep(self) -> int:
        """Remove what attempts that never committed left behind; return how many there were."""
        left = [*self.root.glob("units/*/*/.*-attempt"), *self.root.glob(".dataset-*.zarr")]
        for folder in self.root.glob("units/*/*/.*-checkpoint"):
            _, key, *_ = folder.name.replace(".", "-").split("-")
            # That of a unit which is not committed is where it goes on.
            if (folder.parent / key).exists():
                left.append(folder)
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
        return len(left)

    @contextmanager
    def driver_lock(self) -> Iterator[None]:
        """Hold the run directory for one driver.

        Raises
        ------
        ConfigError
            If another driver holds it.
        """
        with open(self.root / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"another daskpipe works in {self.root}. Wait for it (daskpipe status {self.root}) "
                    "or give --run-dir"
                ) from None
            yield


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that it is whole or absent, even after a power failure."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    write_synced(temporary, text.encode())
    os.replace(temporary, path)


def write_synced(path: Path, data: Buffer) -> dict[str, Any]:
    """Write a file through to the disk; return its size and sha256."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"size": memoryview(data).nbytes, "sha256": hashlib.sha256(data).hexdigest()}


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


DEADLINE = ("DASKPIPE_DEADLINE", "SLURM_JOB_END_TIME")
"""Environment variables that tell a worker when it will be ended, in seconds since 1970."""

YIELD_SECONDS = 60.0
"""Time before the end of its worker at which a unit leaves its last checkpoint."""


def seconds_left() -> float:
    """Return the time until this process will be ended, as far as it was told; infinite if it was not."""
    ends = [float(os.environ[name]) for name in DEADLINE if os.environ.get(name)]
    return min(ends, default=float("inf")) - time.time()


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where one attempt at a unit leaves what it has reached, for whoever goes on.

    Each attempt writes into a directory of its own, so that a unit may run twice; a new one goes on from the newest
    checkpoint of all. They are gone when the unit is committed.

    Parameters
    ----------
    root, unit
        Run directory and unit.
    attempt
        Names the directory; `begin` gives it.
    """

    root: Path
    unit: Unit
    attempt: str = ""

    def begin(self) -> Checkpoints:
        """Return the checkpoints of a new attempt, where it runs."""
        return replace(self, attempt=uuid.uuid4().hex[:8])

    @property
    def _unit_dir(self) -> Path:
        return Tree(self.root).unit_dir(self.unit.stage, self.unit.key)

    def files(self) -> list[Path]:
        """Return the checkpoints of all attempts, the newest first."""
        written = {}
        for file in self._unit_dir.parent.glob(f".{self.unit.key}-*-checkpoint/state"):
            with suppress(FileNotFoundError):  # another attempt has committed, or gone on from it
                written[file] = file.stat().st_mtime_ns
        return sorted(written, key=lambda file: written[file], reverse=True)

    def newest(self) -> bytes | None:
        """Return the newest checkpoint whose digest is right."""
        for file in self.files():
            data = b""
            with suppress(FileNotFoundError):
                data = file.read_bytes()
            digest, content = data[:32], data[32:]
            if hashlib.sha256(content).digest() == digest:
                return content
        return None

    def save(self, content: bytes) -> None:
        """Write a checkpoint in place of the one before.

        Raises
        ------
        DiskError
            If the disk is full or cannot be written.
        FileNotFoundError
            If the run directory is not there.
        """
        folder = self._unit_dir.with_name(f".{self.unit.key}-{self.attempt}-checkpoint")
        older = [file.parent for file in self.files() if file.parent != folder]
        try:
            with explained(self.root, folder):
                make_folders(self.root, folder)
                write_synced(folder / "new", hashlib.sha256(content).digest() + content)
                os.replace(folder / "new", folder / "state")
                sync_folder(folder)
        except DiskError:
            (folder / "new").unlink(missing_ok=True)  # the one before stays
            raise
        for other in older:
            shutil.rmtree(other, ignore_errors=True)

    def ends_soon(self) -> bool:
        """Whether the worker ends so soon that the unit should go on elsewhere."""
        return seconds_left() < YIELD_SECONDS

    def give_way(self) -> None:
        """Hand the unit on if the worker ends soon.

        Raises
        ------
        Yielded
            If it does.
        """
        if self.ends_soon():
            raise Yielded(f"the worker ends in {max(0.0, seconds_left()):.0f} s")


def make_folders(root: Path, folder: Path) -> None:
    """Make a folder below ``units``; never the run directory itself: one that was removed under a unit stays so."""
    for path in (*reversed(folder.relative_to(root).parents[:-1]), folder.relative_to(root)):
        (root / path).mkdir(exist_ok=True)


@contextmanager
def explained(root: Path, folder: Path) -> Iterator[None]:
    """Turn what a disk says into a `DiskError` that says what to type."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO):
            raise DiskError(
                f"cannot write {folder}: {error.strerror}. Make room, then: daskpipe resume {root}"
            ) from error
        raise


def commit(root: Path, unit: Unit, payload: Payload) -> Receipt:
    """Commit what a unit made: attempt directory, manifest last, fsync, rename.

    Raises
    ------
    DiskError
        If the disk is full or cannot be written.
    FileNotFoundError
        If the run directory is not there.
    """
    tree = Tree(root)
    final = tree.unit_dir(unit.stage, unit.key)
    attempt = final.with_name(f".{unit.key}-{uuid.uuid4().hex[:8]}-attempt")
    try:
        with explained(root, attempt):
            make_folders(root, attempt)
            receipt = _publish(tree, unit, payload, attempt, final)
    except BaseException:
        shutil.rmtree(attempt, ignore_errors=True)  # on a full disk every byte counts
        raise
    for folder in final.parent.glob(f".{unit.key}-*-checkpoint"):
        shutil.rmtree(folder, ignore_errors=True)
    return receipt


def _publish(tree: Tree, unit: Unit, payload: Payload, attempt: Path, final: Path) -> Receipt:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **payload.arrays)
    rejected = json.dumps([rejection.as_json() for rejection in payload.rejected], indent=1).encode()
    files = {
        "payload.npz": write_synced(attempt / "payload.npz", buffer.getvalue()),
        "rejected.json": write_synced(attempt / "rejected.json", rejected),
        **{name: write_synced(attempt / name, data) for name, data in payload.files.items()},
    }
    receipt = Receipt(
        stage=unit.stage,
        index=unit.index,
        key=unit.key,
        n_inputs=unit.n_inputs,
        n_out=payload.n_out,
        n_rejected=len(payload.rejected),
        counts=count_by(payload.arrays.get("system_type")),
        n_bytes=sum(file["size"] for file in files.values()),
        seconds=round(payload.seconds, 3),
        worker=f"{os.uname().nodename}:{os.getpid()}",
        tallies=dict(payload.tallies),
    )
    manifest = {"unit": asdict(unit), "files": files, "receipt": asdict(receipt)}
    write_synced(attempt / "manifest.json", json.dumps(manifest, indent=1).encode())
    sync_folder(attempt)
    try:
        os.rename(attempt, final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        shutil.rmtree(attempt)
        first = tree.receipt(unit)
        assert first is not None  # the rename that won carried its manifest
        return first
    sync_folder(final.parent)
    return receipt


def count_by(names: np.ndarray | None) -> dict[str, int]:
    """Count how often each name occurs."""
    if names is None:
        return {}
    values, counts = np.unique(names, return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}


# --- datasets in and out of units -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one committed unit: what a downstream unit reads."""

    stage: str
    key: str
    rows: tuple[int, ...]


def read_rows(root: Path, pieces: Sequence[Rows]) -> xr.Dataset:
    """Return the structures that `pieces` name, in their order, as one dataset in memory."""
    from daskpipe.structures import concat, take

    parts = []
    # Neighbours of one unit are read together: reading means checking its whole digest.
    for (stage, key), group in groupby(pieces, key=lambda piece: (piece.stage, piece.key)):
        parts.append(take(read_unit(root, stage, key), [row for piece in group for row in piece.rows]))
    return concat(parts)


def read_unit(root: Path, stage: str, key: str) -> xr.Dataset:
    """Return the structures of one committed unit as a dataset in memory."""
    import xarray as xr

    from daskpipe.variables import VARIABLES

    arrays = Tree(root).load(stage, key)
    return xr.Dataset({name: (VARIABLES[name].dims, array) for name, array in arrays.items()})


def arrays_of(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """Return the variables of a dataset in memory as plain arrays, for a payload."""
    return {str(name): array.values for name, array in sorted(ds.data_vars.items())}


# --- the driver's window ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Task:
    """A unit and the lazy work that commits it and gives its receipt."""

    unit: Unit
    work: Any


class WorkerLost(Exception):
    """The process or machine under a unit went away."""


class Pool(Protocol):
    """Where tasks run. `daskpipe.placement.DaskPool` is the one that runs use."""

    def slots(self, stage: str) -> int:
        """How many units of a stage may be under way at once; 0 while no worker lives."""

    def submit(self, task: Task) -> Any:
        """Start a task; return a handle."""

    def wait(self, handles: Iterable[Any], timeout: float) -> set[Any]:
        """Return the handles that are done, after at most `timeout` seconds."""

    def result(self, handle: Any) -> Receipt:
        """Return the receipt of a done task, release it, and raise what it raised; `WorkerLost` if it was lost."""

    def cancel(self, handles: Iterable[Any]) -> None:
        """Give up tasks that are under way."""


def drive(
    tasks: Sequence[Task],
    pool: Pool,
    emit: Emit,
    *,
    reached: Callable[[Unit], Any] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run all tasks through a window as wide as the pool has slots.

    A unit whose worker is lost goes back to the end of the queue; any other error ends the run. `reached` tells how
    far a unit has come: one that has come farther since it was last lost is not at fault.

    Raises
    ------
    ClusterError
        If no worker lives for two minutes, or one unit loses its worker again and again.
    DaskpipeError
        Whatever a unit raised.
    """
    waiting = list(reversed(tasks))
    under_way: dict[Any, Task] = {}
    losses: dict[str, int] = {}
    lost_at: dict[str, Any] = {}
    last_alive = clock()
    try:
        while waiting or under_way:
            slots = pool.slots(tasks[0].unit.stage)
            if slots:
                last_alive = clock()
            elif clock() - last_alive > NO_WORKER_SECONDS:
                raise ClusterError(
                    f"no worker has lived for {NO_WORKER_SECONDS:.0f} s; start workers, then resume the run"
                )
            while waiting and len(under_way) < slots:
                task = waiting.pop()
                under_way[pool.submit(task)] = task
            if not under_way:
                time.sleep(0.2)
                continue
            for handle in pool.wait(under_way, timeout=1.0):
                task = under_way.pop(handle)
                try:
                    receipt = pool.result(handle)
                except WorkerLost as error:
                    place, before = reached(task.unit), lost_at.get(task.unit.key)
                    lost_at[task.unit.key] = place
                    losses[task.unit.key] = 1 if place != before else losses.get(task.unit.key, 0) + 1
                    emit(_lost(task.unit, losses[task.unit.key], str(error)))
                    if losses[task.unit.key] >= LOSS_LIMIT:
                        raise ClusterError(
                            f"{task.unit} lost its worker {LOSS_LIMIT} times: {error}. See the workers' logs; "
                            "if one of its structures crashes the potential, take that structure out"
                        ) from error
                    waiting.insert(0, task)
                except Yielded:
                    emit(UnitYielded(stage=task.unit.stage, index=task.unit.index, key=task.unit.key))
                    waiting.insert(0, task)
                except DaskpipeError as error:
                    raise type(error)(f"{task.unit}: {error}") from error
                else:
                    emit(UnitCommitted(**asdict(receipt)))
    except BaseException:
        pool.cancel(under_way)
        raise


def _lost(unit: Unit, losses: int, reason: str) -> UnitLost:
    return UnitLost(stage=unit.stage, index=unit.index, key=unit.key, losses=losses, reason=reason)


# --- the ledger -------------------------------------------------------------------------------------


class Ledger:
    """One segment of the run's journal: a line an event, written by one driver.

    Parameters
    ----------
    tree
        The run directory; the segment gets the next free number.
    """

    def __init__(self, tree: Tree) -> None:
        folder = tree.root / "ledger"
        folder.mkdir(exist_ok=True)
        number = 1 + max((int(file.stem) for file in folder.glob("*.jsonl")), default=0)
        self.path = folder / f"{number:04d}.jsonl"

    def __call__(self, event: Event) -> None:
        """Append an event."""
        line = json.dumps({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **event.as_json()})
        with open(self.path, "a") as file:
            file.write(line + "\n")


def read_ledger(tree: Tree) -> list[dict[str, Any]]:
    """Return all events of all segments in order; a line torn by a crash is left out."""
    events = []
    for file in sorted((tree.root / "ledger").glob("*.jsonl")):
        for line in file.read_text().splitlines():
            try:
                events.append({"segment": file.stem, **json.loads(line)})
            except json.JSONDecodeError:  # only the last line of a segment can be torn: one writer, append only
                continue
    return events
