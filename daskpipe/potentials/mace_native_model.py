"""Batched MACE by the native evaluator, for systems of any periodicities."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from daskpipe.core.torch_sim import ModelInterface
from daskpipe.core.versions import read_version
from daskpipe.potentials.batches import NeighbourFinder, lost_systems, sum_segments
from daskpipe.potentials.edge_model import half_stress
from daskpipe.potentials.mace_evaluators import PACKAGE, SYMMETRIX, TORCH

if TYPE_CHECKING:
    from daskpipe.core.torch_sim import SimState
    from daskpipe.potentials.batches import Neighbours
    from daskpipe.potentials.mace_native import NativeEvaluator


class NativeMace(ModelInterface):
    """MACE by the native evaluator, once it agrees with torch on the first structures; else MACE by torch.

    The numbers of a system are the same bits alone and in any batch.

    Parameters
    ----------
    prepare
        Returns the evaluator, or why there is none; called at each evaluation.
    make_reference
        Makes the model of torch.
    cutoff
        Å.
    dtype
        Precision of the evaluator. States may have another dtype.
    compute_stress
        Whether ``forward`` returns stresses.
    """

    mixes_periodicity = True
    """Each system of a batch may be periodic along axes of its own."""

    def __init__(
        self,
        prepare: Callable[[], NativeEvaluator | str],
        make_reference: Callable[[], ModelInterface],
        *,
        cutoff: float,
        dtype: torch.dtype,
        compute_stress: bool,
    ) -> None:
        super().__init__()
        self.prepare, self.make_reference = prepare, make_reference
        self.find_neighbours = NeighbourFinder(cutoff)
        self._device = torch.device("cpu")
        self._dtype = dtype
        self._compute_stress = compute_stress
        self._compute_forces = True
        self._memory_scales_with = "n_atoms_x_density"

    @cached_property
    def reference(self) -> ModelInterface:
        """Return the model of torch."""
        return self.make_reference()

    @property
    def failures(self) -> dict[int, str]:
        """Return the reason for each system of the last batch that has no results; only torch gives any."""
        return getattr(self.reference, "failures", {}) if self._find_refusal() else {}

    @property
    def evaluated_by(self) -> str:
        """Return what evaluates the model, and why, for the summary of a run."""
        why = self._find_refusal()
        return f"{TORCH} ({why})" if why else f"{SYMMETRIX} {read_version(PACKAGE)}"

    def _find_refusal(self) -> str | None:
        """Return why torch evaluates the model, if it does."""
        native = self.prepare()
        return native if isinstance(native, str) else native.refused

    def forward(
        self, state: SimState, *, neighbours: Neighbours | None = None, **_kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Compute energy (system,), forces (atom, 3) and, if asked for, stress (system, 3, 3) in eV, eV/Å, eV/Å^3.

        The output has the state's dtype. The stress is positive under tension, as in ASE; NaN where the cell has no
        volume. `neighbours` are those of ``find_neighbours``, where they are known already.
        """
        native = self.prepare()
        if isinstance(native, str):
            return self.reference(state, neighbours=neighbours)
        if not native.checked:
            native.compare(partial(self._evaluate, native), self.reference, state)
        if native.refused:
            return self.reference(state, neighbours=neighbours)
        return self._evaluate(native, state, neighbours)

    def _evaluate(
        self, native: NativeEvaluator, state: SimState, neighbours: Neighbours | None = None
    ) -> dict[str, torch.Tensor]:
        edges = neighbours or self.find_neighbours(state)
        # Two atoms in one place have no direction: their system is lost.
        lost = lost_systems(state)
        lost[edges.system[edges.squares == 0]] = True
        vectors, squares = edges.vectors, edges.squares
        if bool(lost.any()):
            # The evaluator takes no such edges. Any other length will do, since no number of a lost system is used.
            of_lost = lost[edges.system]
            vectors, squares = torch.where(of_lost, 1.0, vectors), torch.where(of_lost, 3.0, squares)
        first, second, n_atoms = edges.first.numpy(), edges.second.numpy(), state.n_atoms
        energies, slopes = native.compute(
            state.atomic_numbers.numpy(),
            edges.per_atom.numpy(),
            second,
            vectors.double().T.contiguous().numpy(),
            squares.double().sqrt().numpy(),
        )
        forces = [np.bincount(first, slope, n_atoms) - np.bincount(second, slope, n_atoms) for slope in slopes.T]
        energy = sum_segments(torch.from_numpy(energies), state.n_atoms_per_system)
        out = {
            "energy": torch.where(lost, torch.nan, energy),
            "forces": torch.from_numpy(np.stack(forces, axis=1)),
        }
        if self._compute_stress:
            along, slope = vectors.double(), torch.from_numpy(slopes).T.contiguous()
            out["stress"] = half_stress(state, edges, lambda i, j: along[i] * slope[j] + along[j] * slope[i])
        return {name: value.to(state.dtype) for name, value in out.items()}
