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
        # In float64 and one row after another in effect: the float32 result does not depend on the block.
        return ((descriptors.astype(np.float64) - self.mean) @ self.axes.T).astype(np.float32)


def fit(descriptors: np.ndarray, dims: int) -> Reduction:
    """Fit principal axes.

    Parameters
    ----------
    descriptors
        Sample, shape (structure, descriptor).
    dims
        Axes wanted; axes beyond the rank of the sample are zero, so that the number of features is always `dims`.
    """
    from sklearn.decomposition import PCA

    n_axes = min(dims, *descriptors.shape)
    pca = PCA(n_components=n_axes, svd_solver="full").fit(descriptors.astype(np.float64))
    axes = np.zeros((dims, descriptors.shape[1]))
    explained = np.zeros(dims)
    axes[:n_axes] = pca.components_
    explained[:n_axes] = np.nan_to_num(pca.explained_variance_ratio_)
    return Reduction(mean=pca.mean_, axes=axes, explained=explained)
