"""Hold the five stages of a run: generate, explore, describe, select, label. They never import each other.

A stage has ``stage.py`` (the wiring with Dask), tools (plain functions in memory, without Dask) and ``*_kernels.py``
(NumPy and Numba only).
"""
