"""Principal axes of a sample of descriptors, and the projection of all others on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Reduction:
    """Affine map from descriptors to features.

    Parameters
    ----------
    mean
        Shape (descriptor,), float64.
    axes
        Rows are orthonormal, by falling variance, shape (feature, descriptor), float64.
    explained
        Share of the sample's variance along each axis, shape (feature,).
    """

    mean: np.ndarray
    axes: np.ndarray
    explained: np.ndarray

    def __call__(self, descriptors: np.ndarray) -> np.ndarray:
        """Project descriptors, shape (structure, descriptor), to features, shape (structure, feature), float32."""
        features = np.empty((len(descriptors), len(self.axes)), dtype=np.float32)
        # One row after another: a product of matrices would round a row differently in blocks of other sizes.
        for row, descriptor in enumerate(descriptors):
            features[row] = self.axes @ (descriptor.astype(np.float64) - self.mean)
        return features


def fit(descriptors: np.ndarray, dims: int) -> Reduction:
    """Fit principal axes.

    Parameters
    ----------
    descriptors
        Sample, at least one row, shape (structure, descriptor).
    dims
        Axes wanted; axes beyond the rank of the sample are zero, so that the number of features is always `dims`.
    """
    from threadpoolctl import threadpool_limits

    sample = descriptors.astype(np.float64)
    mean = sample.mean(axis=0)
    # One thread: sums over threads would round differently on machines with other core counts.
    with threadpool_limits(1):
        _, singular, rows = np.linalg.svd(sample - mean, full_matrices=False)
    # The usual numerical rank, but of the sample before its mean was taken off: that rounds in its own scale.
    rounding = np.finfo(np.float64).eps * max(sample.shape) * np.linalg.norm(sample)
    n_axes = min(dims, int(np.sum(singular > rounding)))
    rows = rows[:n_axes]
    # An axis has two directions: its largest component shall be positive, as in scikit-learn.
    largest = rows[np.arange(n_axes), np.abs(rows).argmax(axis=1)]
    axes = np.zeros((dims, sample.shape[1]))
    explained = np.zeros(dims)
    axes[:n_axes] = rows * np.sign(largest)[:, None]
    explained[:n_axes] = (singular**2 / max(np.sum(singular**2), np.finfo(np.float64).tiny))[:n_axes]
    return Reduction(mean=mean, axes=axes, explained=explained)
