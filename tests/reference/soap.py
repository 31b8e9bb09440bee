"""SOAP by loops over atoms, images, degrees and functions: slow, and plain to read."""

from __future__ import annotations

import itertools

import numpy as np
from ase import Atoms
from scipy.linalg import fractional_matrix_power
from scipy.special import gamma, sph_harm_y


def neighbours(atoms: Atoms, cutoff: float) -> list[list[tuple[int, np.ndarray]]]:
    """Pairs of each atom, itself included: (other atom, vector to its image), from all images that could be near."""
    cell = atoms.cell.complete().array
    span = np.ptp(atoms.get_scaled_positions(wrap=False), axis=0) if atoms.pbc.any() else np.zeros(3)
    reach = np.where(atoms.pbc, np.ceil(span + cutoff * np.linalg.norm(np.linalg.inv(cell), axis=0)), 0).astype(int)
    found: list[list[tuple[int, np.ndarray]]] = [[] for _ in atoms]
    for image in itertools.product(*(range(-n, n + 1) for n in reach)):
        for i, j in itertools.product(range(len(atoms)), repeat=2):
            vector = atoms.positions[j] + image @ cell - atoms.positions[i]
            if np.linalg.norm(vector) <= cutoff:
                found[i].append((j, vector))
    return found


def basis(r_cut: float, n_max: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Exponents and Löwdin's orthonormal combinations of the primitives of one degree."""
    ends = np.linspace(1, r_cut, n_max)
    alpha = -np.log(1e-3 / ends**degree) / ends**2
    overlap = 0.5 * gamma(degree + 1.5) * (alpha[:, None] + alpha) ** (-degree - 1.5)
    return alpha, fractional_matrix_power(overlap, -0.5).real


def power_spectrum(atoms: Atoms, numbers: list[int], r_cut: float, n_max: int, l_max: int, sigma: float) -> np.ndarray:
    """Power spectra of all atoms, no compression, shape (atom, feature)."""
    eta = 1 / (2 * sigma**2)
    pairs = neighbours(atoms, r_cut + sigma * np.sqrt(2 * np.log(1000)))
    coefficients = np.zeros((len(atoms), len(numbers), l_max + 1, n_max, 2 * l_max + 1), dtype=complex)
    for degree in range(l_max + 1):
        alpha, beta = basis(r_cut, n_max, degree)
        for i, j_and_vector in enumerate(pairs):
            for j, (x, y, z) in j_and_vector:
                r = np.sqrt(x * x + y * y + z * z)
                theta, phi = (np.arccos(np.clip(z / r, -1, 1)), np.arctan2(y, x)) if r else (0.0, 0.0)
                # Integral over all space of r^l Y exp(-alpha r^2) times the neighbour's Gaussian.
                primitive = (
                    (eta / (alpha + eta)) ** degree
                    * (np.pi / (alpha + eta)) ** 1.5
                    * r**degree
                    * np.exp(-alpha * eta / (alpha + eta) * r * r)
                )
                for m in range(-degree, degree + 1):
                    coefficients[i, numbers.index(atoms.numbers[j]), degree, :, degree + m] += (
                        beta @ primitive * np.conj(sph_harm_y(degree, m, theta, phi))
                    )
    rows = []
    for c in coefficients:
        row = []
        for a, b in itertools.combinations_with_replacement(range(len(numbers)), 2):
            for degree in range(l_max + 1):
                block = np.pi * np.sqrt(8 / (2 * degree + 1)) * (c[a, degree] @ np.conj(c[b, degree]).T).real
                row.append(block[np.triu_indices(n_max)] if a == b else block.ravel())
        rows.append(np.concatenate(row))
    return np.array(rows)
