"""Seeds, EMT and a harmonic solid for the tests of this room."""

from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from torch_sim.models.interface import ModelInterface

from daskpipe.explore.settings import Dynamics
from daskpipe.potentials import Potential, build
from daskpipe.structures import round_positions
from daskpipe.work import Payload

HOT = 600.0
"""K; well below melting, so that all sane seeds stay whole."""


def emt() -> Potential:
    return build("emt", {}, "cpu", "float64")


def seed(atoms: Atoms, *, temperature: float = HOT, replica: int = 0, system_type: str = "alloy") -> Atoms:
    atoms = round_positions(atoms.copy())
    atoms.info |= {
        "temperature": temperature, "replica": replica, "system_type": system_type, "generator": "tests",
    }  # fmt: skip
    return atoms


def crystal(symbol: str = "Cu") -> Atoms:
    return bulk(symbol, cubic=True)


BONDS = {"Cu": 2.45, "Au": 2.7, "Pd": 2.6}
"""Å; a little shorter than in the crystals, as in small clusters."""


def cluster(symbol: str = "Cu") -> Atoms:
    corners = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]])
    return Atoms(f"{symbol}4", positions=BONDS[symbol] / np.sqrt(2) * corners)


def slab() -> Atoms:
    return fcc111("Ag", (1, 2, 3), vacuum=5.0)


def compressed() -> Atoms:
    """Pair that flies apart: its first frames are sane, and then it is far too hot."""
    return Atoms("Pt2", positions=[[0, 0, 0], [0, 0, 1.95]])


def dynamics(**settings: Any) -> Dynamics:
    return Dynamics(**{"temperatures": [HOT], "steps": 20, "stride": 5, "timestep": 2.0, **settings})


def trajectories(payload: Payload) -> dict[tuple[bytes, float, int], list[bytes]]:
    """Frames of each trajectory in a payload, as structure ids: equal ids are equal bits."""
    arrays = payload.arrays
    found: dict[tuple[bytes, float, int], list[bytes]] = {}
    if not payload.n_out:
        return found
    for parent, temperature, replica, frame in zip(
        arrays["parent_id"], arrays["temperature"], arrays["replica"], arrays["structure_id"], strict=True
    ):
        key = (parent.tobytes(), float(temperature), int(replica))
        found.setdefault(key, []).append(frame.tobytes())
    return found


class Wells(ModelInterface):
    """Each atom in its own harmonic well; `spring` in eV/Å^2."""

    def __init__(self, centres: np.ndarray, spring: float) -> None:
        super().__init__()
        self.centres, self.spring = torch.as_tensor(centres), spring
        self._device, self._dtype = torch.device("cpu"), torch.float64
        self._compute_stress, self._compute_forces = False, True

    def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
        away = state.positions - self.centres
        energy = torch.zeros(state.cell.shape[0], dtype=state.dtype)
        energy.index_add_(0, state.system_idx, 0.5 * self.spring * (away**2).sum(dim=1))
        return {"energy": energy, "forces": -self.spring * away}
