"""Set how daskpipe compiles its kernels with Numba."""

from __future__ import annotations

from numba import njit

kernel = njit(nogil=True, cache=True, error_model="numpy", no_cfunc_wrapper=True)
"""Decorator of a kernel.

It is compiled once a machine and kept. It releases the GIL, so that threads run side by side; each kernel uses one
thread, since Dask is the parallelism. A division by zero gives infinity, as in NumPy: a check for it would keep loops
from being vectorised. No wrapper for C is compiled, which nothing calls.
"""
