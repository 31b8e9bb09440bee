"""Principal axes of a sample of descriptors, and projection of descriptors on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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

    def __call__(self, descriptors: np.ndarray, *, normalise: bool = False) -> np.ndarray:
        """Project descriptors on the axes.

        Parameters
        ----------
        descriptors
            Shape (row, descriptor), float32 or float64.
        normalise
            Scale each row to length one first, as in `unit_length`.

        Returns
        -------
        numpy.ndarray
            Shape (row, feature), float32. A row's features do not depend on the other rows. The products are of the
            precision of `descriptors`.
        """
        from daskpipe.stages.describe.reduction_kernels import project_rows

        rows = np.ascontiguousarray(descriptors)
        factors = np.ones(len(rows), rows.dtype)
        if normalise:
            factors = _unit_factors(rows)
        features = np.empty((len(rows), len(self.axes)), dtype=np.float32)
        project_rows(rows, factors, self.mean.astype(rows.dtype), self._padded_axes[rows.dtype.name], features)
        return features

    @cached_property
    def _padded_axes(self) -> dict[str, np.ndarray]:
        """Axes transposed and padded for the kernel, by dtype."""
        from daskpipe.stages.describe.reduction_kernels import STEP

        n_features, n_columns = self.axes.shape
        padded = np.zeros((-(-n_columns // STEP) * STEP, n_features))
        padded[:n_columns] = self.axes.T
        return {name: padded.astype(name) for name in ("float32", "float64")}


def mean_over_atoms(rows: np.ndarray, n_atoms: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the mean row of each structure, summed in float64 over its atoms alone.

    Parameters
    ----------
    rows
        Shape (atom, descriptor), the atoms of one structure after those of the other.
    n_atoms
        Atoms of each structure, shape (structure,).

    Returns
    -------
    numpy.ndarray
        Shape (structure, descriptor), dtype of `rows`.
    """
    means = np.empty((len(n_atoms), rows.shape[1]), dtype=rows.dtype)
    stops = np.cumsum(n_atoms, dtype=np.int64)
    for index, (stop, n) in enumerate(zip(stops.tolist(), n_atoms, strict=True)):
        means[index] = rows[stop - n : stop].mean(axis=0, dtype=np.float64)
    return means


def unit_length(rows: np.ndarray) -> np.ndarray:
    """Scale each row to length one, as SOAP kernels do; rows of zeros stay. Shape and dtype of `rows`."""
    return rows * _unit_factors(rows)[:, None]


def _unit_factors(rows: np.ndarray) -> np.ndarray:
    """Return the factor that scales each row to length one, shape (row,), dtype of `rows`."""
    from daskpipe.stages.describe.reduction_kernels import write_lengths

    lengths = np.empty(len(rows))
    write_lengths(np.ascontiguousarray(rows), lengths)
    return (1 / np.where(lengths > 0, lengths, 1)).astype(rows.dtype)


class PrincipalAxes:
    """Fit principal axes to rows that are added a few at a time; memory holds one batch of them.

    Incremental principal component analysis (Ross et al., DOI 10.1007/s11263-007-0075-7) as scikit-learn has it. The
    batches are of a size that `dims` alone fixes, so the result depends on the rows and their order and on nothing
    else. With no more rows than a batch it is the exact analysis.

    Parameters
    ----------
    dims
        Axes wanted; axes beyond the rank of the sample are zero, so that the number of features is always `dims`.
    """

    def __init__(self, dims: int) -> None:
        self.dims = dims
        # Directions kept between batches: many more than asked for, since a direction that one batch drops is lost.
        self._kept = max(64, 2 * dims)
        self._batch = np.empty((0, 0))
        self._filled = 0
        self._square_sum = 0.0
        self._n_rows = 0
        self._pca: Any = None

    def add_rows(self, rows: np.ndarray) -> None:
        """Add rows of the sample, shape (row, descriptor)."""
        if not self._batch.size:
            self._batch = np.empty((4 * self._kept, rows.shape[1]))
        while len(rows):
            taken = rows[: len(self._batch) - self._filled]
            self._batch[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            rows = rows[len(taken) :]
            if self._filled == len(self._batch):
                self._absorb_batch()

    def make_reduction(self) -> Reduction:
        """Return the axes of the rows added so far.

        Raises
        ------
        ValueError
            If there was no row.
        """
        if self._filled:
            self._absorb_batch()
        if self._pca is None:
            raise ValueError("axes need at least one row, received none; add rows first")
        singular, mean = self._pca.singular_values_, self._pca.mean_
        # The usual numerical rank, but of the sample before its mean was taken off: that rounds in its own scale.
        rounding = np.finfo(np.float64).eps * max(self._n_rows, len(mean)) * np.sqrt(self._square_sum)
        n_axes = min(self.dims, int(np.sum(singular > rounding)))
        axes = np.zeros((self.dims, len(mean)))
        explained = np.zeros(self.dims)
        axes[:n_axes] = self._pca.components_[:n_axes]  # their largest components are positive
        total = max(float(np.sum(self._pca.var_)) * self._n_rows, np.finfo(np.float64).tiny)
        explained[:n_axes] = singular[:n_axes] ** 2 / total
        return Reduction(mean=mean, axes=axes, explained=explained)

    def _absorb_batch(self) -> None:
        from sklearn.decomposition import IncrementalPCA
        from threadpoolctl import threadpool_limits

        rows = self._batch[: self._filled]
        if self._pca is None:
            self._pca = IncrementalPCA(n_components=min(self._kept, *rows.shape), copy=False)
        self._square_sum += float(np.einsum("ij,ij->", rows, rows))
        self._n_rows += self._filled
        # One thread: sums over threads would round differently on machines with other core counts. In a
        # sample that does not vary the shares are 0 / 0; they are not read.
        with threadpool_limits(1), np.errstate(divide="ignore", invalid="ignore"):
            self._pca.partial_fit(rows)
        self._filled = 0


def fit_axes(descriptors: np.ndarray, dims: int) -> Reduction:
    """Fit principal axes to a sample in memory, at least one row, shape (row, descriptor); see `PrincipalAxes`."""
    axes = PrincipalAxes(dims)
    axes.add_rows(descriptors)
    return axes.make_reduction()
