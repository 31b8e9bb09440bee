"""Displace atoms along the normal modes of a structure, as far as a temperature takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.units import kB
from pydantic import BeforeValidator

from daskpipe.core.errors import ConfigError
from daskpipe.core.structures import total_charge
from daskpipe.potentials import Failure, build_potential, evaluate, identify_potential
from daskpipe.potentials.catalogue import check_params, make_paths_absolute
from daskpipe.stages.generate.disorder import find_close_atoms

STEP = 0.01
"""Displacement of the finite differences, Å."""

SOFTEST = 0.0005
"""Least stiffness of a mode that is used, eV/(Å^2 amu): translations, rotations and unstable modes lie below.

It is that of a mode of 0.35 THz, or 12 1/cm."""

LARGEST = 0.5
"""Largest root mean square displacement of an atom along one mode, Å: beyond, no mode is harmonic."""

HALVINGS = 8
"""Number of times that displacements are halved, at most, until no two atoms are too close."""


class Modes(NamedTuple):
    """Normal modes of a structure.

    Parameters
    ----------
    stiffness
        Eigenvalues of the mass-weighted Hessian, eV/(Å^2 amu), shape (mode,); the squares of angular frequencies.
    vectors
        Displacements of the atoms for a mass-weighted amplitude of one, 1/sqrt(amu), shape (mode, atom, 3).
    """

    stiffness: np.ndarray
    vectors: np.ndarray


def check_potential(value: Any) -> dict[str, Any]:
    """Return name and checked parameters of a potential, given as a mapping or by its name alone.

    Raises
    ------
    ValueError
        For an unknown potential or parameter.
    """
    given: Any = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str) or set(given) - {"name", "params"}:
        raise ValueError(f"expected the name of a potential, or {{name: NAME, params: {{...}}}}; received {value!r}")
    try:
        params = check_params(given["name"], given.get("params") or {})
        return {"name": given["name"], "params": make_paths_absolute(given["name"], params)}
    except ConfigError as error:
        raise ValueError(str(error)) from error


PotentialChoice = Annotated[dict[str, Any], BeforeValidator(check_potential)]
"""A potential by name, and its parameters."""


def hash_potential(choice: Mapping[str, Any]) -> str:
    """Return the hash of what decides the numbers of a potential."""
    return identify_potential(choice["name"], choice["params"]).hash


def find_modes(atoms: Atoms, choice: Mapping[str, Any]) -> Modes | Failure:
    """Return the normal modes of a structure by central differences of the forces, six evaluations an atom.

    Parameters
    ----------
    atoms
        Any structure; a periodic one has the modes of its cell. Away from a minimum, modes are those of the curvature.
    choice
        From `check_potential`. It is evaluated on the CPU in float64.

    Returns
    -------
    Modes or Failure
        Modes stiffer than `SOFTEST`; a failure if the potential cannot compute the structure.
    """
    key = (atoms.numbers.tobytes(), atoms.positions.tobytes(), atoms.cell.array.tobytes(), atoms.pbc.tobytes())
    return _find_modes(key, atoms.get_masses().tobytes(), total_charge(atoms), json.dumps(dict(choice), sort_keys=True))


@lru_cache(maxsize=64)
def _find_modes(key: tuple[bytes, ...], masses: bytes, charge: int, choice: str) -> Modes | Failure:
    numbers, positions = np.frombuffer(key[0], np.int64), np.frombuffer(key[1]).reshape(-1, 3)
    pbc = np.frombuffer(key[3], np.bool_)
    start = Atoms(numbers, positions, cell=np.frombuffer(key[2]).reshape(3, 3), pbc=pbc, info={"charge": charge})
    read = json.loads(choice)
    potential = build_potential(read["name"], read["params"], device="cpu", dtype="float64")
    moved = []
    for component in range(positions.size):
        for sign in (1, -1):
            atoms = start.copy()
            atoms.positions.flat[component] += sign * STEP
            moved.append(atoms)
    results = evaluate(potential, moved)
    for result in results:
        if isinstance(result, Failure):
            return result
    forces = np.array([result.forces.ravel() for result in results if not isinstance(result, Failure)])
    hessian = -(forces[::2] - forces[1::2]) / (2 * STEP)
    weights = np.repeat(np.frombuffer(masses), 3) ** -0.5
    stiffness, vectors = np.linalg.eigh((hessian + hessian.T) / 2 * weights[:, None] * weights)
    stiff = stiffness > SOFTEST
    displacements = (weights[:, None] * vectors[:, stiff]).T.reshape(-1, len(numbers), 3)
    return Modes(stiffness=stiffness[stiff], vectors=displacements)


def displace_along_modes(
    rng: np.random.Generator, atoms: Atoms, modes: Modes, temperature: float, min_distance: float
) -> None:
    """Displace atoms, in place, by what a harmonic solid or molecule does at a temperature.

    Amplitudes are Gaussian, of variance ``kT / stiffness`` (classical statistics); all displacements are halved until
    no two atoms are too close.

    Parameters
    ----------
    rng
        The structure's stream.
    atoms
        The structure; `modes` are its own, or those of one that was strained a little.
    modes
        From `find_modes`.
    temperature
        K.
    min_distance
        Shortest distance allowed, as a fraction of the sum of the two covalent radii.
    """
    amplitude = rng.normal(size=len(modes.stiffness)) * (kB * temperature / modes.stiffness) ** 0.5
    reach = np.sqrt((modes.vectors**2).sum(axis=2).max(axis=1)) if len(amplitude) else np.zeros(0)
    amplitude = np.clip(amplitude, -LARGEST / np.maximum(reach, 1e-12), LARGEST / np.maximum(reach, 1e-12))
    moves = np.tensordot(amplitude, modes.vectors, axes=1) if len(amplitude) else np.zeros_like(atoms.positions)
    start = atoms.positions.copy()
    for halving in range(HALVINGS):
        atoms.positions = start + moves / 2**halving
        if not len(find_close_atoms(atoms, min_distance)):
            return
    atoms.positions = start
