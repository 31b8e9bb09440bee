"""Features that tests pick from."""

import numpy as np


def clouds(n_rows: int, n_features: int = 3, *, n_clouds: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows around far centres, nine in ten of them around the first; and the cloud of each row."""
    rng = np.random.default_rng(seed)
    shares = [0.9, *[0.1 / (n_clouds - 1)] * (n_clouds - 1)]
    cloud = np.concatenate([np.arange(n_clouds), rng.choice(n_clouds, size=n_rows - n_clouds, p=shares)])
    centers = 20 * np.eye(n_clouds, n_features) + 10 * np.arange(n_clouds)[:, None]
    return (centers[cloud] + rng.standard_normal((n_rows, n_features))).astype(np.float32), cloud


def on_a_lattice(n_rows: int, n_features: int = 2, *, side: int = 5, seed: int = 0) -> np.ndarray:
    """Rows on few points of a lattice: many are equal, and many distances too."""
    return np.random.default_rng(seed).integers(0, side, (n_rows, n_features)).astype(np.float32)
