"""Facts about a kind of potential that others need before it is built."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Facts about a kind of potential, in its own file under the name ``TRAITS``; all have defaults.

    Parameters
    ----------
    packages
        Distributions on PyPI that hold its formulas or weights. A dataset records their versions.
    extra
        Extra of daskpipe that installs these packages; ``None`` if daskpipe needs them in any case, or if the potential
        is a plugin.
    trial
        What ``daskpipe doctor`` evaluates with it: the symbol of a metal, or the name of a molecule that
        `ase.build.molecule` knows. ``None`` to leave it out, for example if it has no defaults.
    members
        Parameter that lists other potentials, each with ``name`` and ``params``; ``None`` if there is none.
    measures_disagreement
        Whether its batched model returns ``force_disagreement``, which ``explore.guards.max_disagreement`` needs.
    costly
        Whether a label takes so long that each is kept as soon as it is made, and found again by later runs.
    batch_size
        Frames that a unit of labelling has if the config gives no number; ``None`` for that of all.
    """

    packages: tuple[str, ...] = ()
    extra: str | None = None
    trial: str | None = None
    members: str | None = None
    measures_disagreement: bool = False
    costly: bool = False
    batch_size: int | None = None
