"""DIEP, a universal potential for 89 elements, with the weights that come in its package."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from daskpipe.potentials.identity import Identity, file_hash
from daskpipe.potentials.potential import Potential
from daskpipe.potentials.traits import Traits

TRAITS = Traits(packages=("diep",), extra="diep", trial="Cu")

CUTOFF = 5.0
"""Cutoff of DIEP's atom graph, Å."""


def diep(*, device: str, dtype: str) -> Potential:
    """DIEP, trained on MatPES r2SCAN, one structure after another. Source: doi.org/10.1038/s41524-025-01838-7.

    Parameters
    ----------
    device
        ``cpu`` or ``cuda``.
    dtype
        Ignored: DIEP computes in float32.
    """
    from diep.pretrained import make_calculator

    calculator = make_calculator(_find_model(), device=device)
    return Potential(calculator=calculator, elements=_known_elements(), cutoff=CUTOFF, knows_charge=False)


def identify() -> Identity:
    """Identify DIEP by the bytes of its weights."""
    return Identity(name="DIEP r2SCAN", hash=file_hash(_find_model() / "state.pt"), elements=_known_elements())


def _find_model() -> Path:
    spec = find_spec("diep")
    assert spec is not None, "identify_potential checks that the package is installed"
    assert spec.origin is not None
    return Path(spec.origin).parent / "pretrained_models" / "diep_fold1"


@cache
def _known_elements() -> frozenset[str]:
    facts = json.loads((_find_model() / "model.json").read_text())
    return frozenset(facts["kwargs"]["model"]["init_args"]["element_types"])
