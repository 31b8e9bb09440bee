"""Native evaluator of MACE models, symmetrix: whether it takes a model, and how it is converted, compiled and checked.

Import it after `daskpipe.core.third_party.import_mace`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase.data import atomic_numbers
from platformdirs import user_cache_path

from daskpipe.core.files import write_atomically
from daskpipe.core.heartbeat import send_heartbeat
from daskpipe.core.notices import send_notice
from daskpipe.core.third_party import silence_libraries
from daskpipe.core.versions import read_version
from daskpipe.potentials.mace_electrons import specs_of
from daskpipe.potentials.mace_evaluators import PACKAGE, find_misfit

if TYPE_CHECKING:
    from daskpipe.core.torch_sim import ModelInterface, SimState

SPLINE_POINTS = 512
"""Points of the splines that replace the radial functions: forces in float64 then agree to 1e-7 eV/Å."""

CHECKED_ATOMS = 256
"""Atoms, about, of the structures on which the evaluator is compared with torch before it is used."""

ENERGY_TOLERANCE = 1e-5
"""Largest difference of an energy from that of torch, eV/atom."""

FORCE_TOLERANCE = 1e-4
"""Largest difference of a force from that of torch, eV/Å, where forces are below 10 eV/Å; in proportion above."""


class NativeRefused(Exception):
    """The native evaluator cannot be used; the message says why."""


@dataclass(eq=False)
class NativeEvaluator:
    """Native evaluator of one MACE model, for one thread at a time.

    Parameters
    ----------
    evaluator
        symmetrix's evaluator, whose atomic energies are zero: sums in float32 would round them.
    atomic_energies
        Energy of an isolated atom of each element of the model, shape (element,), float64, eV.
    cutoff
        Å.
    refusal
        File that keeps the reason why the evaluator was refused for this model, for all processes.
    """

    evaluator: Any
    atomic_energies: np.ndarray
    cutoff: float
    refusal: Path
    refused: str | None = None
    """Why it is not used, if it is not."""
    checked: bool = False
    """True once it has been compared with torch."""

    def __post_init__(self) -> None:
        numbers = list(self.evaluator.atomic_numbers)
        self._types = np.full(len(atomic_numbers), -1, dtype=np.int64)
        self._types[numbers] = np.arange(len(numbers))

    def compute(
        self, numbers: np.ndarray, n_neighbours: np.ndarray, second: np.ndarray, vectors: np.ndarray, r: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute the energies of atoms and the slopes of the total energy along the vectors of edges.

        Parameters
        ----------
        numbers
            Atomic numbers, shape (atom,).
        n_neighbours
            Edges of each atom, shape (atom,), int64; edges are sorted by first atom.
        second
            Row of the second atom of each edge, shape (edge,), int64.
        vectors, r
            From the first to the second atom of each edge, shape (edge, 3), and their lengths; float64, Å.

        Returns
        -------
        energies
            Shape (atom,), float64, eV.
        slopes
            Shape (edge, 3), float64, eV/Å.
        """
        types = self._types[numbers]
        self.evaluator.compute_node_energies_forces(
            len(types), types, n_neighbours, second, types[second], vectors.reshape(-1), r
        )
        energies = np.array(self.evaluator.node_energies, dtype=np.float64)[: len(types)]
        slopes = -np.array(self.evaluator.node_forces, dtype=np.float64)[: 3 * len(second)].reshape(-1, 3)
        return energies + self.atomic_energies[types], slopes

    def compare(self, own: ModelInterface, reference: ModelInterface, state: SimState) -> None:
        """Compare the evaluator with torch on the first structures of a batch, and refuse it if they differ.

        Parameters
        ----------
        own, reference
            The models of this evaluator and of torch.
        state
            Structures; those without a finite energy are left out.
        """
        ends = state.n_atoms_per_system.cumsum(0)
        few = state[: max(1, int((ends <= CHECKED_ATOMS).sum()))]
        ours, theirs = own(few), reference(few)
        finite = theirs["energy"].isfinite()
        if not finite.any():
            return
        self.checked = True
        energy = ((ours["energy"] - theirs["energy"]).abs() / few.n_atoms_per_system)[finite]
        of_finite = finite[few.system_idx]
        forces = (ours["forces"] - theirs["forces"]).abs()[of_finite]
        limit = FORCE_TOLERANCE * max(1.0, float(theirs["forces"][of_finite].abs().max()) / 10)
        # Written so that NaN is refused.
        if not (bool((energy <= ENERGY_TOLERANCE).all()) and bool((forces <= limit).all())):
            self.refused = (
                f"it differs from torch by {float(energy.max()):.1e} eV/atom and {float(forces.max()):.1e} eV/Å "
                f"(limits {ENERGY_TOLERANCE:.0e} and {limit:.0e})"
            )
            write_atomically(self.refusal, self.refused)
            send_notice(f"MACE is evaluated by torch and not by {PACKAGE}: {self.refused}")


def prepare_or_tell(module: Any, digest: str, head: str, dtype: str) -> NativeEvaluator | str:
    """Return what `prepare_evaluator` returns, or tell and return why there is none."""
    try:
        return prepare_evaluator(module, digest, head, dtype)
    except NativeRefused as error:
        send_notice(f"MACE is evaluated by torch and not by {PACKAGE}: {error}")
        return str(error)


def prepare_evaluator(
    module: Any, digest: str, head: str | None, dtype: str, *, backend: str = "cpu"
) -> NativeEvaluator:
    """Convert and compile a model for the native evaluator, or take what another process has left in the cache folder.

    Parameters
    ----------
    module
        MACE module, which is not changed.
    digest
        Hash of the model, under which the converted one is kept.
    head, dtype
        Head to use (``None``: the only one), and ``float32`` or ``float64``.
    backend
        symmetrix's name of the code for a processor. A process has one for good.

    Raises
    ------
    NativeRefused
        If the model cannot be converted or compiled, if the cache folder cannot be written, or if the evaluator was
        refused for this model before.
    """
    if len(getattr(module, "heads", ["Default"])) == 1:
        head = None  # such a model names none
    folder = native_folder()
    facts = [digest, head, dtype, SPLINE_POINTS, *(read_version(name) for name in (PACKAGE, "mace-torch"))]
    stem = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    converted, refusal = folder / f"{stem}.json", folder / f"{stem}.refused"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # One lock for all models: symmetrix has one for each kind of model, on which it waits two minutes and no more.
        with _hold_lock(folder / "lock"):
            if refusal.exists():
                raise NativeRefused(f"{refusal.read_text()} (remove {refusal} to try again)")
            if not converted.exists():
                _convert(module, head, converted, refusal)
            evaluator = _load(converted, head, dtype, backend)
    except OSError as error:
        raise NativeRefused(f"its cache folder {folder} cannot be used: {error}") from error
    energies = np.array(json.loads(converted.read_text())["daskpipe_atomic_energies"])
    return NativeEvaluator(evaluator, energies, float(module.r_max), refusal)


def find_misfit_of_module(module: Any) -> str | None:
    """Explain why the evaluator does not take a MACE module; ``None`` if it may."""
    if specs_of(module):
        return "the model embeds charge or spin"
    try:
        contractions = [product.symmetric_contractions.contractions for product in module.products]
        max_ell = int(module.spherical_harmonics.irreps_out.lmax)
        correlation = [int(part.correlation) for layer in contractions for part in layer]
    except AttributeError as error:
        return f"the model is built in another way than symmetrix knows: {error}"
    return find_misfit({"max_ell": max_ell, "correlation": correlation})


def native_folder() -> Path:
    """Return the folder of converted and compiled models. It holds code: only its owner may read and write it."""
    return user_cache_path("daskpipe") / "native"


def _convert(module: Any, head: str | None, path: Path, refusal: Path) -> None:
    """Write a model in symmetrix's format, its atomic energies beside it instead of in it."""
    from symmetrix.extract_mace_data import extract_mace_data

    with tempfile.TemporaryDirectory(dir=path.parent) as folder, silence_libraries():
        file = Path(folder, "model.pt")
        torch.save(module, file)
        try:
            content = extract_mace_data(file, module.atomic_numbers.tolist(), head, SPLINE_POINTS)
        except Exception as error:  # it knows few kinds of models, and fails on others in many ways
            reason = f"the model cannot be converted: {_describe(error)}"
            write_atomically(refusal, reason)
            raise NativeRefused(reason) from error
    content["daskpipe_atomic_energies"] = content["atomic_energies"]
    for part in (content, *content.get("prediction_heads", {}).get("parameters", {}).values()):
        part["atomic_energies"] = [0.0] * len(part["atomic_energies"])
    write_atomically(path, json.dumps(content))


def _load(path: Path, head: str | None, dtype: str, backend: str) -> Any:
    """Build symmetrix's evaluator from a converted model, compiling it if that was not done on such a machine."""
    os.environ["SYMMETRIX_JIT_CACHE"] = str(path.parent / "compiled")
    # Else it tells to bind threads to cores, which would put all workers of a machine on one core.
    os.environ.setdefault("OMP_PROC_BIND", "false")
    # Else one for a GPU is taken where it is installed.
    os.environ["SYMMETRIX_BACKEND"] = backend
    from symmetrix import Symmetrix

    started = time.monotonic()
    # The profile is given since the choice among them depends on the free memory, and rounding on the choice.
    try:
        calculator = Symmetrix(str(path), dtype=dtype, head=head, neighbor_skin=0.0, execution_profile="speed")
    except Exception as error:  # of the compiler, of its cache, of the loaded code
        raise NativeRefused(f"the model cannot be compiled: {_describe(error)}") from error
    finally:
        # Code that is compiled with -ffast-math lets the thread that loads it flush subnormal numbers to zero.
        torch.set_flush_denormal(False)
    if calculator.jit_status == "built":
        send_notice(f"{PACKAGE} compiled a MACE model in {time.monotonic() - started:.0f} s; it is kept for later runs")
    return calculator.evaluator


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    """Wait for a lock that ends with the process, and report progress meanwhile."""
    with open(path, "a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                send_heartbeat()
                time.sleep(0.5)
        yield
