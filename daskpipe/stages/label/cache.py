"""Keep the results of a teacher, one file a structure, so that no structure is paid for twice."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from daskpipe.core.structures import structure_id
from daskpipe.potentials import Evaluation, Potential, Results, evaluate

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True, kw_only=True)
class LabelCache:
    """Folder with the results of one teacher.

    Parameters
    ----------
    folder
        Created when the first result is kept.
    teacher
        Hash of all that decides the numbers of the teacher.
    """

    folder: Path
    teacher: str

    def read(self, atoms: Atoms) -> Results | None:
        """Return the results of a structure; ``None`` if there are none, or if their file is damaged."""
        try:
            with open(self._file_of(atoms), "rb") as stream, np.load(stream, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # it is made again
            return None
        if arrays.get("forces", np.zeros(0)).shape != (len(atoms), 3):
            return None
        return Results(
            energy=float(arrays["energy"]),
            forces=arrays["forces"],
            stress=arrays["stress"],
            magmoms=arrays.get("magmoms"),
        )

    def write(self, atoms: Atoms, results: Results) -> None:
        """Keep the results of a structure, all of them or nothing."""
        file = self._file_of(atoms)
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"energy": np.array(results.energy), "forces": results.forces, "stress": results.stress}
        if results.magmoms is not None:
            arrays["magmoms"] = results.magmoms
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".new", delete=False) as stream:
            np.savez(stream, allow_pickle=False, **arrays)
        os.replace(stream.name, file)

    def _file_of(self, atoms: Atoms) -> Path:
        # Positions in full: the id of a structure has them in float32.
        digest = hashlib.blake2b(digest_size=16, person=b"daskpipe-label")
        for part in (self.teacher.encode(), structure_id(atoms), np.ascontiguousarray(atoms.positions).tobytes()):
            digest.update(len(part).to_bytes(8, "little") + part)
        key = digest.hexdigest()
        return self.folder / key[:2] / f"{key}.npz"


def evaluate_cached(potential: Potential, structures: Sequence[Atoms], cache: LabelCache | None) -> list[Evaluation]:
    """Evaluate structures as `daskpipe.potentials.evaluate` does, those alone whose results are not kept yet.

    Parameters
    ----------
    potential, structures
        As for `daskpipe.potentials.evaluate`.
    cache
        Where results are kept; ``None`` to keep none. With it structures are evaluated one by one, the largest first,
        and each result is kept at once: a process that is killed loses one structure. Failures are not kept.
    """
    if cache is None:
        return evaluate(potential, structures)
    out: dict[int, Evaluation] = {}
    for index in sorted(range(len(structures)), key=lambda index: -len(structures[index])):
        kept = cache.read(structures[index])
        if kept is None:
            (made,) = evaluate(potential, [structures[index]])
            if isinstance(made, Results):
                cache.write(structures[index], made)
            out[index] = made
        else:
            out[index] = kept
    return [out[index] for index in range(len(structures))]
