"""Read labelled frames of VASP's OUTCAR and vasprun.xml with ASE, and refuse steps that did not converge.

The energy is that of ASE (extrapolated to sigma = 0); the one that belongs to the forces is ``free_energy``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskpipe.stages.generate.checks import FrameError

if TYPE_CHECKING:
    from ase import Atoms

CONVERGED = "EDIFF is reached"
NOT_CONVERGED = "EDIFF was not reached"


def is_outcar(path: Path) -> bool:
    """Return whether a file is an OUTCAR by its name."""
    return "OUTCAR" in path.name and path.suffix.lower() not in (".gz", ".bz2", ".xz")


def is_vasprun(path: Path) -> bool:
    """Return whether a file is a vasprun.xml by its name."""
    return path.suffix.lower() == ".xml" and "vasprun" in path.name.lower()


def outcar_frames(path: Path) -> Iterator[Callable[[], Atoms]]:
    """Yield functions that build the ionic steps of an OUTCAR, with results in a calculator.

    Raises
    ------
    Exception
        If the header is not that of an OUTCAR.
    """
    from ase.io.vasp_parsers.vasp_outcar_parsers import OutcarHeaderParser, outcarchunks

    with path.open(errors="replace") as file:
        most = _claimed_steps(path)
        # A header parser without a folder does not look for constraints in whatever POSCAR lies beside the file.
        for chunk in outcarchunks(file, header_parser=OutcarHeaderParser()):
            yield partial(_of_chunk, chunk, most)


def _of_chunk(chunk: Any, most: int) -> Atoms:
    n_iterations = sum("Iteration" in line for line in chunk.lines) + 1  # the first one is in the chunk before
    _check_converged(
        any(NOT_CONVERGED in line for line in chunk.lines)
        or (n_iterations >= most > 1 and not any(CONVERGED in line for line in chunk.lines)),
        n_iterations,
    )
    atoms: Atoms = chunk.build()
    return atoms


def _claimed_steps(path: Path) -> int:
    """Return NELM, the largest number of electronic steps, as the header of an OUTCAR gives it; 0 if it does not."""
    with path.open(errors="replace") as lines:
        for line in lines:
            if match := re.match(r"\s*NELM\s*=\s*(\d+)", line):
                return int(match[1])
            if "Iteration" in line:
                break
    return 0


def vasprun_frames(path: Path) -> Iterator[Callable[[], Atoms]]:
    """Yield functions that build the ionic steps of a vasprun.xml, with results in a calculator.

    A truncated file, such as that of a killed run, gives its complete steps.
    """
    from ase.io.vasp import read_vasp_xml

    most, counts = _electronic_steps(path)
    for number, atoms in enumerate(read_vasp_xml(str(path), index=slice(None))):
        n_steps = counts[number] if number < len(counts) else 0
        yield partial(_of_step, atoms, n_steps, most)


def _of_step(atoms: Atoms, n_steps: int, most: int) -> Atoms:
    _check_converged(n_steps >= most > 1, n_steps)
    if atoms.calc is None:
        raise FrameError("no_energy", "the file ends before the first ionic step")
    return atoms


def _electronic_steps(path: Path) -> tuple[int, Sequence[int]]:
    """Return NELM, and the number of electronic steps of each ionic step."""
    import xml.etree.ElementTree as ElementTree

    most, counts = 0, []
    try:
        for _, element in ElementTree.iterparse(path, events=["end"]):
            if element.tag == "i" and element.attrib.get("name", "").upper() == "NELM" and element.text:
                most = int(element.text)
            elif element.tag == "calculation":
                counts.append(len(element.findall("scstep")))
                element.clear()
    except ElementTree.ParseError:  # truncated: the steps before count
        pass
    return most, counts


def _check_converged(failed: bool, n_steps: int) -> None:
    if failed:
        raise FrameError("unconverged", f"the electrons did not converge in {n_steps} steps; raise NELM and repeat it")
