"""Count, by name, what frames of files hold and daskpipe has no place for: nothing is dropped silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.stages.generate.reading.declared_units import find_units
from daskpipe.stages.generate.reading.electrons import CHARGE_KEYS, SPIN_KEYS, UNPAIRED_KEY

if TYPE_CHECKING:
    from ase import Atoms

LEFT_OUT = "left_out/"
"""What the names of such tallies begin with."""

NOTED = "left out"
"""Key of ``info``: names, as a tuple, that a reader or a generator passed over."""

MOST_CHARACTERS, MOST_NAMES = 60, 12
"""Length and number of the names that the receipt of a unit spells out: it stays below 2 kB."""

IDS = ("structure_id", "parent_id")

WORDS = {"momenta": "velocities", "tags": "tags", "masses": "masses"}
"""Names of ASE's arrays in the words of the summary."""


def taken_names(raw: Atoms, taken: Atoms) -> set[str]:
    """Return the names in a frame that say what has become a part of the structure made of it."""
    names = {*CHARGE_KEYS, *SPIN_KEYS, UNPAIRED_KEY, "masses", *IDS, *taken.info, *taken.arrays}
    return names | set(find_units(raw.info)[1]) | ({"constraints"} if taken.has("fixed") else set())


def names_left_out(raw: Atoms, used: Iterable[str]) -> Counter[str]:
    """Count what a frame holds and nobody takes.

    Parameters
    ----------
    raw
        The frame with all that is written in it.
    used
        Names of ``info``, ``arrays`` and results that are taken.
    """
    used = {*used, "numbers", "positions", "name", NOTED}
    results: Mapping[str, Any] = raw.calc.results if raw.calc is not None else {}
    names = {
        key for place in (raw.info, raw.arrays, results) for key, value in place.items() if not is_none(value)
    } - used
    if "tags" in names and raw.has("tags") and not raw.arrays["tags"].any():
        names.remove("tags")
    noted = raw.info.get(NOTED)
    names |= set(noted) - used if isinstance(noted, tuple) else set()
    if raw.constraints and "constraints" not in used:
        names.add("constraints")
    return Counter(WORDS.get(name, name) for name in names)


def is_none(value: Any) -> bool:
    """Return whether a value is a word that means that there is none."""
    return isinstance(value, str) and value.strip().lower() in ("none", "null", "")


def shorten_tallies(tallies: Counter[str]) -> dict[str, int]:
    """Return tallies, sorted, of which the rarest names of what was left out are summed up."""
    names = [name for name, _ in tallies.most_common() if name.startswith(LEFT_OUT)]
    short = {name: n for name, n in sorted(tallies.items()) if name not in names[MOST_NAMES:]}
    if rest := sum(tallies[name] for name in names[MOST_NAMES:]):
        short[f"{LEFT_OUT}other keys"] = rest
    return short


def tally_names(names: Iterable[str]) -> list[str]:
    """Return the names of the tallies of what was left out."""
    return [f"{LEFT_OUT}{name}"[:MOST_CHARACTERS] for name in names]


def noted_names(arrays: Mapping[str, Any], others: Iterable[str]) -> tuple[str, ...]:
    """Return the names of velocities and tags that a file holds, and of other things.

    Parameters
    ----------
    arrays
        ``momenta`` and ``tags``, None where the file has none.
    others
        Names of results and notes.
    """
    held = [name for name, values in arrays.items() if values is not None and np.asarray(values).any()]
    return tuple(sorted({*held, *others}))
