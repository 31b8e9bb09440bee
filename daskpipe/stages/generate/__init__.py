"""Seed structures: what a run explores, made at random or read from the user's files.

Needs          sources from the config (`generate.sources.Source`) and paths of the user's own files
Makes          `dask.bag.Bag` of `ase.Atoms`, checked, with system_type and generator in ``info``; what fails is a
               `daskpipe.core.errors.Rejection` in the same bag
Plugin group   ``daskpipe.generators``: functions ``(*, rng, **params) -> Iterator[Atoms]``
Entry          `generate.stage.requests` (what to make), `generate.stage.generate` (the lazy bag)
Memory         a partition holds its structures: about 200 bytes an atom; one file is never split
"""

from __future__ import annotations

from daskpipe.core.registry import Registry

GENERATORS = Registry(
    "generator",
    {
        "alloys": "daskpipe.stages.generate.alloys:alloys",
        "clusters": "daskpipe.stages.generate.clusters:clusters",
        "files": "daskpipe.stages.generate.files:files",
        "molecules": "daskpipe.stages.generate.molecules:molecules",
        "surfaces": "daskpipe.stages.generate.surfaces:surfaces",
    },
    group="daskpipe.generators",
    given=("rng",),
)

ENUMERATED = {
    "files": "daskpipe.stages.generate.files:expand_files",
    "molecules": "daskpipe.stages.generate.molecules:expand_molecules",
}
"""Generators with a list to go through, and the function that makes one request an item of it.

All others are random: each of their requests takes one structure from a stream of its own.
"""
