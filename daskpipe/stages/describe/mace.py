"""Node features of a MACE model as a descriptor of atoms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from daskpipe import potentials
from daskpipe.core.errors import ConfigError
from daskpipe.core.registry import FileName
from daskpipe.potentials import mace
from daskpipe.stages.describe.reduction import mean_over_atoms
from daskpipe.stages.describe.species import check_species

if TYPE_CHECKING:
    from ase import Atoms


class MACE:
    """Node features of a MACE model (arXiv:2206.07697), in the order of ``MACECalculator.get_descriptors``.

    Rotations leave the features as they are with `invariants_only`. The last bits of a row may depend on the structures
    that are in the same batch.

    Parameters
    ----------
    species
        Chemical symbols that may occur; the number of features does not depend on them.
    model, head
        As for the potential ``mace``: ``bundled``, a file, or the name of a foundation model.
    invariants_only
        Leave out vectors and higher tensors.
    num_layers
        Layers of the model whose features are taken, from the first one on; -1 for all.
    average
        ``off``: a row an atom. ``outer``: the mean over a structure's atoms.
    dtype
        Precision of the model and of the result.
    device
        ``cpu``, ``cuda`` or ``auto``.

    Raises
    ------
    ConfigError
        If the model does not know one of the species, or has fewer layers.
    InputError
        If the model is not available.
    """

    def __init__(
        self,
        *,
        species: Sequence[str],
        model: FileName = "bundled",
        head: str | None = None,
        invariants_only: bool = True,
        num_layers: Annotated[int, Field(ge=-1)] = -1,
        average: Literal["off", "outer"] = "off",
        dtype: Literal["float32", "float64"] = "float32",
        device: str = "cpu",
    ) -> None:
        known = potentials.identify_potential("mace", {"model": model, "head": head})
        self._potential = potentials.build_potential("mace", {"model": model, "head": head}, device, dtype)
        elements = self._potential.elements or frozenset()
        if strange := sorted(set(species) - elements):
            raise ConfigError(
                f"{known.name} knows {', '.join(sorted(elements))} and not {', '.join(strange)}; give "
                "describe.params.model=MODEL that knows all elements, or describe=soap"
            )
        self._choice: dict[str, Any] = {"invariants_only": invariants_only, "num_layers": num_layers}
        self._average = average
        self._hypers = {
            "species": sorted(set(species)),
            "model": model,
            "head": head,
            **self._choice,
            "average": average,
            "dtype": dtype,
            "device": device,
        }
        self.dtype = np.dtype(dtype)
        self.n_features = len(mace.node_feature_columns(self._potential, **self._choice))

    @staticmethod
    def identify(params: Mapping[str, Any]) -> potentials.Identity:
        """Identify the model from the parameters of a config, without building it."""
        return potentials.identify_potential(
            "mace", {name: params[name] for name in ("model", "head") if name in params}
        )

    def hypers(self) -> dict[str, Any]:
        """Return all parameters, as JSON types; ``MACE(**mace.hypers())`` is the same descriptor."""
        return {**self._hypers, "species": list(self._hypers["species"])}

    def compute(self, structures: Sequence[Atoms]) -> np.ndarray:
        """Return the descriptor.

        Returns
        -------
        numpy.ndarray
            Shape (structure, feature), or (atom, feature) over all structures with ``average="off"``.

        Raises
        ------
        ValueError
            If a structure holds an element that is not in `species`.
        """
        check_species(structures, self._hypers["species"])
        rows = mace.node_features(self._potential, structures, **self._choice)
        if self._average == "off":
            return rows
        return mean_over_atoms(rows, [len(atoms) for atoms in structures])
