"""Count effectively different structures by their features."""

from __future__ import annotations

import numpy as np

BANDWIDTH = 0.5
"""Width of the kernel, in root mean square distances of the structures from their mean."""


def compute_vendi_score(features: np.ndarray) -> float:
    """Return the Vendi score (DOI 10.48550/arXiv.2210.02410): the effective number of different structures.

    It is the exponential of the entropy of the eigenvalues of the kernel matrix, here of a Gaussian kernel half as
    wide as the root mean square distance of the structures from their mean: 1 if all are alike, 2 for two clumps,
    about 5 for a normal distribution along a line.

    Parameters
    ----------
    features
        Shape (structure, feature), finite, at least one row. Time and memory grow with the square of the rows.

    Examples
    --------
    >>> two_clumps = np.array([[0.0], [0.0], [9.0], [9.0]])
    >>> round(compute_vendi_score(two_clumps), 2), round(compute_vendi_score(np.zeros((3, 2))), 2)
    (2.0, 1.0)
    """
    points = features.astype(np.float64)
    points -= points.mean(axis=0)
    squares = (points**2).sum(axis=1)
    spread = squares.mean()
    distances = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0)
    kernel = np.exp(-distances / (2 * BANDWIDTH**2 * spread)) if spread > 0 else np.ones_like(distances)
    weights = np.linalg.eigvalsh(kernel / len(points))
    weights = weights[weights > 1e-15]
    return float(np.exp(-(weights * np.log(weights)).sum()))
