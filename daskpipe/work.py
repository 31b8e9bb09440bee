"""Unit of work: key, attempt directory, commit by rename, receipt, quarantine.

Truth is a tree of write-once directories; Dask moves work and holds none of it::

    units/STAGE/K0/KEY/   payload.npz  rejected.json  manifest.json, and files of the unit's own
    quarantine/KEY.json   one file a rejected structure, written by the driver from the committed units
    ledger/0001.jsonl     one segment a driver start: an index, rebuildable from the tree

A unit may run twice, anywhere, at any time: the first rename wins and the other attempt is thrown away.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Buffer, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.errors import ConfigError, DiskUnreachable, IntegrityError, Rejection
from daskpipe.shared_disk import call_patiently, explained, list_names, refresh_names, wait_until_visible

if TYPE_CHECKING:
    import xarray as xr

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

    @classmethod
    def of(cls, run_dir: Path | str) -> Tree:
        """Return the tree of a run that there is.

        Raises
        ------
        ConfigError
            If it is no run directory.
        """
        tree = cls(Path(run_dir).absolute())
        if not tree.config.is_file():
            raise ConfigError(f"{run_dir} is no run directory (it has no config.yaml); see: ls runs")
        return tree

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

    def work_dir(self, stage: str, key: str) -> Path:
        """Folder of what attempts at a unit leave for others while it is not committed."""
        return self.root / "units" / stage / key[:2] / f".{key}-work"

    def receipt(self, unit: Unit) -> Receipt | None:
        """Return the receipt of a committed unit, ``None`` if it is not committed."""
        folder = self.unit_dir(unit.stage, unit.key)
        if not call_patiently(folder.exists):
            return None
        manifest = self._manifest(folder)
        return Receipt(**manifest["receipt"])

    def wait_for_receipt(self, unit: Unit, check: Callable[[], None] = lambda: None) -> Receipt | None:
        """Return the receipt of a unit that was committed somewhere, as soon as it can be seen here.

        Parameters
        ----------
        unit
            A unit of which somebody knows that it is committed.
        check
            Called while it is waited for; raises what speaks against waiting longer.

        Returns
        -------
        Receipt or None
            None if it cannot be seen here after `daskpipe.shared_disk.PATIENCE_SECONDS`.
        """
        visible = wait_until_visible(self.unit_dir(unit.stage, unit.key), self.root, check)
        return self.receipt(unit) if visible else None

    def manifests(self) -> Iterator[Path]:
        """Yield the manifests of all committed units; others' files, and copies of units, are left out."""
        yield from self.root.glob(f"units/*/{HEX * 2}/{HEX * 32}/manifest.json")

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
        size = self._manifest(folder)["files"][name]["size"]
        if self._use(folder, name, os.stat).st_size != size:
            raise self.damaged(folder, name, "its size differs")
        return folder / name

    def names_of_files(self, stage: str, key: str) -> list[str]:
        """Return the names of the files of a committed unit, sorted; raises as `file` does."""
        return sorted(self._manifest(self.unit_dir(stage, key))["files"])

    def forget(self, stage: str, key: str) -> None:
        """Remove a committed unit, so that it is made again."""
        folder = self.unit_dir(stage, key)
        trash = folder.with_name(f".{key}-{uuid.uuid4().hex[:8]}-attempt")
        os.rename(folder, trash)
        shutil.rmtree(trash)

    def rejected(self, stage: str, key: str) -> list[Rejection]:
        """Return what a committed unit rejected; raises as `load` does."""
        rows = json.loads(self._committed(self.unit_dir(stage, key), "rejected.json"))
        return [Rejection(**row) for row in rows]

    def _committed(self, folder: Path, name: str) -> bytes:
        """Return the bytes of one file of a committed unit, after checking their digest."""
        expected = self._manifest(folder)["files"][name]["sha256"]
        data = self._use(folder, name, Path.read_bytes)
        if hashlib.sha256(data).hexdigest() != expected:
            raise self.damaged(folder, name, "its sha256 differs")
        return data

    def _manifest(self, folder: Path) -> dict[str, Any]:
        data = self._use(folder, "manifest.json", Path.read_bytes)
        try:
            manifest: dict[str, Any] = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self.damaged(folder, "manifest.json", f"{type(error).__name__}") from error
        return manifest

    def _use[T](self, folder: Path, name: str, use: Callable[[Path], T]) -> T:
        """Call a function with the path of one file of a committed unit, once the unit can be seen here.

        The folder of a unit is renamed into place with all its files: where it is, what it lacks is missing.
        """
        path = folder / name
        with suppress(FileNotFoundError):
            return call_patiently(partial(use, path))
        if wait_until_visible(folder, self.root):
            refresh_names(path, self.root)
            with suppress(FileNotFoundError):
                return call_patiently(partial(use, path))
        raise self.damaged(folder, name, "it is missing")

    def damaged(self, folder: Path, name: str, how: str) -> IntegrityError:
        """Return the error for a file of a committed unit that is not what it was."""
        run = quote(str(self.root))
        return IntegrityError(
            f"{folder / name} is not what was committed ({how}). To have that unit made again type: "
            f"daskpipe fsck {run} --rehash --mend, then: daskpipe resume {run}"
        )

    def quarantine(self, rejections: Iterable[Rejection]) -> None:
        """Write one file a rejected structure; the same rejection twice gives the same file."""
        folder = self.root / "quarantine"
        folder.mkdir(exist_ok=True)
        for rejection in rejections:
            target = self.quarantine_file(rejection)
            if not target.exists():
                write_atomically(target, json.dumps(rejection.as_json(), indent=1, ensure_ascii=False))

    def quarantine_file(self, rejection: Rejection) -> Path:
        """Return where the quarantine keeps a rejection; names from outside never become paths."""
        name = hashlib.blake2b(canonical_json([rejection.stage, rejection.structure]).encode(), digest_size=16)
        return self.root / "quarantine" / f"{name.hexdigest()}.json"

    def quarantined(self) -> list[Rejection]:
        """Return all rejections, ordered by file name."""
        return [self.held(file) for file in self.quarantine_files()]

    def quarantine_files(self) -> list[Path]:
        """Return the files of all rejections, sorted; others' files are left out."""
        return sorted((self.root / "quarantine").glob(f"{HEX * 32}.json"))

    def held(self, file: Path) -> Rejection:
        """Return the rejection that a file of the quarantine holds.

        Raises
        ------
        IntegrityError
            If it holds none.
        """
        try:
            return Rejection(**json.loads(file.read_bytes()))
        except (ValueError, TypeError, RecursionError) as error:
            raise self.damaged(file.parent, file.name, f"{type(error).__name__}") from error

    def sweep(self) -> int:
        """Remove what attempts that never committed left behind; return how many there were."""
        left = [*self.root.glob("units/*/*/.*-attempt"), *self.root.glob(".dataset-*.zarr")]
        for folder in self.root.glob("units/*/*/.*-work"):
            for name in list_names(folder):
                if name.endswith("-running"):
                    (folder / name).unlink(missing_ok=True)
            # Checkpoints of a unit that is not committed are where it goes on.
            if (folder.parent / folder.name[1 : -len("-work")]).exists():
                left.append(folder)
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
        # What `write_atomically` had not brought into place.
        for file in [*self.root.glob(TEMPORARY), *self.root.glob(f"quarantine/{TEMPORARY}")]:
            file.unlink(missing_ok=True)
        return len(left)


HEX = "[0-9a-f]"
"""One digit of a key, in a pattern of file names."""

TEMPORARY = f".?*-{HEX * 8}"
"""Files that a process which was killed in `write_atomically` leaves."""


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that it is whole or absent, even after a power failure."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")  # fits TEMPORARY
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


def make_folders(root: Path, folder: Path) -> None:
    """Make a folder below ``units``; never the run directory itself: one that was removed under a unit stays so."""
    try:
        folder.mkdir(exist_ok=True)
    except FileNotFoundError:
        if folder.parent == root:
            raise
        make_folders(root, folder.parent)
        folder.mkdir(exist_ok=True)


def commit(root: Path, unit: Unit, payload: Payload, *, seconds: float = 0.0) -> Receipt:
    """Commit what a unit made in so many seconds: attempt directory, manifest last, fsync, rename.

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
            receipt = _publish(tree, unit, payload, seconds, attempt, final)
    except BaseException:
        shutil.rmtree(attempt, ignore_errors=True)  # on a full disk every byte counts
        raise
    shutil.rmtree(tree.work_dir(unit.stage, unit.key), ignore_errors=True)
    return receipt


def _publish(tree: Tree, unit: Unit, payload: Payload, seconds: float, attempt: Path, final: Path) -> Receipt:
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
        seconds=round(seconds, 3),
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
        first = tree.wait_for_receipt(unit)
        if first is None:
            raise DiskUnreachable(
                f"{final} was committed by another process and cannot be seen here; is {tree.root} shared by all?"
            ) from error
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
