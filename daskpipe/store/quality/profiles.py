"""Adapt the quality gate to the origin of the data: a fault in one set is the purpose of another."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from daskpipe.store.connectivity import IMPORTED
from daskpipe.store.quality.check import Check
from daskpipe.store.quality.settings import CHECKS, EnergyLimits, Profile, Quality

MOLECULAR = ("molecule", "molecular_cluster", "liquid")
"""System types that consist of molecules."""


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """Differences of a profile from the defaults of `Quality`.

    Parameters
    ----------
    warn
        Checks that warn where they would fail.
    few_atoms
        Structures of this many atoms or fewer are not judged by distances, energies and sizes of forces: isolated
        atoms and dimer curves are stretched and compressed on purpose.
    thresholds
        Limits that replace defaults; a limit that was set to another value stays.
    of_molecules
        Further limits where the dataset contains molecules.
    """

    warn: tuple[str, ...] = ()
    few_atoms: int = 0
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    of_molecules: Mapping[str, Any] = field(default_factory=dict)


def _warning_checks(profile: Profile) -> tuple[str, ...]:
    """Return the checks that warn in a profile."""
    return tuple(name for name, entry in CHECKS.items() if profile in entry.warns_in)


WIDE_ENERGIES = EnergyLimits(min_deviation=0.15, min_deviation_of_types=0.3)
"""Isomers, conformers, and displaced copies of one composition differ by more than the frames of a run do."""

STIFF: Mapping[str, Any] = {"forces": 40.0, "largest_force": 100.0, "energy": WIDE_ENERGIES}
"""Limits for molecules, whose bonds are stiffer than those of metals and oxides."""

PROFILES: dict[Literal["run", "import", "molecules", "reference"], Expectation] = {
    "run": Expectation(warn=_warning_checks("run")),
    "import": Expectation(
        warn=_warning_checks("import"),
        few_atoms=2,
        thresholds={"stress": 200.0, "energy": WIDE_ENERGIES},
        of_molecules=STIFF,
    ),
    "molecules": Expectation(warn=_warning_checks("molecules"), thresholds=STIFF),
    "reference": Expectation(warn=_warning_checks("reference"), few_atoms=2, of_molecules=STIFF),
}


def profile_of(settings: Quality, columns: Mapping[str, np.ndarray]) -> Profile:
    """Return the profile that judges a dataset: the one that was set, or the one that its structures suggest.

    ``import`` if frames were imported, ``molecules`` if all structures consist of molecules, else ``run``.

    Examples
    --------
    >>> profile_of(Quality(), {"system_type": np.array(["molecule", "molecule"])})
    'molecules'
    >>> profile_of(Quality(profile="reference"), {})
    'reference'
    """
    if settings.profile != "auto":
        return settings.profile
    if IMPORTED in columns.get("generator", ()):
        return "import"
    types = columns.get("system_type", np.zeros(0, dtype="U1"))
    return "molecules" if len(types) and np.isin(types, MOLECULAR).all() else "run"


def apply_profile(
    settings: Quality, profile: Profile, columns: Mapping[str, np.ndarray] | None = None
) -> tuple[Quality, Expectation]:
    """Return the limits of a profile and its other differences; ``settings.warn`` takes precedence.

    Parameters
    ----------
    settings
        Settings of the user.
    profile
        From `profile_of`.
    columns
        ``system_type`` of the structures as words, where it is known.
    """
    assert profile != "auto"
    expectation, defaults = PROFILES[profile], Quality()
    has_molecules = columns is not None and bool(np.isin(columns.get("system_type", ()), MOLECULAR).any())
    limits = {**expectation.thresholds, **(expectation.of_molecules if has_molecules else {})}
    changed = {name: limit for name, limit in limits.items() if settings.limit_of(name) == defaults.limit_of(name)}
    if settings.warn is not None:
        expectation = replace(expectation, warn=settings.warn)
    return settings.model_copy(update=changed), expectation


def list_unfixable(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the checks that only warn because the splits were given, or are blocks of time of one trajectory."""
    report = attributes.get("split_report")
    facts = json.loads(report) if isinstance(report, str) else {}
    if "n_given" in facts:
        return "splits", "leakage"
    return ("leakage",) if "n_gap" in facts else ()


def soften_failures(checks: Iterable[Check], names: Collection[str]) -> list[Check]:
    """Turn failures of the named checks into warnings, except faults that are wrong in any data."""
    return [
        replace(check, verdict="warn") if check.verdict == "fail" and check.name in names and not check.hard else check
        for check in checks
    ]
