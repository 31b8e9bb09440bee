"""Registry of descriptors, and functions that the pipeline calls to build and check them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from daskpipe.core.errors import ConfigError
from daskpipe.core.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from ase import Atoms

    from daskpipe.potentials import Identity
    from daskpipe.stages.describe.settings import Describe

DESCRIPTORS = Registry(
    "descriptor",
    {
        "acsf": "daskpipe.stages.describe.dscribe_family:ACSF",
        "lmbtr": "daskpipe.stages.describe.dscribe_family:LMBTR",
        "mace": "daskpipe.stages.describe.mace:MACE",
        "mbtr": "daskpipe.stages.describe.dscribe_family:MBTR",
        "soap": "daskpipe.stages.describe.soap.descriptor:SoapDescriptor",
        "valle_oganov": "daskpipe.stages.describe.dscribe_family:ValleOganov",
    },
    group="daskpipe.descriptors",
    given=("species", "average", "device"),
)


DEFAULTS: dict[str, dict[str, Any]] = {"soap": {"sigma": 0.75}}
"""Defaults of a config where they differ from the factory's; unit keys depend on them."""


class Descriptor(Protocol):
    """Interface of a descriptor.

    The factory takes the keywords ``species``, ``average`` (``off``: a row an atom, ``outer``: their mean), its own
    parameters, and ``device`` if it computes on one. It may have the attribute ``per_atom`` (false if there is no row
    for each atom), and the functions ``check(params)``, which raises for parameters that cannot be used, and
    ``identify(params)``, which says which model it uses (`daskpipe.potentials.Identity`).
    """

    n_features: int
    dtype: np.dtype[Any]

    def hypers(self) -> dict[str, Any]:
        """Return all parameters, as JSON types; the factory called with them gives the same descriptor."""

    def compute(self, structures: Sequence[Atoms]) -> np.ndarray:
        """Return the descriptor, shape (structure, feature), or (atom, feature) over all structures, of `dtype`."""


def build_descriptor(settings: Describe, species: Sequence[str], average: Literal["off", "outer"]) -> Descriptor:
    """Build the descriptor that a config asks for."""
    given: dict[str, Any] = {"species": list(species), "average": average}
    if uses_device(settings):
        given["device"] = settings.device
    params = {**DEFAULTS.get(settings.descriptor, {}), **settings.params}
    descriptor: Descriptor = DESCRIPTORS.get(settings.descriptor)(**given, **params)
    return descriptor


def has_atom_rows(settings: Describe) -> bool:
    """Return True if the descriptor has a row for each atom."""
    return bool(getattr(DESCRIPTORS.get(settings.descriptor), "per_atom", True))


def uses_device(settings: Describe) -> bool:
    """Return True if the descriptor computes on ``describe.device``."""
    return "device" in inspect.signature(DESCRIPTORS.get(settings.descriptor)).parameters


def identify_model(settings: Describe) -> Identity | None:
    """Identify the model that the descriptor uses, if any; raises as `daskpipe.potentials.identify_potential`."""
    identify = getattr(DESCRIPTORS.get(settings.descriptor), "identify", None)
    return identify(settings.params) if identify is not None else None


def check_descriptor_settings(settings: Describe) -> None:
    """Check that a descriptor supports the level and the parameters of a config.

    Raises
    ------
    ConfigError
        If it has no rows of atoms and ``level`` is ``atom``, or if it refuses its parameters.
    """
    if settings.level == "atom" and not has_atom_rows(settings):
        raise ConfigError(
            f"describe.level=atom: {settings.descriptor} describes whole structures only; "
            "type describe.level=structure, or describe=soap, describe=acsf or describe=lmbtr"
        )
    if (check := getattr(DESCRIPTORS.get(settings.descriptor), "check", None)) is not None:
        check(settings.params)
