"""Generate structures with a program of another environment, which a command starts."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import string
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from ase import Atoms
from pydantic import AfterValidator, Field

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.extras import import_extra
from daskpipe.stages.generate.reading.files import read_structures, reader_of

STAGE = "generate"

POLL = 0.05
"""Time between two looks at a program, s."""

GRACE = 5.0
"""Time between SIGTERM and SIGKILL, s."""

MOST_EVIDENCE = 400
"""Characters of what a program printed last that a rejection keeps."""

FIELDS = ("n", "seed", "out")
"""What a command may name in braces."""


def check_command(command: str) -> str:
    """Return `command` if its words and its fields in braces can be used, else raise ValueError."""
    try:
        words = shlex.split(command)
        names = {name for word in words for _, name, _, _ in string.Formatter().parse(word) if name is not None}
    except ValueError as error:
        raise ValueError(f"command {command!r} cannot be read: {error}; literal braces are doubled") from error
    if not words:
        raise ValueError("command is empty; give e.g. /opt/env/bin/python make.py --n {n} --seed {seed} --out {out}")
    if unknown := sorted(names - set(FIELDS)):
        raise ValueError(
            f"command names {{{unknown[0]}}}; it may name {{n}}, {{seed}} and {{out}}; literal braces are doubled"
        )
    if "out" not in names:
        raise ValueError("command does not name {out}, the folder in which the program writes its files; add it")
    return command


StartFolder = Annotated[str, AfterValidator(lambda folder: os.path.abspath(Path(folder).expanduser()))]
"""Folder in which a program starts; a relative one is below the folder in which the config is read."""

Command = Annotated[str, AfterValidator(check_command)]
"""Words of a command, with ``{n}``, ``{seed}`` and ``{out}``."""


def external(
    *,
    rng: np.random.Generator,
    command: Command,
    output: str = "*.extxyz",
    folder: StartFolder | None = None,
    batch: Annotated[int, Field(ge=1, le=100_000)] = 16,
    time_limit: Annotated[float, Field(gt=0)] = 3600.0,
    silence_limit: Annotated[float, Field(gt=0)] = 900.0,
) -> Iterator[Atoms | Rejection]:
    """Yield the structures that one call of a program writes to files.

    The program runs in its own environment: no variable of this Python environment is passed on, no shell reads the
    command, and all that it has started is ended with it. Whether the same seed gives the same structures is up to
    the program.

    Parameters
    ----------
    rng
        Stream that the seed of the program comes from.
    command
        Words of the command. ``{n}`` is the number of structures to make, ``{seed}`` a whole number from 1 to 2^31 - 1,
        ``{out}`` an empty folder in which the program writes.
    output
        Glob of the files to read in ``{out}``, in the order of their names: extxyz, CIF, POSCAR and all formats of
        `daskpipe.stages.generate.reading.files`, and ``*.sdf``, to whose molecules missing hydrogens are added.
    folder
        Folder in which the program starts; ``{out}`` by default.
    batch
        Structures that one call makes.
    time_limit, silence_limit
        Wall time of a call, and time in which it neither prints anything nor writes to its files, s.

    Yields
    ------
    ase.Atoms or Rejection
        A rejection ends what a call makes, with what the program printed last. Reasons: ``not_started``, ``crashed``
        (it ended with an error), ``time_limit``, ``silence``, ``no_output``; and those of files that cannot be read.

    Raises
    ------
    ValueError
        When called, if the program or the folder does not exist.
    """
    words = shlex.split(command)
    start = Path(folder) if folder else None
    if start is not None and not start.is_dir():
        raise ValueError(f"folder: there is no folder {folder!r}; give the one in which the program starts")
    if shutil.which(words[0], path=_own_environment().get("PATH")) is None and not (
        start and start.joinpath(words[0]).exists()
    ):
        raise ValueError(f"command: there is no program {words[0]!r}; give the path of one, e.g. /opt/env/bin/python")
    return _run_program(rng, words, output, start, batch, time_limit, silence_limit)


def family_size(params: Mapping[str, Any]) -> int:
    """Return the number of structures that one call of the program makes."""
    return int(params["batch"])


def _run_program(
    rng: np.random.Generator,
    words: list[str],
    output: str,
    start: Path | None,
    batch: int,
    time_limit: float,
    silence_limit: float,
) -> Iterator[Atoms | Rejection]:
    name = Path(words[0]).name
    seed = int(rng.integers(1, 2**31))
    with tempfile.TemporaryDirectory(prefix="daskpipe-external-") as scratch:
        out, log = Path(scratch, "out"), Path(scratch, "log")
        out.mkdir()
        filled = [word.format(n=batch, seed=seed, out=out) for word in words]
        failure = _watch_program(filled, start or out, out, log, time_limit, silence_limit)
        if failure:
            yield _reject(name, *failure, log)
            return
        files = sorted(path for path in out.glob(output) if path.is_file())
        if not files:
            written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*"))
            what = f"it wrote {', '.join(written[:5])}" if written else "it wrote nothing"
            yield _reject(name, "no_output", f"no file {output!r}: {what}", log)
            return
        for path in files:
            read = _read_sdf if path.suffix.lower() == ".sdf" else read_structures
            label = f"{name}/{path.relative_to(out).as_posix()}"
            if read is read_structures and reader_of(path) is None:
                yield Rejection(stage=STAGE, structure=label, reason="unknown_format", evidence=f"output: {path.name}")
                continue
            yield from read(path, name=label)


def _own_environment() -> dict[str, str]:
    """Return the environment variables without those of the Python environment that daskpipe runs in."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "CONDA"))}
    own = Path(os.environ["VIRTUAL_ENV"], "bin") if "VIRTUAL_ENV" in os.environ else None
    parts = kept.get("PATH", os.defpath).split(os.pathsep)
    return kept | {"PATH": os.pathsep.join(part for part in parts if own is None or Path(part) != own)}


def _watch_program(
    words: list[str], start: Path, out: Path, log: Path, time_limit: float, silence_limit: float
) -> tuple[str, str] | None:
    """Run a program to its end; return reason and evidence if it fails or is stopped."""
    with log.open("wb") as stream:
        try:
            # A session of its own: what the program starts is ended with it.
            process = subprocess.Popen(
                words,
                cwd=start,
                env=_own_environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return "not_started", f"{words[0]}: {error.strerror}"
        try:
            return _wait(process, out, log, time_limit, silence_limit)
        finally:
            _end_session(process)


def _wait(
    process: subprocess.Popen[bytes], out: Path, log: Path, time_limit: float, silence_limit: float
) -> tuple[str, str] | None:
    begun = heard = time.monotonic()
    seen = -1
    while True:
        try:
            code = process.wait(POLL)
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            written = _count_bytes(out, log)
            if written != seen:
                seen, heard = written, now
            if now - begun > time_limit:
                return "time_limit", f"it ran longer than time_limit = {time_limit:g} s"
            if now - heard > silence_limit:
                return "silence", f"it neither printed nor wrote anything for silence_limit = {silence_limit:g} s"
            continue
        if code == 0:
            return None
        return "crashed", f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _count_bytes(out: Path, log: Path) -> int:
    """Return how much a program has printed and written; one more for each file."""
    total = log.stat().st_size
    for path in out.rglob("*"):
        try:
            total += 1 + path.stat().st_size
        except FileNotFoundError:  # a temporary file of the program
            continue
    return total


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _reject(name: str, reason: str, evidence: str, log: Path) -> Rejection:
    printed = log.read_text(errors="replace").strip() if log.exists() else ""
    last = f"; it printed last: ...{printed[-MOST_EVIDENCE:]}" if len(printed) > MOST_EVIDENCE else ""
    last = last or (f"; it printed: {printed}" if printed else "; it printed nothing")
    return Rejection(stage=STAGE, structure=name, reason=reason, evidence=f"{evidence}{last}")


def _read_sdf(path: Path, *, name: str) -> Iterator[Atoms | Rejection]:
    """Yield the molecules of an SDF file, with all hydrogens explicit, charge and spin multiplicity."""
    Chem = import_extra("rdkit.Chem")  # noqa: N806

    for number, molecule in enumerate(Chem.SDMolSupplier(str(path), sanitize=True, removeHs=False)):
        if molecule is None:
            yield Rejection(
                stage=STAGE, structure=f"{name}#{number}", reason="unreadable", evidence="RDKit refuses the molecule"
            )
            continue
        full = Chem.AddHs(molecule, addCoords=True)
        atoms = Atoms([atom.GetAtomicNum() for atom in full.GetAtoms()], positions=full.GetConformer().GetPositions())
        radicals = sum(atom.GetNumRadicalElectrons() for atom in full.GetAtoms())
        atoms.info = {
            "name": f"{name}#{number}",
            "system_type": "molecule",
            "charge": Chem.GetFormalCharge(full),
            "spin_multiplicity": radicals + 1,
        }
        yield atoms
