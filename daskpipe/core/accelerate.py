"""How daskpipe compiles its kernels."""

from __future__ import annotations

from numba import njit

kernel = njit(nogil=True, cache=True, error_model="numpy")
"""Decorator of a kernel: compiled once a machine; without the GIL, so that threads run side by side; a division by
zero gives infinity, as in NumPy, since a check for it would keep loops from being vectorised. One thread each: Dask is
the parallelism."""
