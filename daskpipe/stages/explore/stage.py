"""Exploration as a Dask bag: a partition of seeds becomes one payload of frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.geometry import find_overlap
from daskpipe.core.structures import from_atoms, total_charge
from daskpipe.engine.checkpoints import Checkpoints
from daskpipe.engine.rows import UnitRows, dataset_to_arrays, read_rows
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload
from daskpipe.stages.explore.ensembles import choose_ensemble, explain_refusal, has_pressure
from daskpipe.stages.explore.fixed_atoms import free_components
from daskpipe.stages.explore.oxidation import oxidation_states
from daskpipe.stages.explore.settings import Dynamics, Exploration, Relaxation
from daskpipe.stages.explore.trajectory import Condition, Trajectory

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms
    from dask.bag import Bag

    from daskpipe.potentials import Potential

VERSION = 3

EVALUATED_BY = "evaluated_by/"
"""Beginning of the names of tallies that count trajectories by what evaluated the potential."""

FLAT = 1e-6
"""Volume (area, length) of the periodic cell vectors over the product of their lengths below which there is none."""


def explore(
    seeds: Bag,
    build: Callable[[], Potential],
    settings: Exploration,
    run_seed: int,
    *,
    name: str = "",
    fingerprint: Callable[[list[Atoms]], np.ndarray] | None = None,
    checkpoints: Checkpoints | None = None,
) -> Bag:
    """Explore from seeds; lazy.

    Parameters
    ----------
    seeds
        Bag of `ase.Atoms` with a `daskpipe.stages.explore.trajectory.Condition` as ``condition`` in ``info``. A
        partition is run in batches that fit the device.
    build
        Builds the potential on the worker, or returns the one that the process has built before.
    settings
        See `daskpipe.stages.explore.settings`.
    run_seed
        The run's seed.
    name
        Name of the potential, under which its measured memory on a GPU is cached.
    fingerprint
        Descriptor of structures, shape (structure, feature); needed if ``dynamics.change`` is set.
    checkpoints
        Checkpoints of the unit; with these the bag has one partition.

    Returns
    -------
    dask.bag.Bag
        One `daskpipe.engine.units.Payload` a partition.
    """
    return seeds.map_partitions(explore_partition, build, settings, run_seed, name, fingerprint, checkpoints)


def explore_partition(
    seeds: list[Atoms],
    build: Callable[[], Potential],
    settings: Exploration,
    run_seed: int,
    name: str = "",
    fingerprint: Callable[[list[Atoms]], np.ndarray] | None = None,
    checkpoints: Checkpoints | None = None,
) -> list[Payload]:
    """Run the trajectories of one partition; frames are ordered by seed, then time."""
    from daskpipe.core.third_party import silence_libraries
    from daskpipe.potentials import batched_model

    with silence_libraries():  # torch-sim prints messages on import
        from daskpipe.potentials.zbl import add_repulsion
        from daskpipe.stages.explore.capacity import measure_capacity
        from daskpipe.stages.explore.relaxation import add_relaxations
        from daskpipe.stages.explore.runner import BatchRunner

    potential = build()
    trajectories = [_make_trajectory(seed, settings, run_seed, potential.elements) for seed in seeds]
    fit = [trajectory for trajectory in trajectories if not trajectory.finished]
    first: list[Any] = []
    evaluated: Counter[str] = Counter()
    if fit:
        first = add_relaxations(fit, settings)
        # The threads of a worker share the potential.
        with potential.lock:
            model = batched_model(potential, stress=any(trajectory.has_barostat for trajectory in (*first, *fit)))
            if settings.repulsion == "zbl":
                model = add_repulsion(model, {symbol for trajectory in fit for symbol in trajectory.seed.symbols})
            space = measure_capacity(
                model, [trajectory.seed for trajectory in fit], settings.batch_atoms, potential.cutoff, name
            )
            attempt = checkpoints.begin_attempt() if checkpoints else None
            BatchRunner([*first, *fit], model, settings, space, fingerprint, attempt).run()
            if by := getattr(model, "evaluated_by", ""):
                evaluated[EVALUATED_BY + by] = len(fit)
    frames = [atoms for trajectory in trajectories for atoms in trajectory.output_frames(settings.dynamics)]
    rejected = [stop for trajectory in trajectories for stop in trajectory.stops]
    arrays = dataset_to_arrays(from_atoms(frames))
    tallies = sum((Counter(trajectory.tallies) for trajectory in (*first, *trajectories)), evaluated)
    return [Payload(arrays=arrays, n_out=len(frames), rejected=rejected, tallies=tallies)]


def _make_trajectory(seed: Atoms, settings: Exploration, run_seed: int, elements: frozenset[str] | None) -> Trajectory:
    """Return the trajectory of a seed; it is finished, with a recorded reason, if the seed cannot be run."""
    seed = seed.copy()
    # Every seed spells out the default charge: random numbers must not depend on whether it was given.
    seed.info |= {"charge": total_charge(seed)}
    reason, evidence, ensemble = _check_seed(seed, settings, elements)
    trajectory = Trajectory(seed=seed, ensemble=ensemble, run_seed=run_seed)
    if seed.info.get("reference"):
        trajectory.keep_seed()
    elif reason:
        trajectory.refuse_seed(reason, evidence)
    return trajectory


def _check_seed(seed: Atoms, settings: Exploration, elements: frozenset[str] | None) -> tuple[str, str, str]:
    """Return why a seed cannot be run (one word and evidence; empty if it can), and its ensemble."""
    from daskpipe.potentials.results import unknown_elements

    if not np.isfinite(seed.positions).all() or not np.isfinite(seed.cell.array).all():
        # Neighbour lists take very long, or fail, for such a structure.
        return "not_finite", "positions or cell of the seed are not finite", ""
    vectors = seed.cell.array[seed.pbc]
    if np.linalg.svd(vectors, compute_uv=False).prod() <= FLAT * np.linalg.norm(vectors, axis=1).prod():
        return "cell", f"its periodic cell vectors do not span a volume: {vectors.tolist()}", ""
    if unknown := unknown_elements(seed, elements):
        return unknown.reason, unknown.evidence, ""
    if evidence := find_overlap(seed, settings.guards.min_distance):
        return "overlap", evidence, ""
    if settings.repulsion == "zbl" and (evidence := _repulsion_evidence(seed)):
        return "repulsion", evidence, ""
    if not free_components(seed).any():
        return "fixed", f"all of its {len(seed)} atoms are fixed, so that nothing moves; free some of them", ""
    if settings.monte_carlo:
        try:
            oxidation_states(seed, settings.monte_carlo.oxidation_states)
        except ValueError as error:
            return "oxidation_states", str(error), ""
    if evidence := _unfit_cell(seed, settings):
        return "ensemble", evidence, ""
    ensemble = ensemble_of(seed, settings.dynamics)
    # The choice of auto needs no check.
    if _named_ensemble(seed, settings.dynamics) != "auto" and (evidence := explain_refusal(ensemble, seed)):
        return "ensemble", evidence, ensemble
    return "", "", ensemble


def _repulsion_evidence(seed: Atoms) -> str | None:
    """Describe a pair of the seed that the repulsion of nuclei would push apart from the start; ``None`` if none."""
    from daskpipe.potentials.zbl import REACH

    pair = find_overlap(seed, REACH)
    return pair and f"{pair}: repulsion=zbl would push on it from the start; give repulsion=none, or a relaxed seed"


def _unfit_cell(seed: Atoms, settings: Exploration) -> str | None:
    """Explain why the cell of a seed cannot relax as the config asks; ``None`` if it can."""
    cell = "fixed" if settings.relax is None else settings.relax.cell
    if cell in ("auto", "fixed"):
        return None
    why = explain_refusal(f"npt_{cell}", seed)
    return why and f"explore.relax.cell={cell}: {why.replace('nvt_langevin', 'fixed').replace('npt_', '')}"


def _named_ensemble(seed: Atoms, dynamics: Dynamics) -> str:
    return dynamics.ensembles.get(seed.info.get("system_type", ""), dynamics.ensemble)


def ensemble_of(seed: Atoms, dynamics: Dynamics) -> str:
    """Return the ensemble that a seed is explored in.

    Parameters
    ----------
    seed
        Its cell spans a volume along periodic axes.
    dynamics
        Gives the ensemble, or ``auto``.
    """
    name = _named_ensemble(seed, dynamics)
    return choose_ensemble(seed, relax_plane=dynamics.relax_plane) if name == "auto" else name


def load_seeds(root: Path, pieces: Sequence[UnitRows], conditions: Sequence[Condition]) -> list[Atoms]:
    """Read one partition of seeds from the run directory and set the condition of each."""
    from daskpipe.core.structures import to_atoms

    ds = read_rows(root, pieces)
    seeds = []
    for index, condition in enumerate(conditions):
        atoms = to_atoms(ds, index)
        atoms.info["condition"] = condition
        seeds.append(atoms)
    return seeds


def trajectory_names(
    root: Path, pieces: Sequence[UnitRows], conditions: Sequence[Condition], dynamics: Dynamics
) -> list[str]:
    """Return the names of the trajectories of a partition in the quarantine."""
    return [
        Trajectory(seed=seed, ensemble=ensemble_of(seed, dynamics), run_seed=0).name
        for seed in load_seeds(root, pieces, conditions)
    ]


def list_seed_conditions(root: Path, pieces: Sequence[UnitRows], settings: Exploration) -> list[list[Condition]]:
    """Return the conditions that each seed is explored under; of reference data the first one, in which nothing moves.

    Whole seeds are read only where that depends on them: for several pressures, which act on some, and for
    temperatures by system type.
    """
    dynamics = settings.dynamics
    grid = list_conditions(dynamics, settings.relax)
    if len(grid) == 1 and not dynamics.temperatures_by_type:
        return [grid] * len(pieces)
    if len(dynamics.pressures) == 1 and not dynamics.temperatures_by_type:
        return [grid[:1] if marked else grid for marked in _read_reference(root, pieces)]
    from daskpipe.core.structures import to_atoms

    ds = read_rows(root, pieces)

    def list_of_seed(seed: Atoms) -> list[Condition]:
        if seed.info.get("reference"):
            return grid[:1]
        pressed = has_pressure(ensemble_of(seed, dynamics))
        return list_conditions(dynamics, settings.relax, pressed=pressed, system_type=seed.info.get("system_type", ""))

    return [list_of_seed(to_atoms(ds, index)) for index in range(len(pieces))]


def _read_reference(root: Path, pieces: Sequence[UnitRows]) -> list[bool]:
    """Return which seeds are reference data."""
    marked: list[bool] = []
    for (stage, key), group in groupby(pieces, key=lambda piece: (piece.stage, piece.key)):
        unit = RunDirectory(root).load_arrays(stage, key, ["n_atoms"], optional=["reference"])
        of_unit = unit.get("reference", np.zeros(len(unit["n_atoms"]), dtype=np.bool_))
        marked += [bool(of_unit[row]) for piece in group for row in piece.rows]
    return marked


def list_conditions(
    dynamics: Dynamics, relax: Relaxation | None = None, *, pressed: bool = True, system_type: str = ""
) -> list[Condition]:
    """Return all conditions of a seed, in their order: temperatures, then pressures, then replicas.

    A seed that no pressure acts on is explored once for all of them. Where seeds are relaxed, the frames of that go to
    the first trajectory under each pressure; without dynamics there is one trajectory a pressure, of no steps.
    """
    return [
        Condition(
            temperature=temperature,
            pressure=pressure,
            replica=replica,
            relaxation=relax is not None
            and (number, replica) == (0, 0)
            and (relax.cell != "fixed" or pressure == dynamics.pressures[0]),
        )
        for number, temperature in enumerate(
            dynamics.temperatures_by_type.get(system_type, dynamics.temperatures) or [0.0]
        )
        for pressure in (dynamics.pressures if pressed else dynamics.pressures[:1])
        for replica in range(dynamics.replicas)
    ]
