"""Batched MACE for dynamics, with any periodicities in one batch, states of any dtype, and optional acceleration.

Import it after `daskpipe.core.third_party.import_mace`.
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

from daskpipe.core.errors import ConfigError
from daskpipe.core.third_party import silence_libraries
from daskpipe.core.torch_sim import SimState
from daskpipe.potentials.batches import (
    NeighbourFinder,
    Neighbours,
    cell_volumes,
    complete_cells,
    lost_systems,
    periodic_axes,
    sum_segments,
)
from daskpipe.potentials.mace_electrons import find_unknown_electrons, specs_of
from daskpipe.potentials.mace_evaluators import TORCH

CUEQ = {"cuequivariance": "cuequivariance", "cuequivariance_torch": "cuequivariance-torch"}
CUEQ_ON_CUDA = {"cuequivariance_ops_torch": "cuequivariance-ops-torch-cu12"}
"""Packages by the modules that are imported from them; on a machine with CUDA 13 ``-cu13`` replaces ``-cu12``."""


class MixedMace(MaceTorchSimModel):
    """MACE's own torch-sim model with a periodicity for each system.

    Neighbours are found in the state's dtype, and positions are moved near the origin before they are rounded to the
    model's dtype, so that drift costs no precision. Energies are always summed in float64. Charge and spin are taken
    from the state's extras ``charge`` and ``spin``.

    Parameters
    ----------
    module
        MACE module, which is not changed.
    device, dtype
        Device and precision of the computation. States may have another dtype.
    compute_stress
        Whether ``forward`` returns stresses.
    head
        Name of the head.
    acceleration
        ``none``, ``cueq`` or ``compile``; see `daskpipe.potentials.mace.mace`.

    Attributes
    ----------
    failures
        After ``forward``: the reason for each system of that batch for whose charge or spin the model has no embedding,
        by index of the system. The energy of such a system is NaN.
    """

    mixes_periodicity = True
    """Each system of a batch may be periodic along axes of its own."""

    evaluated_by = TORCH
    """Name of what evaluates the model, and why, for the summary of a run."""

    model: Any
    """MACE as it is evaluated: compiled, and with sums in float64, where that is asked for."""

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
        self.find_neighbours = NeighbourFinder(self.r_max)
        self.specs = specs_of(module)
        self.failures: dict[int, str] = {}
        if dtype == torch.float32:
            self.model = DoubleEnergy(self.model, module)

    def _setup_compile(self, compile_mode: str) -> None:
        self.model = CompiledEnergy(self.model, compile_mode)

    def _ensure_budgets(self, n_atoms: int, n_edges: int, n_systems: int) -> None:
        # Padding needs an atom and a system of its own: else it would count as part of the last real system.
        super()._ensure_budgets(n_atoms + 1, n_edges, n_systems + 1)

    def forward(
        self, state: SimState, *, neighbours: Neighbours | None = None, **_kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Compute energy (system,), forces (atom, 3) and, if asked for, stress (system, 3, 3) in eV, eV/Å, eV/Å^3.

        The output has the state's dtype. The stress is positive under tension, as in ASE; NaN where the cell has no
        volume. `neighbours` are those of ``find_neighbours``, where they are known already.
        """
        edges = neighbours or self.find_neighbours(state)
        near, turns = near_origin(state)
        shifts = edges.offsets.T + turns[edges.second] - turns[edges.first]
        self.neighbor_list_fn = lambda *_: (
            torch.stack([edges.first, edges.second]),
            edges.system,
            shifts.to(self.dtype),
        )
        # Without periodicity torch-sim neither wraps nor searches for images: both are done above. Numbers that are not
        # finite belong to lost systems and would spread.
        charge, spin = self._read_electrons(state)
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
            results = super().forward(inside)
        out = {name: results[name].to(state.dtype) for name in ("energy", "forces", "stress") if name in results}
        out["energy"] = torch.where(lost_systems(state), torch.nan, out["energy"])
        if self.failures:
            out["energy"][list(self.failures)] = torch.nan
        if "stress" in out:
            spans = cell_volumes(state.row_vector_cell).isfinite()
            out["stress"] = torch.where(spans[:, None, None], out["stress"], torch.nan)
        return out

    def _read_electrons(self, state: SimState) -> tuple[torch.Tensor, torch.Tensor]:
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
    """MACE in float32 with energies summed in float64.

    An all-electron energy of 10^5 eV an atom has a rounding error of 0.01 eV an atom in float32, and a larger one in
    the sum over a structure. Differences of such sums, by which trial moves are accepted, would be noise.

    Parameters
    ----------
    model
        Model to evaluate.
    module
        MACE module that it was made from, neither compiled nor converted.
    """

    def __init__(self, model: torch.nn.Module, module: Any) -> None:
        super().__init__()
        self.model, self.module = model, module

    def forward(self, data: dict[str, torch.Tensor], **options: Any) -> dict[str, torch.Tensor]:
        """Return the model's output with ``energy`` (system,) in float64."""
        out: dict[str, torch.Tensor] = dict(self.model(data, **options))
        with torch.no_grad():
            heads = data["head"][data["batch"]]
            rows = torch.arange(len(heads), device=heads.device)
            if "interaction_energy" in out:  # a ScaleShiftMACE gives the energies of atoms in float64
                of_atoms = out["node_energy"].double()
                if hasattr(self.module, "embedding_readout"):
                    of_atoms = of_atoms + self._embedding_energy(data, rows, heads)
            else:
                of_atoms = self.module.atomic_energies_fn(data["node_attrs"])[rows, heads].double()
            energy = sum_segments(of_atoms, torch.bincount(data["batch"], minlength=len(out["energy"])))
            if "interaction_energy" not in out:
                energy = energy + out["contributions"][:, 1:].double().sum(dim=1)
        return out | {"energy": energy}

    def _embedding_energy(self, data: dict[str, torch.Tensor], rows: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """Compute the energy of each atom from charge and spin, which MACE leaves out of ``node_energy``."""
        features = self.module.node_embedding(data["node_attrs"]) + self.module.joint_embedding(
            data["batch"], {name: data[name] for name in self.module.embedding_specs}
        )
        readout: torch.Tensor = self.module.embedding_readout(features, heads)[rows, heads].squeeze(-1)
        return torch.atleast_1d(readout).double()


class CompiledEnergy(torch.nn.Module):
    """MACE with compiled energy, and derivatives taken outside of the compiled code.

    MACE itself compiles ``torch.autograd.grad`` as one operation, which gives zero forces with torch 2.15.

    Parameters
    ----------
    module
        MACE module, which is changed.
    mode
        Mode of ``torch.compile``.
    """

    def __init__(self, module: Any, mode: str) -> None:
        super().__init__()
        self.heads = getattr(module, "heads", ["Default"])
        self.r_max, self.atomic_numbers = module.r_max, module.atomic_numbers
        self.energy = torch.compile(simplify(module), mode=mode)

    def forward(self, data: dict[str, torch.Tensor], *, compute_stress: bool, **_: Any) -> dict[str, torch.Tensor]:
        """Compute energy, forces and stress of a padded batch; names as in MACE."""
        positions, cell, batch = data["positions"].detach().requires_grad_(True), data["cell"], data["batch"]
        strain = torch.zeros_like(cell, requires_grad=True)
        symmetric = 0.5 * (strain + strain.mT)
        cells = cell + cell @ symmetric
        shifts = (data["unit_shifts"][:, :, None] * cells[batch[data["edge_index"][0]]]).sum(dim=1)
        moved = positions + (positions[:, :, None] * symmetric[batch]).sum(dim=1)
        with warnings.catch_warnings():
            # Dynamo reads the gradients of its inputs.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            energies = self.energy(
                data | {"positions": moved, "cell": cells, "shifts": shifts}, compute_force=False, training=False
            )
        forces, virials = torch.autograd.grad(energies["energy"].sum(), [positions, strain])
        out = {"energy": energies["energy"], "forces": -forces}
        out |= {
            name: energies[name] for name in ("node_energy", "interaction_energy", "contributions") if name in energies
        }
        return out | ({"stress": virials / torch.linalg.det(cell).abs()[:, None, None]} if compute_stress else {})


def as_written() -> Any:
    """Run TorchScript without its optimiser, with which the first call of a process rounds differently from later ones.

    A unit that continues in another process would otherwise get other numbers.
    """
    return torch.jit.optimized_execution(False)  # type: ignore[attr-defined]


def near_origin(state: SimState) -> tuple[torch.Tensor, torch.Tensor]:
    """Move positions near the origin, and count the cell vectors by which each atom was moved relative to its system.

    Returns
    -------
    positions
        Shape (atom, 3), Å: each system is moved as one body, its first atom to the origin; then its other atoms are
        moved next to it by periodic cell vectors.
    turns
        Shape (atom, 3): number of cell vectors that were subtracted.
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
    """Refuse an acceleration that is not available here.

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
                f"{' '.join(needed[name] for name in missing)} or give acceleration=auto"
            )
    if acceleration == "compile" and device == "cpu" and shutil.which("g++") is None:
        raise ConfigError(
            "potential 'mace': acceleration=compile needs the compiler g++, which is not in PATH; install it or give "
            "acceleration=auto"
        )
