"""Read and write a run directory: committed units, quarantine, config, dataset."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.errors import ConfigError, IntegrityError, Rejection
from daskpipe.core.files import HEX, TEMPORARY, write_atomically
from daskpipe.core.hashing import canonical_json
from daskpipe.core.shared_disk import call_patiently, list_names, refresh_names, wait_until_visible
from daskpipe.engine.units import Receipt, Unit

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class RunDirectory:
    """The run directory."""

    root: Path

    @classmethod
    def of(cls, run_dir: Path | str) -> RunDirectory:
        """Return the directory of a run that exists.

        Raises
        ------
        ConfigError
            If it is no run directory.
        """
        directory = cls(Path(run_dir).absolute())
        if not directory.config.is_file():
            raise ConfigError(f"{run_dir} is no run directory (it has no config.yaml); see: ls runs")
        return directory

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
            None if it cannot be seen here after `daskpipe.core.shared_disk.PATIENCE_SECONDS`.
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
