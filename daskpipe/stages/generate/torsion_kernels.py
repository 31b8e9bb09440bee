"""Turn the torsions of molecules with Numba."""

from __future__ import annotations

import numpy as np

from daskpipe.core.accelerate import kernel


@kernel
def turn_torsions(
    positions: np.ndarray,
    axes: np.ndarray,
    moving: np.ndarray,
    order: np.ndarray,
    angles: np.ndarray,
    least: np.ndarray,
    out: np.ndarray,
) -> None:
    """Turn parts of a molecule about bonds, one after the other; a turn that makes atoms clash is left out.

    Parameters
    ----------
    positions
        Å, shape (atom, 3), float64.
    axes
        The two atoms of each bond, shape (rotor, 2), int64.
    moving
        Atoms that turn with each bond, shape (rotor, atom), bool.
    order
        Rotors in the order of their turns, shape (turn,), int64.
    angles
        Angle of each turn, rad, shape (turn,), float64.
    least
        Least distance of each pair of atoms, Å, shape (atom, atom), float64.
    out
        Receives the positions, as `positions`.
    """
    n_atoms = positions.shape[0]
    out[:] = positions
    trial = np.empty_like(positions)
    for turn in range(order.shape[0]):
        rotor = order[turn]
        start, end = axes[rotor, 0], axes[rotor, 1]
        ux, uy, uz = out[end, 0] - out[start, 0], out[end, 1] - out[start, 1], out[end, 2] - out[start, 2]
        length = np.sqrt(ux * ux + uy * uy + uz * uz)
        ux, uy, uz = ux / length, uy / length, uz / length
        c, s = np.cos(angles[turn]), np.sin(angles[turn])
        clash = False
        for i in range(n_atoms):
            if clash:
                break
            if not moving[rotor, i]:
                continue
            # Rodrigues' formula
            x, y, z = out[i, 0] - out[start, 0], out[i, 1] - out[start, 1], out[i, 2] - out[start, 2]
            along = (1 - c) * (ux * x + uy * y + uz * z)
            trial[i, 0] = out[start, 0] + c * x + s * (uy * z - uz * y) + along * ux
            trial[i, 1] = out[start, 1] + c * y + s * (uz * x - ux * z) + along * uy
            trial[i, 2] = out[start, 2] + c * z + s * (ux * y - uy * x) + along * uz
            for j in range(n_atoms):
                if moving[rotor, j]:
                    continue
                dx, dy, dz = trial[i, 0] - out[j, 0], trial[i, 1] - out[j, 1], trial[i, 2] - out[j, 2]
                if dx * dx + dy * dy + dz * dz < least[i, j] * least[i, j]:
                    clash = True
                    break
        if not clash:
            for i in range(n_atoms):
                if moving[rotor, i]:
                    out[i] = trial[i]
