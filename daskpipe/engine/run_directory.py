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
from typing import Any

import numpy as np

from daskpipe.core.errors import ConfigError, IntegrityError, Rejection
from daskpipe.core.files import HEX, TEMPORARY, write_atomically
from daskpipe.core.hashing import canonical_json
from daskpipe.core.shared_disk import call_patiently, list_names, refresh_names, wait_until_visible
from daskpipe.engine.units import Receipt, Unit


@dataclass(frozen=True)
class RunDirectory:
    """Read and write the files of one run directory.

    Parameters
    ----------
    root
        Its path. To open the directory of a run that exists use `open_existing`, which checks it.
    """

    root: Path

    @classmethod
    def open_existing(cls, run_dir: Path | str) -> RunDirectory:
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
        """Path of the published dataset."""
        return self.root / "dataset.zarr"

    @property
    def config(self) -> Path:
        """Path of the resolved config."""
        return self.root / "config.yaml"

    def unit_dir(self, stage: str, key: str) -> Path:
        """Return the path of the folder of a committed unit."""
        return self.root / "units" / stage / key[:2] / key

    def work_dir(self, stage: str, key: str) -> Path:
        """Return the path of the folder with the marks and checkpoints of a unit that is not committed."""
        return self.root / "units" / stage / key[:2] / f".{key}-work"

    def read_receipt(self, unit: Unit) -> Receipt | None:
        """Return the receipt of a unit; ``None`` if it is not committed."""
        folder = self.unit_dir(unit.stage, unit.key)
        if not call_patiently(folder.exists):
            return None
        manifest = self._read_manifest(folder)
        return Receipt(**manifest["receipt"])

    def wait_for_receipt(self, unit: Unit, check: Callable[[], None] = lambda: None) -> Receipt | None:
        """Wait until a committed unit is visible on this machine; return its receipt.

        Parameters
        ----------
        unit
            A unit that a worker has reported as committed.
        check
            Called during the wait; it raises an error to end the wait.

        Returns
        -------
        Receipt or None
            None if the unit is not visible after `daskpipe.core.shared_disk.PATIENCE_SECONDS`.
        """
        visible = wait_until_visible(self.unit_dir(unit.stage, unit.key), self.root, check)
        return self.read_receipt(unit) if visible else None

    def list_manifests(self) -> Iterator[Path]:
        """Yield the paths of the manifests of all committed units; foreign files and copies of units are left out."""
        yield from self.root.glob(f"units/*/{HEX * 2}/{HEX * 32}/manifest.json")

    def load_arrays(
        self, stage: str, key: str, names: Iterable[str] | None = None, *, optional: Iterable[str] = ()
    ) -> dict[str, np.ndarray]:
        """Return the arrays of a committed unit, after checking their digest.

        Parameters
        ----------
        stage, key
            The unit.
        names
            Names of the arrays; by default all.
        optional
            Names of arrays that are added where the unit has them.

        Raises
        ------
        IntegrityError
            If the payload differs from what was committed.
        """
        data = self._read_checked(self.unit_dir(stage, key), "payload.npz")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in (archive.files if names is None else names)}
            return arrays | {name: archive[name] for name in optional if name in archive.files}

    def unit_file(self, stage: str, key: str, name: str) -> Path:
        """Return the path of one file of a committed unit, after checking its size.

        Raises
        ------
        IntegrityError
            If the file is missing or was cut.
        """
        folder = self.unit_dir(stage, key)
        size = self._read_manifest(folder)["files"][name]["size"]
        if self._use_file(folder, name, os.stat).st_size != size:
            raise self.damage_error(folder, name, "its size differs")
        return folder / name

    def list_files(self, stage: str, key: str) -> list[str]:
        """Return the names of the files of a committed unit, sorted; raises as `unit_file` does."""
        return sorted(self._read_manifest(self.unit_dir(stage, key))["files"])

    def forget_unit(self, stage: str, key: str) -> None:
        """Remove a committed unit, so that the next run makes it again."""
        folder = self.unit_dir(stage, key)
        trash = folder.with_name(f".{key}-{uuid.uuid4().hex[:8]}-attempt")
        os.rename(folder, trash)
        shutil.rmtree(trash)

    def read_rejections(self, stage: str, key: str) -> list[Rejection]:
        """Return the rejections of a committed unit; raises as `load_arrays` does."""
        rows = json.loads(self._read_checked(self.unit_dir(stage, key), "rejected.json"))
        return [Rejection(**row) for row in rows]

    def _read_checked(self, folder: Path, name: str) -> bytes:
        """Return the bytes of one file of a committed unit, after checking their digest."""
        expected = self._read_manifest(folder)["files"][name]["sha256"]
        data = self._use_file(folder, name, Path.read_bytes)
        if hashlib.sha256(data).hexdigest() != expected:
            raise self.damage_error(folder, name, "its sha256 differs")
        return data

    def _read_manifest(self, folder: Path) -> dict[str, Any]:
        data = self._use_file(folder, "manifest.json", Path.read_bytes)
        try:
            manifest: dict[str, Any] = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self.damage_error(folder, "manifest.json", f"{type(error).__name__}") from error
        return manifest

    def _use_file[T](self, folder: Path, name: str, use: Callable[[Path], T]) -> T:
        """Call a function with the path of one file of a committed unit, once the unit is visible here.

        The folder of a unit is renamed into place with all its files: a file that a visible folder lacks is missing.
        """
        path = folder / name
        with suppress(FileNotFoundError):
            return call_patiently(partial(use, path))
        if wait_until_visible(folder, self.root):
            refresh_names(path, self.root)
            with suppress(FileNotFoundError):
                return call_patiently(partial(use, path))
        raise self.damage_error(folder, name, "it is missing")

    def damage_error(self, folder: Path, name: str, how: str) -> IntegrityError:
        """Return the error for a file that differs from what was committed; `how` says in what."""
        run = quote(str(self.root))
        return IntegrityError(
            f"{folder / name} is not what was committed ({how}). To have that unit made again type: "
            f"daskpipe fsck {run} --rehash --mend, then: daskpipe resume {run}"
        )

    def write_quarantine(self, rejections: Iterable[Rejection]) -> None:
        """Write one file a rejected structure; writing the same rejection twice gives one file."""
        folder = self.root / "quarantine"
        folder.mkdir(exist_ok=True)
        for rejection in rejections:
            target = self.quarantine_file(rejection)
            if not target.exists():
                write_atomically(target, json.dumps(rejection.as_json(), indent=1, ensure_ascii=False))

    def quarantine_file(self, rejection: Rejection) -> Path:
        """Return the path of the file of a rejection, named by a hash: names from outside never become paths."""
        name = hashlib.blake2b(canonical_json([rejection.stage, rejection.structure]).encode(), digest_size=16)
        return self.root / "quarantine" / f"{name.hexdigest()}.json"

    def read_quarantine(self) -> list[Rejection]:
        """Return all rejections in the quarantine, ordered by the names of their files."""
        return [self.read_rejection(file) for file in self.quarantine_files()]

    def quarantine_files(self) -> list[Path]:
        """Return the paths of the files of all rejections, sorted; foreign files are left out."""
        return sorted((self.root / "quarantine").glob(f"{HEX * 32}.json"))

    def read_rejection(self, file: Path) -> Rejection:
        """Return the rejection in a file of the quarantine.

        Raises
        ------
        IntegrityError
            If the file holds none.
        """
        try:
            return Rejection(**json.loads(file.read_bytes()))
        except (ValueError, TypeError, RecursionError) as error:
            raise self.damage_error(file.parent, file.name, f"{type(error).__name__}") from error

    def remove_leftovers(self) -> int:
        """Remove the files and marks of attempts that never committed; return how many folders were removed."""
        leftovers = [*self.root.glob("units/*/*/.*-attempt"), *self.root.glob(".dataset-*.zarr")]
        for folder in self.root.glob("units/*/*/.*-work"):
            for name in list_names(folder):
                if name.endswith("-running"):
                    (folder / name).unlink(missing_ok=True)
            # The checkpoints of a unit that is not committed stay: the next attempt continues from them.
            if (folder.parent / folder.name[1 : -len("-work")]).exists():
                leftovers.append(folder)
        for folder in leftovers:
            shutil.rmtree(folder, ignore_errors=True)
        # Files that `write_atomically` had not renamed yet.
        for file in [*self.root.glob(TEMPORARY), *self.root.glob(f"quarantine/{TEMPORARY}")]:
            file.unlink(missing_ok=True)
        return len(leftovers)
