"""The batched MACE for dynamics: any periodicities in one batch, states of any dtype, and faster if asked for.

To be imported after `daskpipe.potentials.mace.import_mace`.
"""

from __future__ import annotations

import shutil
import warnings
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import torch
from mace.calculators.mace_torchsim import MaceTorchSimModel
from mace.tools.compile import simplify
from mace.tools.torch_tools import default_dtype
from torch_sim import SimState

from daskpipe.core.errors import ConfigError
from daskpipe.core.third_party import silence_libraries
from daskpipe.potentials.batches import (
    NeighbourFinder,
    cell_volumes,
    complete_cells,
    lost_systems,
    periodic_axes,
    sum_segments,
)
from daskpipe.potentials.mace_electrons import find_unknown_electrons, specs_of

CUEQ = {"cuequivariance": "cuequivariance", "cuequivariance_torch": "cuequivariance-torch"}
CUEQ_ON_CUDA = {"cuequivariance_ops_torch": "cuequivariance-ops-torch-cu12"}
"""Packages by what is imported from them; a machine with CUDA 13 has ``-cu13`` for ``-cu12``."""


class MixedMace(MaceTorchSimModel):
    """MACE's own torch-sim model with a periodicity for each system.

    Neighbours are found in the state's dtype, and positions moved near the origin before they are rounded to the
    model's: how far a system has drifted costs no precision. Energies are summed in float64 in any case. Charge and
    spin are read from the extras ``charge`` and ``spin`` of the state.

    Parameters
    ----------
    module
        The MACE, which is left as it is.
    device, dtype
        Where and in what it computes. States of another dtype are taken as well.
    compute_stress
        Whether ``forward`` returns stresses.
    head
        Name of the head.
    acceleration
        ``none``, ``cueq`` or ``compile``; see `daskpipe.potentials.mace.mace`.

    Attributes
    ----------
    failures
        After ``forward``: the systems of that batch for whose charge or spin the model has no embedding, by their
        index, and why. Their energy is NaN.
    """

    mixes_periodicity = True
    """Reads the periodicity of each system of a batch."""

    model: Any
    """What is evaluated: the MACE, compiled and with sums in float64 where that is asked for."""

    def __init__(
        self,
        module: torch.nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        *,
        compute_stress: bool,
        head: str,
        acceleration: str = "none",
    ) -> None:
        # cuEquivariance's conversion sets torch's default dtype, and compiling rewrites the module.
        with silence_libraries(), default_dtype(dtype):
            super().__init__(
                module if acceleration == "none" else deepcopy(module),
                device,
                dtype,
                compute_stress=compute_stress,
                head=head,
                enable_cueq=acceleration == "cueq",
                compile_mode="default" if acceleration == "compile" else None,
            )
        self.find = NeighbourFinder(self.r_max)
        self.specs = specs_of(module)
        self.failures: dict[int, str] = {}
        if dtype == torch.float32:
            self.model = DoubleEnergy(self.model, module)

    def _setup_compile(self, compile_mode: str) -> None:
        self.model = CompiledEnergy(self.model, compile_mode)

    def _ensure_budgets(self, n_atoms: int, n_edges: int, n_systems: int) -> None:
        # What fills up needs an atom and a system of its own: else it would be counted with the last real system.
        super()._ensure_budgets(n_atoms + 1, n_edges, n_systems + 1)

    def forward(self, state: SimState, **_kwargs: Any) -> dict[str, torch.Tensor]:
        """Energy (system,), forces (atom, 3) and, if asked for, stress (system, 3, 3) in eV, eV/Å, eV/Å^3.

        The output has the state's dtype. The stress is positive under tension, as in ASE; NaN where the cell has no
        volume.
        """
        edges = self.find(state)
        near, turns = near_origin(state)
        shifts = edges.offsets.T + turns[edges.second] - turns[edges.first]
        self.neighbor_list_fn = lambda *_: (
            torch.stack([edges.first, edges.second]),
            edges.system,
            shifts.to(self.dtype),
        )
        # Without periodicity torch-sim neither wraps nor looks for images: both are done. What is not finite belongs
        # to systems that are lost, and would spread.
        charge, spin = self._electrons(state)
        inside = SimState(
            positions=near.nan_to_num(0.0, 0.0, 0.0).to(self.dtype),
            masses=state.masses.to(self.dtype),
            cell=state.cell.nan_to_num(0.0, 0.0, 0.0).to(self.dtype),
            pbc=False,
            atomic_numbers=state.atomic_numbers,
            system_idx=state.system_idx,
            _system_extras={"charge": charge.to(self.dtype), "spin": spin.to(self.dtype)},
        )
        with torch.enable_grad(), as_written():
            found = super().forward(inside)
        out = {name: found[name].to(state.dtype) for name in ("energy", "forces", "stress") if name in found}
        out["energy"] = torch.where(lost_systems(state), torch.nan, out["energy"])
        if self.failures:
            out["energy"][list(self.failures)] = torch.nan
        if "stress" in out:
            spans = cell_volumes(state.row_vector_cell).isfinite()
            out["stress"] = torch.where(spans[:, None, None], out["stress"], torch.nan)
        return out

    def _electrons(self, state: SimState) -> tuple[torch.Tensor, torch.Tensor]:
        """Return charge and 2S + 1 of each system; those that the model does not know are failures, and 0 and 1."""
        charge, spin = (
            getattr(state, name, torch.full((state.n_systems,), default, device=state.device))
            for name, default in (("charge", 0.0), ("spin", 1.0))
        )
        self.failures = {}
        if self.specs:
            pairs = zip(charge.round().int().tolist(), spin.round().int().tolist(), strict=True)
            self.failures = {
                index: why
                for index, pair in enumerate(pairs)
                if (why := find_unknown_electrons(self.specs, *pair)) is not None
            }
            strange = torch.zeros(state.n_systems, dtype=torch.bool, device=state.device)
            strange[list(self.failures)] = True
            charge, spin = torch.where(strange, 0.0, charge), torch.where(strange, 1.0, spin)
        return charge, spin


class DoubleEnergy(torch.nn.Module):
    """A MACE in float32 whose energies are sums in float64.

    An all-electron energy of 10^5 eV an atom has a rounding error of 0.01 eV an atom in float32, and more in the sum
    over a structure: the differences by which trial moves are accepted would be noise.

    Parameters
    ----------
    model
        What is evaluated.
    module
        The MACE that it is made of, neither compiled nor converted.
    """

    def __init__(self, model: torch.nn.Module, module: Any) -> None:
        super().__init__()
        self.model, self.module = model, module

    def forward(self, data: dict[str, torch.Tensor], **options: Any) -> dict[str, torch.Tensor]:
        """Return what the model returns, its ``energy`` (system,) in float64."""
        found: dict[str, torch.Tensor] = dict(self.model(data, **options))
        with torch.no_grad():
            heads = data["head"][data["batch"]]
            rows = torch.arange(len(heads), device=heads.device)
            if "interaction_energy" in found:  # a ScaleShiftMACE gives the energies of atoms in float64
                of_atoms = found["node_energy"].double()
                if hasattr(self.module, "embedding_readout"):
                    of_atoms = of_atoms + self._embedding_energy(data, rows, heads)
            else:
                of_atoms = self.module.atomic_energies_fn(data["node_attrs"])[rows, heads].double()
            energy = sum_segments(of_atoms, torch.bincount(data["batch"], minlength=len(found["energy"])))
            if "interaction_energy" not in found:
                energy = energy + found["contributions"][:, 1:].double().sum(dim=1)
        return found | {"energy": energy}

    def _embedding_energy(self, data: dict[str, torch.Tensor], rows: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """Return what charge and spin add to the energy of each atom, which MACE leaves out of ``node_energy``."""
        features = self.module.node_embedding(data["node_attrs"]) + self.module.joint_embedding(
            data["batch"], {name: data[name] for name in self.module.embedding_specs}
        )
        readout: torch.Tensor = self.module.embedding_readout(features, heads)[rows, heads].squeeze(-1)
        return torch.atleast_1d(readout).double()


class CompiledEnergy(torch.nn.Module):
    """A MACE whose energy is compiled, with the derivatives taken around the compiled code.

    MACE's own way has ``torch.autograd.grad`` compiled as one operation, which gives forces of zero with torch 2.15.

    Parameters
    ----------
    module
        The MACE, which is changed.
    mode
        Of ``torch.compile``.
    """

    def __init__(self, module: Any, mode: str) -> None:
        super().__init__()
        self.heads = getattr(module, "heads", ["Default"])
        self.r_max, self.atomic_numbers = module.r_max, module.atomic_numbers
        self.energy = torch.compile(simplify(module), mode=mode)

    def forward(self, data: dict[str, torch.Tensor], *, compute_stress: bool, **_: Any) -> dict[str, torch.Tensor]:
        """Energy, forces and stress of a padded batch; names as in MACE."""
        positions, cell, batch = data["positions"].detach().requires_grad_(True), data["cell"], data["batch"]
        strain = torch.zeros_like(cell, requires_grad=True)
        symmetric = 0.5 * (strain + strain.mT)
        cells = cell + cell @ symmetric
        shifts = (data["unit_shifts"][:, :, None] * cells[batch[data["edge_index"][0]]]).sum(dim=1)
        moved = positions + (positions[:, :, None] * symmetric[batch]).sum(dim=1)
        with warnings.catch_warnings():
            # Dynamo looks at the gradients of what it is given.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            found = self.energy(
                data | {"positions": moved, "cell": cells, "shifts": shifts}, compute_force=False, training=False
            )
        forces, virials = torch.autograd.grad(found["energy"].sum(), [positions, strain])
        out = {"energy": found["energy"], "forces": -forces}
        out |= {name: found[name] for name in ("node_energy", "interaction_energy", "contributions") if name in found}
        return out | ({"stress": virials / torch.linalg.det(cell).abs()[:, None, None]} if compute_stress else {})


def as_written() -> Any:
    """Run TorchScript without its optimiser: the first call of a process would round otherwise than later ones.

    A unit that goes on in another process would then take another course.
    """
    return torch.jit.optimized_execution(False)  # type: ignore[attr-defined]


def near_origin(state: SimState) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions near the origin, and by how many cell vectors each atom was moved back relative to its system.

    Returns
    -------
    positions
        Shape (atom, 3), Å: each system moved as one body, its first atom to the origin; then its other atoms by
        periodic cell vectors next to it.
    turns
        Shape (atom, 3): the number of cell vectors that was taken off.
    """
    system, per_system = state.system_idx, state.n_atoms_per_system
    axes = periodic_axes(state)
    cell = complete_cells(state.row_vector_cell, axes)
    start = per_system.cumsum(0) - per_system
    positions = state.positions - state.positions[start][system]
    fractions = (positions[:, :, None] * torch.linalg.inv_ex(cell)[0][system]).sum(dim=1)
    turns = torch.where(axes[system], fractions.round(), 0.0)
    return positions - (turns[:, :, None] * cell[system]).sum(dim=1), turns


def check_acceleration(acceleration: str, device: str) -> None:
    """Refuse an acceleration that cannot be had here.

    Raises
    ------
    ConfigError
        Naming what to install.
    """
    if acceleration == "cueq":
        needed = CUEQ | (CUEQ_ON_CUDA if device == "cuda" else {})
        missing = [name for name in needed if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"potential 'mace': acceleration=cueq needs {', '.join(missing)}; pip install "
                f"{' '.join(needed[name] for name in missing)} or give acceleration=none"
            )
    if acceleration == "compile" and device == "cpu" and shutil.which("g++") is None:
        raise ConfigError(
            "potential 'mace': acceleration=compile needs the compiler g++, which is not in PATH; install it or give "
            "acceleration=none"
        )
