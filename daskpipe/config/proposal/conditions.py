"""Choose potential, teacher, temperatures and cutoff for the systems of a study, each with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from daskpipe.config.proposal.kinds import Study
from daskpipe.config.proposal.melting_points import estimate_melting_point
from daskpipe.core.errors import ConfigError

SHARES = (0.25, 0.6, 1.1)
"""Temperatures of crystals as shares of the melting point; a short run at the last one melts little."""

OPEN_SHARES = (0.25, 0.5)
"""Temperatures of surfaces and clusters as shares of the melting point: they melt below it."""

OPEN_TYPES = ("surface", "cluster")
"""System types that have `OPEN_SHARES`."""

ADSORBATE_TEMPERATURES = (300.0, 600.0)
MOLECULE_TEMPERATURES = (300.0, 600.0)
LIQUID_TEMPERATURES = (300.0, 400.0)
"""Temperatures, K, at which molecules stay whole."""

ROUNDED = 50.0
"""Temperatures are rounded to this, K, and are at least as high."""

HOTTEST = 4000.0
"""Highest temperature that is proposed, K."""

BATCH_SIZES = {"mace": 16, "chgnet": 8, "xtb": 4}
"""Trajectories of a unit, by the potential: a unit of a slow one shall last minutes, not hours."""


class Choice(NamedTuple):
    """A value of a config and the reason for it."""

    value: Any
    reason: str


def choose_potential(study: Study) -> Choice:
    """Choose the potential that explores.

    The bundled MACE comes first where it knows all elements; then GFN2-xTB for molecules; then CHGNet.

    Raises
    ------
    ConfigError
        If no installed potential knows all elements.
    """
    from daskpipe.potentials.catalogue import check_packages, identify_potential

    symbols = set(study.symbols)
    molecular = not study.crystals
    candidates: tuple[tuple[bool, str, dict[str, str], str], ...] = (
        (not molecular, "mace", {"model": "bundled"}, "the bundled MACE knows these elements, and is the fastest here"),
        (molecular, "xtb", {"method": "GFN2-xTB"}, "GFN2-xTB is made for molecules of all elements up to Rn"),
        (not molecular, "chgnet", {}, "CHGNet knows 89 elements and comes with its weights"),
    )
    missing = []
    for fits, name, params, reason in candidates:
        if not fits:
            continue
        try:
            check_packages(name)
        except ConfigError as error:
            missing.append(str(error))
            continue
        elements = identify_potential(name, params).elements
        if elements is None or symbols <= elements:
            return Choice({"name": name, **({"params": params} if params else {})}, reason)
        missing.append(f"{name} does not know {', '.join(sorted(symbols - elements))}")
    raise ConfigError(
        f"no potential here computes {', '.join(study.symbols)}: {'; '.join(missing)}. "
        "Write a config that names your own: explore.potential={name: mace, params: {model: FILE}}"
    )


def choose_teacher(explorer: Choice) -> Choice:
    """Choose the potential that labels, which knows the elements that the one that explores knows."""
    if explorer.value["name"] == "xtb":
        return Choice(
            explorer.value, "the same GFN2-xTB; for DFT labels export the picks, or give a teacher of your own"
        )
    stands = "CHGNet stands for the DFT that it was trained on, PBE+U of the Materials Project"
    if explorer.value["name"] == "chgnet":
        stands += ". It explores as well, so the labels teach nothing that it does not know"
    return Choice({"name": "chgnet"}, f"{stands}; name a better teacher if you have one")


def choose_temperatures(study: Study) -> Choice:
    """Choose the temperatures, K, of all that `choose_temperatures_by_type` does not name."""
    if not study.crystals:
        return Choice(list(MOLECULE_TEMPERATURES), "room temperature, and a hot one at which molecules stay whole")
    lowest, source = min(estimate_melting_point(each) for each in study.crystals)
    shares = ", ".join(f"{share:g}" for share in SHARES)
    return Choice(_share_of(lowest, SHARES), f"{shares} of {lowest:.0f} K ({source})")


def choose_temperatures_by_type(study: Study, kinds: Sequence[str]) -> Choice:
    """Choose the temperatures, K, of system types that melt or break earlier than the others."""
    chosen: dict[str, list[float]] = {}
    reasons = []
    if study.crystals and {"surfaces", "clusters", "2d"} & set(kinds):
        lowest = min(estimate_melting_point(each) for each in study.crystals).kelvin
        types = [name for name in OPEN_TYPES if name != "cluster" or "clusters" in kinds]
        chosen |= {name: _share_of(lowest, OPEN_SHARES) for name in types}
        reasons.append(
            f"{' and '.join(types)}: {', '.join(f'{share:g}' for share in OPEN_SHARES)} of the melting point"
        )
    if "adsorbates" in kinds:
        chosen["adsorbate"] = list(ADSORBATE_TEMPERATURES)
        reasons.append("adsorbates leave hot surfaces")
    if study.crystals and {"molecules", "dimers"} & set(kinds):
        chosen |= {name: list(MOLECULE_TEMPERATURES) for name in ("molecule", "molecular_cluster")}
        reasons.append("molecules stay whole")
    if "liquid" in kinds:
        chosen["liquid"] = list(LIQUID_TEMPERATURES)
        reasons.append("a liquid does not boil within such a run")
    return Choice(chosen, "; ".join(reasons))


def choose_cutoff(study: Study) -> Choice:
    """Choose the radius of the descriptor's environments, Å: up to the third neighbours of the largest atoms."""
    from ase.data import atomic_numbers, covalent_radii

    largest = max(covalent_radii[atomic_numbers[symbol]] for symbol in study.symbols)
    radius = min(max(round(2 * largest * 3**0.5 + 0.3, 1), 4.0), 6.5)
    return Choice(radius, "up to the third neighbours of the largest atoms")


def describe_timestep(study: Study) -> str:
    """Return the time step that ``auto`` gives the lightest structure of a study, as a reason."""
    from daskpipe.stages.explore.timesteps import masses_of, timestep_of

    masses = masses_of(study.symbols)
    lightest = study.symbols[int(masses.argmin())]
    return f"{timestep_of('auto', masses):g} fs with {lightest}, the lightest element"


def _share_of(kelvin: float, shares: Sequence[float]) -> list[float]:
    """Return shares of a temperature, rounded, each once."""
    rounded = [min(max(ROUNDED * round(share * kelvin / ROUNDED), ROUNDED), HOTTEST) for share in shares]
    return list(dict.fromkeys(rounded))
