"""Generate seed structures, at random or from the user's own files.

Needs          sources from the config (`generate.sources.Source`) and paths of the user's own files
Makes          `dask.bag.Bag` of `ase.Atoms`, checked, with system_type and generator in ``info``; what fails is a
               `daskpipe.core.errors.Rejection` in the same bag
Plugin group   ``daskpipe.generators``: functions ``(*, rng, **params) -> Iterator[Atoms]``; one that spreads sizes or
               elements evenly over its structures names ``index``, the number of the request, as well; the module of
               one that goes through a list defines ``expand_requests`` (see `is_enumerated`), that of one whose
               structures come in families ``family_size`` (see `family_size`)
Entry          `generate.stage.list_requests` (what to make), `generate.stage.generate_seeds` (the lazy bag)
Memory         a partition holds its structures: about 200 bytes an atom; one file is never split
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from daskpipe.core.registry import Registry
from daskpipe.core.variables import VARIABLES

if TYPE_CHECKING:
    import numpy as np
    from ase import Atoms

    from daskpipe.core.errors import Rejection

type Generator = Callable[..., Iterator[Atoms | Rejection]]

INFO_KEYS = tuple(name for name, variable in VARIABLES.items() if variable.inherited and name != "generator")
"""Keys of ``info`` that a generator may set."""

GENERATORS = Registry(
    "generator",
    {
        "adsorbates": "daskpipe.stages.generate.adsorbates:adsorbates",
        "alloys": "daskpipe.stages.generate.alloys:alloys",
        "amorphous": "daskpipe.stages.generate.amorphous:amorphous",
        "clusters": "daskpipe.stages.generate.clusters:clusters",
        "covalent": "daskpipe.stages.generate.covalent:covalent",
        "crystals": "daskpipe.stages.generate.crystals:crystals",
        "defects": "daskpipe.stages.generate.defects:defects",
        "external": "daskpipe.stages.generate.external:external",
        "files": "daskpipe.stages.generate.reading.files:files",
        "formula": "daskpipe.stages.generate.formula:formula",
        "grain_boundaries": "daskpipe.stages.generate.grain_boundaries:grain_boundaries",
        "interfaces": "daskpipe.stages.generate.interfaces:interfaces",
        "ionic": "daskpipe.stages.generate.ionic:ionic",
        "liquids": "daskpipe.stages.generate.liquids:liquids",
        "molecular_clusters": "daskpipe.stages.generate.molecular_clusters:molecular_clusters",
        "molecules": "daskpipe.stages.generate.molecules:molecules",
        "organic": "daskpipe.stages.generate.organic:organic",
        "perturb": "daskpipe.stages.generate.perturb:perturb",
        "random_crystals": "daskpipe.stages.generate.random_crystals:random_crystals",
        "reference": "daskpipe.stages.generate.reference:reference",
        "surfaces": "daskpipe.stages.generate.surfaces:surfaces",
    },
    group="daskpipe.generators",
    given=("rng", "index"),
)

"""Generators by name; those of plugins come from the entry points ``daskpipe.generators``."""


def is_enumerated(name: str) -> bool:
    """Return whether a generator goes through a list, such as files or molecules.

    The module of such a generator defines ``expand_requests(params, n, base_dir)``, which returns parameters and
    checksum of one request for each item. All other generators are random: each of their requests takes one structure
    from a random stream of its own.

    Raises
    ------
    ConfigError
        For an unknown name.

    Examples
    --------
    >>> is_enumerated("molecules"), is_enumerated("alloys")
    (True, False)
    """
    return GENERATORS.find_companion(name, "expand_requests") is not None


def family_size(name: str, params: Mapping[str, Any]) -> int:
    """Return how many structures a random generator makes from one request.

    One, unless the module of the generator defines ``family_size(params)``: a conformer and the copies whose torsions
    differ are a family, for the first of them costs far more than the others.

    Raises
    ------
    ConfigError
        For an unknown name.

    Examples
    --------
    >>> family_size("alloys", {"elements": {"Cu": 1}, "n_atoms": 8})
    1
    """
    function = GENERATORS.find_companion(name, "family_size")
    return int(function(params)) if function else 1


def call_generator(
    generator: Generator, params: Mapping[str, Any], *, rng: np.random.Generator, index: int
) -> Iterator[Atoms | Rejection]:
    """Call a generator with its stream, and with the number of the request if it names ``index``."""
    given = {"index": index} if "index" in inspect.signature(generator).parameters else {}
    return generator(rng=rng, **given, **params)
