"""What the quality gate expects of data of different origins: what is a fault in one is what another is made for."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from daskpipe.store.connectivity import IMPORTED
from daskpipe.store.quality.check import Check
from daskpipe.store.quality.settings import EnergyLimits, Profile, Quality

MOLECULE = "molecule"
"""System type of molecules."""

WHAT_IT_HOLDS = ("elements", "composition_entropy", "sizes", "type_balance", "diversity", "isolated_atoms")
"""Checks of what a set holds: a run was asked for it, a set that others have made is what it is."""


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """How a profile differs from the defaults of `Quality`.

    Parameters
    ----------
    warn
        Checks that warn where they would fail.
    few_atoms
        Structures of so many atoms or fewer are not judged by distances, energies and sizes of forces: isolated atoms
        and dimer curves are stretched and pressed on purpose.
    thresholds
        Limits that take the place of defaults; what was set to something else stays.
    of_molecules
        More of them, where there are molecules.
    """

    warn: tuple[str, ...] = ()
    few_atoms: int = 0
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    of_molecules: Mapping[str, Any] = field(default_factory=dict)


WIDE_ENERGIES = EnergyLimits(min_deviation=0.15, min_deviation_of_types=0.3)
"""Isomers, conformers, and shaken copies of one composition differ by more than the frames of a run do."""

STIFF: Mapping[str, Any] = {"forces": 40.0, "largest_force": 100.0, "energy": WIDE_ENERGIES}
"""Limits for molecules, whose bonds are stiffer than those of metals and oxides."""

PROFILES: dict[Literal["run", "import", "molecules", "reference"], Expectation] = {
    "run": Expectation(),
    "import": Expectation(
        warn=WHAT_IT_HOLDS, few_atoms=2, thresholds={"stress": 200.0, "energy": WIDE_ENERGIES}, of_molecules=STIFF
    ),
    "molecules": Expectation(thresholds=STIFF),
    "reference": Expectation(
        warn=(
            *WHAT_IT_HOLDS, "overlap", "energy", "forces", "largest_force", "stress", "duplicates", "leakage", "splits",
        ),
        few_atoms=2,
        of_molecules=STIFF,
    ),
}  # fmt: skip


def profile_of(settings: Quality, columns: Mapping[str, np.ndarray]) -> Profile:
    """Return the profile that judges a dataset: the one that was set, or what its structures say.

    ``import`` if frames were imported, ``molecules`` if all structures are molecules, else ``run``.
    """
    if settings.profile != "auto":
        return settings.profile
    if IMPORTED in columns.get("generator", ()):
        return "import"
    types = columns.get("system_type", np.zeros(0, dtype="U1"))
    return "molecules" if len(types) and (types == MOLECULE).all() else "run"


def apply_profile(
    settings: Quality, profile: Profile, columns: Mapping[str, np.ndarray] | None = None
) -> tuple[Quality, Expectation]:
    """Return the thresholds of a profile, and how else it differs; the settings' own word on warnings goes first.

    Parameters
    ----------
    settings
        What was set.
    profile
        From `profile_of`.
    columns
        ``system_type`` of the structures as words, where it is known.
    """
    assert profile != "auto"
    found, defaults = PROFILES[profile], Quality()
    has_molecules = columns is not None and MOLECULE in columns.get("system_type", ())
    limits = {**found.thresholds, **(found.of_molecules if has_molecules else {})}
    changed = {name: limit for name, limit in limits.items() if getattr(settings, name) == getattr(defaults, name)}
    if settings.warn is not None:
        found = replace(found, warn=settings.warn)
    return settings.model_copy(update=changed), found


def list_unfixable(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the checks that warn because the splits were given, or are blocks of time of one trajectory."""
    report = attributes.get("split_report")
    facts = json.loads(report) if isinstance(report, str) else {}
    if "n_given" in facts:
        return "splits", "leakage"
    return ("leakage",) if "n_gap" in facts else ()


def soften_failures(checks: Iterable[Check], names: Collection[str]) -> list[Check]:
    """Return checks, of which those named warn where they would fail, unless the fault is one in any data."""
    return [
        replace(check, verdict="warn") if check.verdict == "fail" and check.name in names and not check.hard else check
        for check in checks
    ]
