"""Wrap an ASE calculator as a torch-sim model, which runs one structure after another on the CPU in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from daskpipe.core.torch_sim import ModelInterface
from daskpipe.potentials.batches import periodic_axes
from daskpipe.potentials.results import Failure, run_calculator

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from daskpipe.core.torch_sim import SimState


class AseModel(ModelInterface):
    """ASE calculator behind torch-sim's interface.

    The numbers of a system depend on that system alone: not on the other systems of the batch, on their order, or on
    earlier calls. They are the same bits in any batch.

    Parameters
    ----------
    calculator
        ASE calculator.
    compute_stress
        Whether ``forward`` returns stresses (NaN for systems that are not periodic along all vectors).

    Attributes
    ----------
    failures
        After ``forward``: the reason for each system of that batch that has no results, by index of the system.
        Energy, forces and stress of such a system are NaN.
    """

    mixes_periodicity = True
    """Each system of a batch may be periodic along axes of its own."""

    def __init__(self, calculator: Calculator, *, compute_stress: bool = False) -> None:
        super().__init__()
        self.calculator = calculator
        self.failures: dict[int, str] = {}
        self._device = torch.device("cpu")
        self._dtype = torch.float64
        self._compute_stress = compute_stress
        self._compute_forces = True
        self._memory_scales_with = "n_atoms"

    def forward(self, state: SimState, **_kwargs: Any) -> dict[str, torch.Tensor]:
        """Compute energy (system,), forces (atom, 3) and, if asked for, stress (system, 3, 3) in eV, eV/Å, eV/Å^3.

        Charge and spin multiplicity are taken from the state's extras ``charge`` and ``spin``, if it has them.
        The output has the state's device and dtype.
        """
        positions = state.positions.detach().cpu().numpy().astype(float)
        cells = state.row_vector_cell.detach().cpu().numpy().astype(float)
        numbers = state.atomic_numbers.cpu().numpy()
        system = state.system_idx.cpu().numpy()
        axes = periodic_axes(state).cpu().numpy()
        extras = {
            info: getattr(state, extra).cpu().numpy().round().astype(int)
            for extra, info in (("charge", "charge"), ("spin", "spin_multiplicity"))
            if getattr(state, extra, None) is not None
        }
        n_systems = len(cells)
        energy = np.full(n_systems, np.nan)
        forces = np.full(positions.shape, np.nan)
        stress = np.full((n_systems, 3, 3), np.nan)
        self.failures = {}
        for index in range(n_systems):
            rows = np.flatnonzero(system == index)
            atoms = Atoms(numbers[rows], positions=positions[rows], cell=cells[index], pbc=axes[index])
            atoms.info = {info: int(values[index]) for info, values in extras.items()}
            evaluation = run_calculator(self.calculator, atoms, stress=self._compute_stress)
            if isinstance(evaluation, Failure):
                self.failures[index] = f"{evaluation.reason}: {evaluation.evidence}"
                continue
            energy[index] = evaluation.energy
            forces[rows] = evaluation.forces
            stress[index] = voigt_6_to_full_3x3_stress(evaluation.stress)
        out = {"energy": energy, "forces": forces} | ({"stress": stress} if self._compute_stress else {})
        return {name: torch.as_tensor(value, dtype=state.dtype, device=state.device) for name, value in out.items()}
