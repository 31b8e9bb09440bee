"""Compile the kernels that most tests call, into Numba's cache."""

from ase.build import bulk

from daskpipe import SOAP

for dtype in ("float64", "float32"):
    SOAP(species=["Cu"], r_cut=3.0, n_max=2, l_max=1, sigma=0.5, dtype=dtype).compute([bulk("Cu")])
