"""Provide what every other package builds on: variables, structures, errors, events, files, hashes and random streams.

Imports nothing else of daskpipe, and neither Dask, torch nor a Numba compile.
"""
