"""Models with known statistical mechanics, runs in memory and error bars for the physics tests of this room."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from scipy import stats

from daskpipe.core import constants
from daskpipe.core.torch_sim import ModelInterface
from daskpipe.stages.explore.batch import Batch
from daskpipe.stages.explore.guards import finite_guard
from daskpipe.stages.explore.integrate import cell_determinant, sum_per_system
from daskpipe.stages.explore.settings import Dynamics, Schedule
from daskpipe.stages.explore.trajectory import Condition, Trajectory

SIGMAS = 5
"""Standard errors that a mean may be off; a seeded test that fails once in two million other seeds is not luck."""
LEAST_P = 1e-5
"""p-value of a Kolmogorov-Smirnov test below which samples do not follow the distribution."""
RUN_SEED = 11


class ModelOnCpu(ModelInterface):
    """float64 on the CPU, forces and stresses."""

    def __init__(self) -> None:
        super().__init__()
        self._device, self._dtype = torch.device("cpu"), torch.float64
        self._compute_stress = self._compute_forces = True


class IdealGas(ModelOnCpu):
    """No energy, forces or stress."""

    def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
        return {
            "energy": torch.zeros(len(state.cell), dtype=torch.float64),
            "forces": torch.zeros_like(state.positions),
            "stress": torch.zeros_like(state.cell),
        }


class Elastic(ModelOnCpu):
    """Atoms on springs to the sites of a lattice that floats freely, in a cell that is elastic.

    With the deformation F of the cell and J = det F the energy is
    ``spring / 2 sum |u_i|^2 + bulk / 2 (ln J)^2 + shear / 2 (Tr F F^T / J^(2/3) - 3)``. The displacements u_i from the
    sites, which strain with the cell, are taken after their mean: the energy does not depend on where the whole is.
    The shape energy does not depend on the volume, and so the two are independent in any ensemble.

    Parameters
    ----------
    seeds
        Systems of the batch; they have the sites and the cells of F = 1.
    spring
        eV/Å^2.
    bulk, shear
        eV.
    """

    def __init__(self, seeds: Sequence[Atoms], spring: float = 0.0, bulk: float = 0.0, shear: float = 0.0) -> None:
        super().__init__()
        self.spring, self.bulk, self.shear = spring, bulk, shear
        self.scaled = torch.as_tensor(np.concatenate([seed.get_scaled_positions(wrap=False) for seed in seeds]))
        self.unstrain = torch.linalg.inv(torch.as_tensor(np.stack([seed.cell.array for seed in seeds])))

    def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
        system, cell = state.system_idx, state.cell.mT
        n_systems = len(cell)

        def total(values: torch.Tensor) -> torch.Tensor:
            return torch.zeros(n_systems, *values.shape[1:], dtype=values.dtype).index_add(0, system, values)

        away = state.positions - (self.scaled[:, :, None] * cell[system]).sum(dim=1)
        away = away - (total(away) / torch.bincount(system)[:, None])[system]
        deformation = self.unstrain @ cell
        dilation, metric = torch.log(torch.linalg.det(deformation)), deformation.mT @ deformation
        metric = metric * torch.exp(-2 / 3 * dilation)[:, None, None]
        trace, one = metric.diagonal(dim1=1, dim2=2).sum(dim=1), torch.eye(3, dtype=torch.float64)
        slope = self.spring * total(away[:, :, None] * away[:, None, :])
        slope = slope + self.shear * (metric - trace[:, None, None] / 3 * one)
        slope = slope + self.bulk * dilation[:, None, None] * one
        return {
            "energy": 0.5 * (self.spring * total((away**2).sum(dim=1)) + self.bulk * dilation**2)
            + 0.5 * self.shear * (trace - 3),
            "forces": -self.spring * away,
            "stress": slope / torch.linalg.det(cell)[:, None, None],
        }


def dynamics(**settings: Any) -> Dynamics:
    """Conditions whose lengths do not matter: the tests count the steps."""
    return Dynamics(**{"temperatures": [300.0], "steps": 10**6, "stride": 10**6, **settings})


def make_trajectories(
    seeds: Sequence[Atoms], ensemble: str | Sequence[str], temperature: Schedule = 300.0, pressure: float = 0.0
) -> list[Trajectory]:
    """Return a trajectory of each seed, with random numbers of its own."""
    names = [ensemble] * len(seeds) if isinstance(ensemble, str) else ensemble
    found = []
    for number, (seed, name) in enumerate(zip(seeds, names, strict=True)):
        atoms = seed.copy()
        atoms.info["condition"] = Condition(temperature=temperature, pressure=pressure, replica=number)
        found.append(Trajectory(seed=atoms, ensemble=name, run_seed=RUN_SEED))
    return found


def sample(
    batch: Batch, observe: Callable[[Batch], Any], *, samples: int, every: int = 1, before: int = 0
) -> np.ndarray:
    """Run a batch and return what is observed, shape (sample, ...).

    Parameters
    ----------
    batch
        Advanced in place.
    observe
        Called after every `every` steps, once `before` steps have passed.
    samples
        How many.
    """
    found: list[np.ndarray] = []
    n_steps = 0

    def look() -> bool:
        nonlocal n_steps
        n_steps += 1
        if n_steps > before and (n_steps - before) % every == 0:
            found.append(np.array(observe(batch)))
        return True

    last = before + samples * every
    while n_steps < last:
        faults = batch.run_steps(min(32, last - n_steps), [finite_guard()], look)
        assert not faults, faults
    return np.stack(found)


def kinetic(batch: Batch) -> np.ndarray:
    """Kinetic energies, eV, shape (system,)."""
    systems = batch.systems
    return 0.5 * sum_per_system(batch.state.momenta**2 / systems.masses, systems).sum(dim=1).numpy()


def volume(batch: Batch) -> np.ndarray:
    """Volumes, Å^3, shape (system,)."""
    return cell_determinant(batch.state.cell).abs().numpy()


def net_momentum(batch: Batch) -> np.ndarray:
    """Largest component of the total momentum of each system over sqrt(kT M) at 300 K, shape (system,)."""
    systems = batch.systems
    total = sum_per_system(batch.state.momenta, systems).abs().amax(dim=1)
    mass = sum_per_system(systems.masses, systems)[:, 0]
    return (total / (constants.KB * 300 * mass).sqrt()).numpy()


def mean(samples: np.ndarray) -> tuple[float, float]:
    """Mean and standard error of samples (sample, replica); replicas are independent, samples of one need not be."""
    of_replica = samples.mean(axis=0)
    return float(of_replica.mean()), float(of_replica.std(ddof=1) / np.sqrt(of_replica.size))


def check_mean(samples: np.ndarray, expected: float, bias: float = 0.0) -> None:
    """Assert that the mean of samples (sample, replica) is the expected one to `SIGMAS` errors and a known bias."""
    found, error = mean(samples)
    assert abs(found - expected) < SIGMAS * error + bias, f"{found:.6g} +- {error:.2g}, expected {expected:.6g}"


def check_distribution(samples: np.ndarray, law: Any) -> None:
    """Assert that samples, decorrelated, follow a law of `scipy.stats`."""
    found = stats.kstest(samples.ravel(), law.cdf)
    assert found.pvalue > LEAST_P, f"p = {found.pvalue:.2g}, distance {found.statistic:.3g} of {samples.size} samples"


def correlation(samples: np.ndarray) -> float:
    """Correlation of samples (sample, replica) with the next ones of the same replica."""
    away = samples - samples.mean()
    return float((away[1:] * away[:-1]).mean() / (away**2).mean())
