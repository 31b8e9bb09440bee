"""Exploration as a Dask bag: a partition of seeds goes in, one payload of frames comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.geometry import find_overlap
from daskpipe.core.structures import from_atoms, total_charge
from daskpipe.engine.checkpoints import Checkpoints
from daskpipe.engine.rows import UnitRows, dataset_to_arrays, read_rows
from daskpipe.engine.units import Payload
from daskpipe.stages.explore.ensembles import choose, has_pressure, refusal
from daskpipe.stages.explore.fixed_atoms import free_components
from daskpipe.stages.explore.oxidation import oxidation_states
from daskpipe.stages.explore.settings import Dynamics, Exploration, Relaxation
from daskpipe.stages.explore.trajectory import Condition, Walker

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms
    from dask.bag import Bag

    from daskpipe.potentials import Potential

VERSION = 3

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
    """Explore around seeds; lazy.

    Parameters
    ----------
    seeds
        Bag of `ase.Atoms` with a `daskpipe.stages.explore.trajectory.Condition` as ``condition`` in ``info``. A
        partition flies together, as far as the device has room.
    build
        Builds the potential on the worker (or returns the one that its process built before).
    settings
        See `daskpipe.stages.explore.settings`.
    run_seed
        The run's seed.
    name
        Names the potential; how much memory it takes on a GPU is remembered under it.
    fingerprint
        Descriptor of structures, shape (structure, feature); needed if ``dynamics.change`` is set.
    checkpoints
        Where a unit leaves what it has reached; with these the bag has one partition.

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

    with silence_libraries():  # torch-sim's import has a good deal to say
        from daskpipe.potentials.zbl import add_repulsion
        from daskpipe.stages.explore.capacity import room
        from daskpipe.stages.explore.relaxation import relaxations
        from daskpipe.stages.explore.runner import Flight

    potential = build()
    walkers = [_walker(seed, settings, run_seed, potential.elements) for seed in seeds]
    fit = [walker for walker in walkers if not walker.finished]
    first: list[Any] = []
    if fit:
        first = relaxations(fit, settings)
        # The threads of a worker share the potential.
        with potential.lock:
            model = batched_model(potential, stress=any(walker.has_barostat for walker in (*first, *fit)))
            if settings.repulsion == "zbl":
                model = add_repulsion(model, {symbol for walker in fit for symbol in walker.seed.symbols})
            space = room(model, [walker.seed for walker in fit], settings.batch_atoms, potential.cutoff, name)
            attempt = checkpoints.begin_attempt() if checkpoints else None
            Flight([*first, *fit], model, settings, space, fingerprint, attempt).run()
    frames = [atoms for walker in walkers for atoms in walker.products(settings.dynamics)]
    rejected = [stop for walker in walkers for stop in walker.stops]
    arrays = dataset_to_arrays(from_atoms(frames))
    tallies = sum((Counter(walker.tallies) for walker in (*first, *walkers)), Counter())
    return [Payload(arrays=arrays, n_out=len(frames), rejected=rejected, tallies=tallies)]


def _walker(seed: Atoms, settings: Exploration, run_seed: int, elements: frozenset[str] | None) -> Walker:
    """Return the walker of a seed; it is finished, and says why, if the seed is nothing to start from."""
    seed = seed.copy()
    # All say what is the default: labels and noise must not depend on whether a structure spells it out.
    seed.info |= {"charge": total_charge(seed)}
    reason, evidence, ensemble = _ensemble(seed, settings, elements)
    walker = Walker(seed=seed, ensemble=ensemble, run_seed=run_seed)
    if reason:
        walker.refuse(reason, evidence)
    return walker


def _ensemble(seed: Atoms, settings: Exploration, elements: frozenset[str] | None) -> tuple[str, str, str]:
    """Say why a seed cannot be run (one word, and evidence; empty if it can), and in which ensemble it is."""
    from daskpipe.potentials.results import unknown_elements

    if not np.isfinite(seed.positions).all() or not np.isfinite(seed.cell.array).all():
        # Neighbour lists take their time, or more, with such a structure.
        return "not_finite", "positions or cell of the seed are not finite", ""
    vectors = seed.cell.array[seed.pbc]
    if np.linalg.svd(vectors, compute_uv=False).prod() <= FLAT * np.linalg.norm(vectors, axis=1).prod():
        return "cell", f"its periodic cell vectors do not span a volume: {vectors.tolist()}", ""
    if unknown := unknown_elements(seed, elements):
        return unknown.reason, unknown.evidence, ""
    if evidence := find_overlap(seed, settings.guards.min_distance):
        return "overlap", evidence, ""
    if settings.repulsion == "zbl" and (evidence := _repelled(seed)):
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
    # What auto chooses need not be looked at a second time.
    if _named(seed, settings.dynamics) != "auto" and (evidence := refusal(ensemble, seed)):
        return "ensemble", evidence, ensemble
    return "", "", ensemble


def _repelled(seed: Atoms) -> str | None:
    """Return which pair of a seed the repulsion of nuclei would push apart from the start; ``None`` if none."""
    from daskpipe.potentials.zbl import REACH

    pair = find_overlap(seed, REACH)
    return pair and f"{pair}: repulsion=zbl would push on it from the start; give repulsion=none, or a relaxed seed"


def _unfit_cell(seed: Atoms, settings: Exploration) -> str | None:
    """Return why the cell of a seed cannot relax as it is asked for; ``None`` if it can."""
    cell = "fixed" if settings.relax is None else settings.relax.cell
    if cell in ("auto", "fixed"):
        return None
    why = refusal(f"npt_{cell}", seed)
    return why and f"explore.relax.cell={cell}: {why.replace('nvt_langevin', 'fixed').replace('npt_', '')}"


def _named(seed: Atoms, dynamics: Dynamics) -> str:
    return dynamics.ensembles.get(seed.info.get("system_type", ""), dynamics.ensemble)


def ensemble_of(seed: Atoms, dynamics: Dynamics) -> str:
    """Return the ensemble that a seed is explored in.

    Parameters
    ----------
    seed
        Its cell spans a volume along periodic axes.
    dynamics
        Names the ensemble, or says ``auto``.
    """
    name = _named(seed, dynamics)
    return choose(seed, relax_plane=dynamics.relax_plane) if name == "auto" else name


def load_seeds(root: Path, pieces: Sequence[UnitRows], conditions: Sequence[Condition]) -> list[Atoms]:
    """Read one partition of seeds from the run directory and give each its condition."""
    from daskpipe.core.structures import to_atoms

    ds = read_rows(root, pieces)
    seeds = []
    for index, condition in enumerate(conditions):
        atoms = to_atoms(ds, index)
        atoms.info["condition"] = condition
        seeds.append(atoms)
    return seeds


def names(root: Path, pieces: Sequence[UnitRows], conditions: Sequence[Condition], dynamics: Dynamics) -> list[str]:
    """Return what the quarantine calls the trajectories of a partition."""
    return [
        Walker(seed=seed, ensemble=ensemble_of(seed, dynamics), run_seed=0).name
        for seed in load_seeds(root, pieces, conditions)
    ]


def under_pressure(root: Path, pieces: Sequence[UnitRows], dynamics: Dynamics) -> list[bool]:
    """Say which seeds are explored under each pressure; they are read only if there is more than one."""
    if len(dynamics.pressures) == 1:
        return [True] * len(pieces)
    from daskpipe.core.structures import to_atoms

    ds = read_rows(root, pieces)
    return [has_pressure(ensemble_of(to_atoms(ds, index), dynamics)) for index in range(len(pieces))]


def conditions(dynamics: Dynamics, relax: Relaxation | None = None, *, pressed: bool = True) -> list[Condition]:
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
        for number, temperature in enumerate(dynamics.temperatures or [0.0])
        for pressure in (dynamics.pressures if pressed else dynamics.pressures[:1])
        for replica in range(dynamics.replicas)
    ]
