"""Read the labels of a frame: energy, forces and stress of one method, in eV, eV/Å and eV/Å^3.

A family of labels is made of keys with one prefix: ``energy``, ``forces``, ``stress``, ``virial`` (no prefix; ASE's
calculator), ``REF_energy``, ``REF_forces`` ... (MACE), ``dft_energy`` ...; upper and lower case are alike, and so are
``force`` and ``forces``, ``virial`` and ``virials``. The labels of a frame come from one family:

* If one family has an energy and forces, it is taken; if several have and agree, the one without prefix, or the first.
* If families disagree, or one is incomplete and says something else, the frame is refused, and the families are
  listed. Keys that are typed choose; the rest then comes from the family of the energy (of the forces, if no key of
  the energy is typed).
* A frame with an energy and nothing that looks like forces is taken with the energy alone.
* Free, kinetic, formation and other such energies are different quantities and no family; a key that is typed may
  name one.

A stress is positive under tension, as in ASE; a virial is minus the stress times the volume (eV). Either is nine
numbers or six (xx yy zz yz xz xy). A stress that contradicts the virial is refused. A stress or virial that cannot be
read (``None``, five numbers) is missing, and counted; so is a virial without a cell. The label of energy or forces that
cannot be read costs the frame.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from daskpipe.core.validation import FrozenModel
from daskpipe.core.variables import FULL_TO_VOIGT
from daskpipe.stages.generate.checks import FrameError
from daskpipe.stages.generate.reading.declared_units import find_units, label_factors
from daskpipe.stages.generate.reading.left_out import is_none, names_left_out

if TYPE_CHECKING:
    from ase import Atoms

NAMES = ("energy", "forces", "stress", "virial")
LEAVE_OUT = "none"
"""Word typed in place of the key of a label that is not wanted."""

SYNONYMS = {"force": "forces", "virials": "virial"}
_KEY = re.compile(r"(?P<family>.*?)(?P<name>energy|forces?|stress|virials?)", re.IGNORECASE)
_LOOKS_LIKE = re.compile(r"energy|forces?|gradient|stress|virial", re.IGNORECASE)

OTHER_QUANTITIES = (
    "free", "kinetic", "formation", "cohesive", "binding", "interaction", "adsorption", "atomization", "surface",
    "strain", "vdw", "dispersion", "zero_point", "fermi", "ewald", "hull", "reaction", "max", "mean", "rms", "min",
    "d3", "nuclear_repulsion", "thermal", "excitation", "relative", "ref_free", "unit", "units",
)  # fmt: skip
"""Prefixes of quantities, as opposed to methods."""

SAME_ENERGY, SAME_FORCES, SAME_STRESS = 1e-5, 1e-5, 1e-5
"""Differences, eV, eV/Å and eV/Å^3, that come from printing a number twice."""

SAME_VIRIAL = 1e-4
"""Difference of a stress from that of the virial, eV/Å^3 (0.016 GPa), that comes from printing both."""


class LabelKeys(FrozenModel):
    """Keys of the labels, and their units where the files do not declare them or declare them wrongly.

    See `daskpipe.stages.generate.reading.labels` for what is taken where no key is given.
    """

    energy: str | None = Field(default=None, description="Key of the energy")
    forces: str | None = Field(default=None, description="Key of the forces; 'none' for energies alone")
    stress: str | None = Field(
        default=None,
        description="Key of the stress, 9 numbers or xx yy zz yz xz xy, positive under tension; 'none' to leave it out",
    )
    virial: str | None = Field(
        default=None,
        description="Key of the virial, minus the stress times the volume; 'none' to leave it out",
    )
    energy_unit: str | None = Field(default=None, description="Unit of the energy, e.g. hartree; eV if not declared")
    forces_unit: str | None = Field(default=None, description="Unit of the forces, e.g. hartree/bohr")
    stress_unit: str | None = Field(default=None, description="Unit of the stress, e.g. GPa")
    virial_unit: str | None = Field(default=None, description="Unit of the virial")


@dataclass(kw_only=True)
class Labels:
    """Labels of a frame, and the use of its keys.

    Parameters
    ----------
    results
        ``energy`` (eV), and where they are known ``forces`` (eV/Å), ``stress`` (eV/Å^3, xx yy zz yz xz xy) and
        ``magmoms``.
    keys
        Keys that the labels come from.
    used
        These, the keys of labels that agree with them, and those of their units.
    missing
        Reason why a stress or virial of the frame was not taken, by key.
    """

    results: dict[str, Any]
    keys: list[str]
    used: set[str] = field(default_factory=set)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _WrittenLabel:
    """Label as written in a frame: its key, name, family and value."""

    key: str
    name: str
    family: str
    value: Any


def read_labels(raw: Atoms, keys: LabelKeys) -> Labels:
    """Return the labels of a frame under ASE's names.

    Parameters
    ----------
    raw
        The complete frame: ``info``, ``arrays`` and the results of its calculator.
    keys
        Keys and units that the user typed.

    Raises
    ------
    FrameError
        ``no_energy``, ``no_forces``: not under the key that was typed, or nowhere; ``families``: labels of several
        methods, or only a part of one; ``units``: declared and not known, or not all of them; ``shape``,
        ``not_finite``: numbers that are no energy or forces; ``stress``: one that contradicts the virial.
    """
    written = _collect_labels(raw)
    chosen = _choose_labels(raw, written, keys)
    family = chosen["energy"].family
    # If no key is typed, all labels of the frame agree.
    by_keys = any(getattr(keys, name) is not None for name in NAMES)
    labels = Labels(
        results={},
        keys=[label.key for label in chosen.values()],
        used={label.key for label in (chosen.values() if by_keys else written)},
    )
    typed = {name: str(unit) for name in NAMES if (unit := getattr(keys, f"{name}_unit")) is not None}
    declared, unit_keys = find_units(raw.info, {name: label.key for name, label in chosen.items()}, family)
    labels.used.update(unit_keys)
    values: dict[str, np.ndarray] = {}
    for name, label in chosen.items():
        if name in ("energy", "forces"):
            values[name] = _read_energy_or_forces(name, label, len(raw))
        elif (numbers := _read_stress(label, labels)) is not None:
            values[name] = numbers
    if "virial" in values and (raw.cell.rank < 3 or not raw.pbc.all()):
        labels.missing[chosen["virial"].key] = "a virial without a cell that is periodic along all axes"
        del values["virial"]
    scale = label_factors({**declared, **typed}, values)
    labels.results["energy"] = values["energy"] * scale["energy"]
    if "forces" in values:
        labels.results["forces"] = values["forces"] * scale["forces"]
    stresses = {}
    if "stress" in values:
        stresses["stress"] = values["stress"] * scale["stress"]
    if "virial" in values:
        stresses["virial"] = -values["virial"] * scale["virial"] / raw.get_volume()
    if stresses:
        _check_virial(stresses, chosen)
        labels.results["stress"] = next(iter(stresses.values()))
    results = raw.calc.results if raw.calc is not None else {}
    if (magmoms := results.get("magmoms")) is not None:
        moments = np.asarray(magmoms, dtype=float)
        if moments.shape == (len(raw),) and np.isfinite(moments).all():
            labels.results["magmoms"] = moments
            labels.used.add("magmoms")
        else:
            labels.missing["magmoms"] = "magmoms that are not one finite number an atom"
    return labels


# --- families -----------------------------------------------------------------------------------------


def _collect_labels(raw: Atoms) -> list[_WrittenLabel]:
    """Collect all values that may be labels, results of ASE's calculator first."""
    results: Mapping[str, Any] = raw.calc.results if raw.calc is not None else {}
    written: list[_WrittenLabel] = []
    for place, of_atoms in ((results, None), (raw.info, False), (raw.arrays, True)):
        for key, value in place.items():
            match = _KEY.fullmatch(key)
            if match is None or value is None:
                continue
            name = SYNONYMS.get(match["name"].lower(), match["name"].lower())
            family = match["family"].lower().strip("_-. ")
            if family in OTHER_QUANTITIES:
                continue
            if of_atoms is False and name == "forces" and family and np.size(value) != 3 * len(raw):
                continue  # such as max_forces
            if of_atoms and name != "forces":  # energies and stresses of atoms are none of the frame
                continue
            if is_none(value) or (family and isinstance(value, bool)):  # such as have_energy
                continue
            written.append(_WrittenLabel(key, name, family, value))
    return written


def _choose_labels(raw: Atoms, written: list[_WrittenLabel], keys: LabelKeys) -> dict[str, _WrittenLabel]:
    """Choose the labels of one family, or those whose keys the user typed, by name.

    Raises
    ------
    FrameError
        ``no_energy``, ``no_forces`` or ``families``.
    """
    typed = {name: key for name in NAMES if (key := getattr(keys, name)) is not None}
    chosen = {
        name: _find_typed_label(raw, name, key, written) for name, key in typed.items() if key.lower() != LEAVE_OUT
    }
    unwanted = {name for name, key in typed.items() if key.lower() == LEAVE_OUT}
    families: dict[str, dict[str, _WrittenLabel]] = {}
    for label in written:
        if label.name in unwanted or label.name in typed:
            continue
        first = families.setdefault(label.family, {}).setdefault(label.name, label)
        if not _labels_agree(first, label):
            raise _ambiguity_error(written, f"{first.key} and {label.key} differ")
    if "energy" in chosen or "forces" in chosen:
        leader = chosen["energy"] if "energy" in chosen else chosen["forces"]
        family: Mapping[str, _WrittenLabel] = families.get(leader.family, {})
        if {"energy", "forces"} <= set(chosen) and chosen["forces"].family != leader.family:
            family = {}  # the stress could be of either
        missing = {"energy", "forces"} - set(chosen) - set(family) - unwanted
        others = {name for labels in families.values() for name in labels}
        if missing & others or "energy" in missing:
            name = "energy" if "energy" in missing else "forces"
            raise _ambiguity_error(written, f"{leader.key} has no {name} of its family; type --{name} too")
    else:
        if not any("energy" in labels for labels in families.values()):
            raise FrameError("no_energy", f"no energy under energy, REF_energy or the like; {_suggest_keys(raw)}")
        family = _one_family(families, written, need_forces="forces" not in unwanted)
    chosen = {**family, **chosen}
    for one, other in (("stress", "virial"), ("virial", "stress")):
        if one in typed and one not in unwanted and other not in typed:
            chosen.pop(other, None)
    return {name: chosen[name] for name in NAMES if name in chosen}


def _find_typed_label(raw: Atoms, name: str, key: str, written: Iterable[_WrittenLabel]) -> _WrittenLabel:
    """Return the label under a key that the user typed."""
    results: Mapping[str, Any] = raw.calc.results if raw.calc is not None else {}
    for place in (raw.info, raw.arrays, results):
        if place.get(key) is not None:
            match = _KEY.fullmatch(key)
            return _WrittenLabel(key, name, match["family"].lower().strip("_-. ") if match else key.lower(), place[key])
    raise FrameError(f"no_{name}", f"no {name} under {key}; the frame has: {_list_families(written) or 'no labels'}")


def _one_family(
    families: Mapping[str, Mapping[str, _WrittenLabel]], written: list[_WrittenLabel], *, need_forces: bool
) -> Mapping[str, _WrittenLabel]:
    """Return the family with which all labels of a frame agree."""
    with_energy = [labels for labels in families.values() if "energy" in labels]
    whole = [labels for labels in with_energy if "forces" in labels or not need_forces]
    some_forces = any("forces" in labels for labels in families.values())
    if not whole and some_forces:
        raise _ambiguity_error(written, "no family has both energy and forces")
    best = sorted(whole or with_energy, key=lambda labels: (-len(labels), next(iter(labels.values())).family != ""))[0]
    for labels in families.values():
        for name, label in labels.items():
            if name not in best:
                raise _ambiguity_error(written, f"{label.key} belongs to a family that is not whole")
            if not _labels_agree(best[name], label):
                raise _ambiguity_error(written, f"{best[name].key} and {label.key} differ")
    return best


def _labels_agree(one: _WrittenLabel, other: _WrittenLabel) -> bool:
    """Return whether two labels are the same numbers up to rounding in print."""
    if one is other:
        return True
    try:
        a, b = (np.asarray(label.value, dtype=float) for label in (one, other))
        if one.name in ("stress", "virial"):
            a, b = _to_voigt(a), _to_voigt(b)
        if a.size != b.size:
            return False
        a, b = a.reshape(-1), b.reshape(-1)
    except (TypeError, ValueError):
        return str(one.value) == str(other.value)
    near = {"energy": SAME_ENERGY, "forces": SAME_FORCES, "stress": SAME_STRESS, "virial": SAME_ENERGY}[one.name]
    return bool(np.allclose(a, b, rtol=1e-7, atol=near, equal_nan=True))


def _ambiguity_error(written: Iterable[_WrittenLabel], what: str) -> FrameError:
    return FrameError(
        "families",
        f"labels of more than one method or a part of one: {_list_families(written)}; {what}. "
        "Choose with --energy, --forces, --stress, --virial",
    )


def _list_families(written: Iterable[_WrittenLabel]) -> str:
    """Return the families with their keys, e.g. ``(none): energy; ref: REF_energy, REF_forces``."""
    families: dict[str, list[str]] = {}
    for label in written:
        families.setdefault(label.family or "no prefix", []).append(label.key)
    return "; ".join(f"{family}: {', '.join(dict.fromkeys(keys))}" for family, keys in families.items())[:400]


def _suggest_keys(raw: Atoms) -> str:
    results = raw.calc.results if raw.calc is not None else {}
    names = [key for place in (raw.info, raw.arrays, results) for key in place if _LOOKS_LIKE.search(key)]
    listed = f"the frame has {', '.join(names)[:300]}" if names else "the frame has no key of that kind"
    return f"{listed}; type --energy KEY and --forces KEY if they have other names"


# --- values -------------------------------------------------------------------------------------------


def _read_energy_or_forces(name: str, label: _WrittenLabel, n_atoms: int) -> np.ndarray:
    """Return an energy or forces as numbers, or refuse the frame."""
    try:
        values = np.asarray(label.value, dtype=float)
    except (TypeError, ValueError) as error:
        raise FrameError("shape", f"{label.key} is {str(label.value)[:60]!r}, which is no number") from error
    if name == "energy" and "per_atom" in label.key.lower():
        raise FrameError("shape", f"{label.key} is an energy an atom; the energy of the whole structure is needed")
    if isinstance(label.value, bool | np.bool_):
        raise FrameError("shape", f"{label.key} is {label.value}, which is no number")
    shape = () if name == "energy" else (n_atoms, 3)
    if values.size != np.prod(shape, dtype=int) or (name == "forces" and values.ndim == 2 and values.shape != shape):
        raise FrameError("shape", f"{label.key}: expected an array of shape {shape}, received {values.shape}")
    return _check_finite(label.key, values.reshape(shape))


def _check_finite(key: str, values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise FrameError("not_finite", f"{np.count_nonzero(~np.isfinite(values))} of {values.size} {key} not finite")
    return values


def _read_stress(label: _WrittenLabel, labels: Labels) -> np.ndarray | None:
    """Return a stress or virial as xx yy zz yz xz xy; ``None``, and a note in `labels`, if it cannot be read."""
    try:
        values = _to_voigt(np.asarray(label.value, dtype=float))
    except (TypeError, ValueError):
        labels.missing[label.key] = f"a {label.name} that is no number"
        return None
    if np.isnan(values).all():
        return None
    if values.shape != (6,):
        labels.missing[label.key] = f"a {label.name} of {values.size} numbers, not 9 or 6"
    elif not np.isfinite(values).all():
        labels.missing[label.key] = f"a {label.name} that is not finite"
    else:
        return values
    return None


def _to_voigt(stress: np.ndarray) -> np.ndarray:
    if stress.size != 9:
        return stress.reshape(-1)
    full = stress.reshape(3, 3)
    return ((full + full.T) / 2).reshape(9)[list(FULL_TO_VOIGT)]


def _check_virial(stresses: Mapping[str, np.ndarray], chosen: Mapping[str, _WrittenLabel]) -> None:
    """Refuse a stress that contradicts the virial."""
    if len(stresses) < 2:
        return
    stress, of_virial = stresses["stress"], stresses["virial"]
    if np.allclose(stress, of_virial, rtol=1e-3, atol=SAME_VIRIAL):
        return
    largest = int(np.abs(of_virial).argmax())
    ratio = stress[largest] / of_virial[largest] if of_virial[largest] else np.inf
    raise FrameError(
        "stress",
        f"{chosen['stress'].key} is {ratio:.4g} times the stress of {chosen['virial'].key} (minus the virial over the "
        f"volume; -1: a sign, 160.2: GPa). Choose one with --stress {chosen['stress'].key} or --virial "
        f"{chosen['virial'].key}",
    )


# --- what is left out ---------------------------------------------------------------------------------


def left_out(raw: Atoms, taken: Iterable[str], labels: Labels) -> Counter[str]:
    """Count the values of a frame that an import does not take.

    Parameters
    ----------
    raw
        The complete frame.
    taken
        Names of ``info`` and ``arrays`` that become variables.
    labels
        From `read_labels`.
    """
    used = {*taken, *labels.used, *labels.missing}
    return Counter(labels.missing.values()) + names_left_out(raw, used)
