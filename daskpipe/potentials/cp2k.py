"""Density functional theory of molecules and solids with CP2K."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from daskpipe.core.errors import ConfigError
from daskpipe.core.registry import FolderName
from daskpipe.potentials.child_process import TRIES, ChildEnded
from daskpipe.potentials.cp2k_input import Cp2kSettings, read_kinds, write_input
from daskpipe.potentials.cp2k_shell import Cp2kShell
from daskpipe.potentials.evaluate import calculator_of
from daskpipe.potentials.identity import Identity, identity_of_package
from daskpipe.potentials.isolated.teachers import Memory, Seconds, make_limits
from daskpipe.potentials.potential import Potential
from daskpipe.potentials.results import Evaluation, Failure, is_unconverged
from daskpipe.potentials.traits import Traits

if TYPE_CHECKING:
    from ase import Atoms

TRAITS = Traits(costly=True, batch_size=2)

PROGRAMS = ("cp2k_shell.psmp", "cp2k_shell.ssmp", "cp2k_shell", "cp2k_shell.popt", "cp2k_shell.sopt")
"""Names of the program, in the order in which they are looked for."""

FOLDERS = ("/usr/share/cp2k", "/usr/local/share/cp2k", "/opt/cp2k/data")
"""Places of CP2K's data, after the environment variable ``CP2K_DATA_DIR``."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def cp2k(
    *,
    device: str,
    dtype: str,
    functional: Literal["PBE", "BLYP", "PADE"] = "PBE",
    basis: str = "DZVP-MOLOPT-SR-GTH",
    cutoff: Positive = 500.0,
    rel_cutoff: Positive = 60.0,
    eps_scf: Positive = 1e-6,
    max_scf: Annotated[int, Field(ge=1)] = 100,
    k_width: Positive = 14.0,
    method: Literal["auto", "ot", "diagonalization"] = "auto",
    command: str | None = None,
    data: FolderName | None = None,
    threads: Annotated[int, Field(ge=1)] = 1,
    timeout: Seconds = 3600.0,
    memory: Memory | None = None,
) -> Potential:
    """Density functional theory of CP2K, for molecules and solids, with charge and spin.

    Source: doi.org/10.1063/5.0007045. The program is kept open between structures. A structure counts only if CP2K
    says that its field converged; if not, it is tried once more by diagonalisation with strong damping, and then fails
    as ``unconverged``. Molecules have open boundaries (wavelet solver). Slabs get 12 Å of vacuum.

    Parameters
    ----------
    device, dtype
        Ignored: CP2K runs on the CPU in float64.
    functional
        With the pseudopotentials made for it (Goedecker, Teter and Hutter).
    basis
        A basis set of ``BASIS_MOLOPT``, without the number of electrons.
    cutoff, rel_cutoff
        Of the grid, Ry. Hard pseudopotentials, such as that of Mg, need more: forces that do not sum to zero show it,
        and such labels are refused.
    eps_scf
        Gradient, or change of the density, at which the field counts as converged.
    max_scf
        Steps in which it must converge; three times as many in the second try.
    k_width
        Å that the number of k-points times the width of the cell must be, along each periodic vector: with 14 Å a cell
        of 14 Å has one, a cubic cell of four MgO (4.2 Å) four. Metals need 25 to 30.
    method
        ``auto`` minimises by orbital transformation where there is one k-point and no metal, else it diagonalises.
    command
        Starts ``cp2k_shell``, e.g. ``mpirun -n 4 cp2k_shell.psmp``; by default the first one on the PATH.
    data
        CP2K's folder of data, with ``BASIS_MOLOPT`` and ``GTH_POTENTIALS``.
    threads
        OpenMP threads of each rank.
    timeout, memory
        What a structure may take, s and with a unit, e.g. ``8GB``; CP2K is then started again.
    """
    folder = _find_data(data)
    kinds = read_kinds(folder, basis, functional)
    settings = Cp2kSettings(
        functional=functional, basis=basis, cutoff=cutoff, rel_cutoff=rel_cutoff, eps_scf=eps_scf, max_scf=max_scf,
        k_width=k_width, method=method,
    )  # fmt: skip
    shell = Cp2kShell(_find_program(command), make_limits(timeout, memory), threads)

    def compute_once(atoms: Atoms, *, robust: bool) -> Evaluation:
        metal = method == "auto" and atoms.pbc.any() and _is_metal(atoms)
        of_atoms = replace(settings, method="diagonalization") if metal else settings
        text = write_input(atoms, of_atoms, kinds, folder, robust=robust)
        return _try(shell, text, len(atoms), stress=bool(atoms.pbc.all()))

    def compute(atoms: Atoms) -> Evaluation:
        first = compute_once(atoms, robust=False)
        if not is_unconverged(first):
            return first
        second = compute_once(atoms, robust=True)
        if is_unconverged(second):
            assert isinstance(first, Failure)
            assert isinstance(second, Failure)
            return Failure(reason="unconverged", evidence=f"{first.evidence}; with strong damping: {second.evidence}")
        return second

    def label(structures: Sequence[Atoms]) -> list[Evaluation]:
        return [compute(atoms) for atoms in structures]

    return Potential(calculator=calculator_of(label), label=label, elements=frozenset(kinds))


def identify(**params: Any) -> Identity:
    """Identify a method by functional, basis and all else that decides its numbers.

    Raises
    ------
    ConfigError
        If there is no CP2K, or no basis set of that name.
    """
    _find_program(params["command"])
    kinds = read_kinds(_find_data(params["data"]), params["basis"], params["functional"])
    if not kinds:
        raise ConfigError(
            f"potential 'cp2k': no element has the basis {params['basis']!r} and a pseudopotential for "
            f"{params['functional']}; give e.g. basis=DZVP-MOLOPT-SR-GTH"
        )
    left_out = ("command", "data", "threads", "timeout", "memory")
    deciding = {key: value for key, value in params.items() if key not in left_out}
    name = f"CP2K {params['functional']}/{params['basis']}"
    return identity_of_package(name, "ase", {"program": "cp2k", **deciding}, elements=frozenset(kinds))


def _try(shell: Cp2kShell, text: str, n_atoms: int, *, stress: bool) -> Evaluation:
    """Compute a structure; start CP2K again if it ends, `TRIES` times in all."""
    for attempt in range(1, TRIES + 1):
        try:
            return shell.compute(text, n_atoms, stress=stress)
        except ChildEnded as error:
            if attempt == TRIES:
                return Failure(reason=error.reason, evidence=f"{error.evidence}, {TRIES} times")
    raise AssertionError("the last attempt returns")


def _find_program(command: str | None) -> list[str]:
    """Return the command that starts CP2K.

    Raises
    ------
    ConfigError
        If it is not on the PATH.
    """
    words = shlex.split(command) if command else [name for name in PROGRAMS if shutil.which(name)][:1]
    if not words or shutil.which(words[0]) is None:
        raise ConfigError(
            f"potential 'cp2k' needs the program {words[0] if words else 'cp2k_shell'}, which is not on the PATH; "
            "apt install cp2k, or give label.potential.params.command='mpirun -n 4 /path/to/cp2k_shell.psmp'"
        )
    return words


def _find_data(data: str | None) -> Path:
    """Return CP2K's folder of data.

    Raises
    ------
    ConfigError
        If there is none with the two files.
    """
    candidates = [data] if data else [os.environ.get("CP2K_DATA_DIR", ""), *FOLDERS]
    for folder in candidates:
        if folder and all((Path(folder) / name).is_file() for name in ("BASIS_MOLOPT", "GTH_POTENTIALS")):
            return Path(folder)
    raise ConfigError(
        f"potential 'cp2k': no BASIS_MOLOPT and GTH_POTENTIALS in {', '.join(filter(None, candidates))}; apt install "
        "cp2k, or give label.potential.params.data=FOLDER"
    )


def _is_metal(atoms: Atoms) -> bool:
    """Return whether all elements of a structure are metals; silicon and germanium are none."""
    from pymatgen.core import Element

    return all(Element(symbol).is_metal for symbol in set(atoms.symbols))
