"""Drive CP2K through ``cp2k_shell``, kept open between structures, and ask for convergence after each calculation."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from daskpipe.core.errors import ConfigError
from daskpipe.potentials.child_process import ChildEnded, ChildLimits, ChildProcess
from daskpipe.potentials.results import Evaluation, Failure, checked_results

READY = "* READY"
"""Line with which the shell says that it waits for a command."""

MOST_LINES = 1000
"""Lines of a banner, at most, before the shell is ready."""

NOT_CONVERGED = re.compile(r"SCF run NOT converged|Leaving .* SCF loop .* NOT converged|Maximum number of SCF")
"""Words of CP2K for a self-consistent field that did not converge; before 2024.1 it gives numbers all the same."""

CONVERGED = re.compile(r"SCF run converged in|outer SCF loop converged")


class ShellError(Exception):
    """CP2K refused a command."""


class Cp2kShell:
    """One process of CP2K.

    Parameters
    ----------
    command
        Program and arguments that start ``cp2k_shell``.
    limits
        What it may take.
    threads
        OpenMP threads of a rank.
    """

    def __init__(self, command: Sequence[str], limits: ChildLimits, threads: int) -> None:
        self.command = list(command)
        self.limits = limits
        self.threads = threads
        self._child: ChildProcess | None = None
        self._folder = Path()

    def compute(self, text: str, n_atoms: int, *, stress: bool) -> Evaluation:
        """Compute one structure.

        Parameters
        ----------
        text
            Input file.
        n_atoms
            Number of atoms.
        stress
            Whether to read the stress.

        Returns
        -------
        Results or Failure
            ``unconverged`` if CP2K does not say that the field converged, with the last change that it printed.

        Raises
        ------
        ChildEnded
            If CP2K ends, or does not answer in time.
        """
        self._start()
        source, log = self._folder / "structure.inp", self._folder / "structure.out"
        source.write_text(text)
        log.unlink(missing_ok=True)
        try:
            number = int(self._ask(f"LOAD {source.name} {log.name}")[0])
            self._ask(f"EVAL_EF {number}")
            if fault := find_unconverged(log.read_text(errors="replace")):
                self._ask(f"DESTROY {number}")
                return fault
            energy = float(self._ask(f"GET_E {number}")[0])
            numbers = " ".join(self._ask(f"GET_F {number}")).split()
            forces = np.array(numbers[1:], dtype=float).reshape(n_atoms, 3)
            tensor = None
            if stress:
                tensor = -np.array(self._ask(f"GET_STRESS {number}")[0].split(), dtype=float).reshape(3, 3)
                tensor = (tensor + tensor.T) / 2
            self._ask(f"DESTROY {number}")
        except ShellError as error:
            self.close()
            return Failure(reason="failed", evidence=f"CP2K: {error}")
        except ChildEnded as error:
            written = log.read_text(errors="replace") if log.exists() else ""
            self.close()
            # From 2024.1 on a field that does not converge ends the program.
            if error.reason == "crashed" and NOT_CONVERGED.search(written):
                fault = find_unconverged(written)
                assert fault is not None
                return fault
            said = _last_error(written)
            raise ChildEnded(error.reason, f"{error.evidence}{said}") from error
        except BaseException:
            self.close()
            raise
        return checked_results(energy=energy, forces=forces, stress=tensor)

    def _start(self) -> None:
        """Start CP2K, unless it runs."""
        if self._child is not None and self._child.lives:
            return
        self.close()
        self._folder = Path(tempfile.mkdtemp(prefix="daskpipe-cp2k-"))
        environment = {"OMP_NUM_THREADS": str(self.threads)}
        child = ChildProcess(self.command, self.limits, folder=self._folder, environment=environment)
        self._child = child
        try:
            for _ in range(MOST_LINES):
                if child.read_line().strip() == READY:
                    break
            for command in ("UNITS_EV_A", "HARSH"):
                self._ask(command)
        except ChildEnded as error:
            self.close()
            raise ConfigError(f"{' '.join(self.command)} does not start: {error.evidence}") from error

    def _ask(self, command: str) -> list[str]:
        """Send a command; return the lines of its answer without the last, `READY`."""
        assert self._child is not None
        self._child.write(f"{command}\n".encode())
        lines = []
        while (line := self._child.read_line().strip()) != READY:
            if line.startswith("* ERROR"):
                raise ShellError(f"{command.split()[0]}: {line.removeprefix('*').strip()}")
            if line != "* END":
                lines.append(line)
        return lines

    def close(self) -> None:
        """End CP2K and remove its folder."""
        if self._child is not None:
            self._child.kill()
            self._child = None
            shutil.rmtree(self._folder, ignore_errors=True)


def find_unconverged(log: str) -> Failure | None:
    """Return the failure of a calculation whose output does not say that its field converged; else ``None``.

    Examples
    --------
    >>> find_unconverged("  *** SCF run converged in    12 steps ***") is None
    True
    """
    if CONVERGED.search(log) and not NOT_CONVERGED.search(log):
        return None
    # "    20 OT DIIS     0.15E+00    0.3     0.00123456       -17.1640447508 -1.2E-02"
    steps = re.findall(r"^\s+(\d+)\s+\S.*?\s(\d+\.\d+(?:E[-+]\d+)?)\s+(-?\d+\.\d{6,})\s+\S+$", log, re.MULTILINE)
    last = f"; its last change was {float(steps[-1][1]):.1e}" if steps else ""
    return Failure(reason="unconverged", evidence=f"the SCF did not converge in {len(steps)} steps{last}")


def _last_error(log: str) -> str:
    """Return what CP2K wrote in the box of its error, as the end of a sentence."""
    _, _, box = log.rpartition("[ABORT]")
    words = [line.strip(" *\\/_|") for line in box.splitlines() if line.strip().startswith("*")]
    text = " ".join(word.removeprefix("___").strip() for word in words if any(c.isalpha() for c in word))
    return f"; CP2K wrote: {text[:300]}" if text else ""
