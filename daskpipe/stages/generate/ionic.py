"""Generate ionic crystals that stay neutral: substitutions, dopants of other charges, and the vacancies they need."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import count, product
from typing import Annotated

import numpy as np
from ase import Atoms
from pydantic import BeforeValidator

from daskpipe.stages.generate.base import Base, draw_base
from daskpipe.stages.generate.bonding import guess_oxidation, valence_distance
from daskpipe.stages.generate.disorder import apply_strain, displace_atoms
from daskpipe.stages.generate.params import CountRange, Element, Rattle, Strain, count_range, fraction_range
from daskpipe.stages.generate.supercells import Supercells, draw_supercell, find_supercells, primitive_cell

Fraction = Annotated[tuple[float, float], BeforeValidator(fraction_range, json_schema_input_type=float | list[float])]
Doping = dict[Element, dict[Element, Fraction]]
"""Fraction of the sites of an element that others take."""

NEUTRAL = 1e-6
"""Largest sum of charges of a neutral cell, elementary charges."""

MAX_COUNTS = 100_000
"""Largest number of combinations of counts of dopants that are gone through for one cell."""


def ionic(
    *,
    rng: np.random.Generator,
    index: int,
    of: Base,
    n_atoms: CountRange,
    doping: Doping | None = None,
    vacancy: Element | None = None,
    charges: dict[Element, int] | None = None,
    strain: Strain = 0.02,
    rattle: Rattle = 0.05,
) -> Iterator[Atoms]:
    """Yield neutral ionic crystals: supercell, dopants and vacancies on random sites, strain and displacements.

    Where the dopants have other charges than what they replace, as many ions of one element are removed as make the
    cell neutral: anions for dopants of lower charge, as in yttria-stabilised zirconia, else cations. Numbers of dopants
    for which that is no whole number are left out.

    Parameters
    ----------
    rng
        Stream of the structures.
    index
        Number of the request.
    of
        The crystal: a formula, a file, or a generator with parameters.
    n_atoms
        Number of atoms of the supercell before ions are removed, or lowest and highest.
    doping
        For elements of the crystal the fractions of their sites that other elements take, such as
        ``{Zr: {Y: [0.05, 0.2]}}``; an isovalent dopant is a substitution.
    vacancy
        Element that is removed; by default the most frequent anion, or the element with the dopant of highest charge.
    charges
        Oxidation states of elements, where the most common ones are not meant.
    strain
        Largest normal strain and engineering shear strain, 1.
    rattle
        Standard deviation of displacements along each axis, Å.

    Yields
    ------
    ase.Atoms
        Periodic along all three axes, with a ``charge`` of 0 in ``info``; the oxidation states sum to zero.

    Raises
    ------
    ValueError
        When called, if the crystal has no oxidation states that sum to zero, if it lacks an element that is to be
        replaced or removed, or if no number of dopants leaves a supercell neutral.
    """
    limits, doping = count_range(n_atoms), doping or {}
    # The crystal of a random base is drawn anew each time; this one shows whether the request is possible.
    example = _prepare(draw_base(of, rng=np.random.default_rng(0), index=index), limits)
    oxidation = _find_charges(example, doping, charges or {})
    if not any(_list_counts(_count(cell, repeats), doping, oxidation, vacancy) for cell, repeats in _each(example)):
        raise ValueError(
            f"doping: no supercell of {limits[0]} to {limits[1]} atoms is neutral with dopants within these fractions; "
            "widen the fractions or raise n_atoms"
        )
    return (
        _draw(rng, _prepare(draw_base(of, rng=rng, index=index), limits), doping, vacancy, oxidation, strain, rattle)
        for _ in count()
    )


def _prepare(crystal: Atoms, limits: tuple[int, int]) -> Supercells:
    """Return the supercells of a crystal."""
    if not crystal.pbc.all():
        raise ValueError("of: an ionic crystal is periodic along three axes; this one is not")
    return _supercells(crystal.cell.array.tobytes(), crystal.positions.tobytes(), crystal.numbers.tobytes(), limits)


@lru_cache(maxsize=32)
def _supercells(cell: bytes, positions: bytes, numbers: bytes, limits: tuple[int, int]) -> Supercells:
    kinds = np.frombuffer(numbers, dtype=np.int64)
    places = np.frombuffer(positions).reshape(-1, 3)
    crystal = primitive_cell(Atoms(kinds, places, cell=np.frombuffer(cell).reshape(3, 3), pbc=True))
    return find_supercells(crystal.get_chemical_formula(), crystal, limits)


def _each(supercells: Supercells) -> Iterator[tuple[Atoms, tuple[int, int, int]]]:
    for each in supercells.values():
        yield each[0]


def _count(cell: Atoms, repeats: tuple[int, int, int]) -> dict[str, int]:
    n_cells = int(np.prod(repeats))
    return {symbol: n * n_cells for symbol, n in cell.symbols.formula.count().items()}


def _find_charges(
    supercells: Supercells, doping: Mapping[str, Mapping[str, object]], charges: Mapping[str, int]
) -> dict[str, float]:
    """Return the oxidation states of the crystal's elements and of the dopants."""
    cell = next(_each(supercells))[0]
    formula = cell.symbols.formula.reduce()[0].convert("metal")
    amounts = formula.count()
    oxidation: dict[str, float] = {**guess_oxidation(str(formula)), **charges}
    missing = [symbol for symbol in amounts if symbol not in oxidation]
    total = sum(n * oxidation.get(symbol, 0) for symbol, n in amounts.items())
    if missing or abs(total) > NEUTRAL:
        known = f"sum to {total:+g}" if not missing else "cannot balance"
        raise ValueError(
            f"of: the oxidation states of {formula} {known}; give those of all its elements, "
            f"e.g. charges: {{{', '.join(f'{symbol}: ...' for symbol in amounts)}}}"
        )
    for host, dopants in doping.items():
        if host not in amounts:
            raise ValueError(f"doping: {formula} has no {host} to replace; it has {', '.join(amounts)}")
        for dopant in dopants:
            oxidation.setdefault(dopant, _usual_charge(dopant, oxidation[host]))
    return oxidation


def _usual_charge(symbol: str, host: float) -> float:
    """Return the common oxidation state of an element that is nearest to that of the ion it replaces."""
    from pymatgen.core import Element as Listed

    states = [state for state in Listed(symbol).common_oxidation_states if state * host > 0]
    if not states:
        raise ValueError(
            f"doping: {symbol} has no common oxidation state of the sign of {host:+g}; give charges: {{{symbol}: ...}}"
        )
    return float(min(states, key=lambda state: (abs(state - host), state)))


def _list_counts(
    amounts: Mapping[str, int],
    doping: Mapping[str, Mapping[str, tuple[float, float]]],
    oxidation: Mapping[str, float],
    vacancy: str | None,
) -> list[tuple[tuple[int, ...], str, int]]:
    """List the numbers of dopants that leave a cell neutral, with the element that is removed and how many of it."""
    return _neutral_counts(json.dumps([amounts, doping, oxidation, vacancy]))


@lru_cache(maxsize=256)
def _neutral_counts(request: str) -> list[tuple[tuple[int, ...], str, int]]:
    amounts, doping, oxidation, vacancy = json.loads(request)
    pairs = [(host, dopant, *fractions) for host, each in doping.items() for dopant, fractions in each.items()]
    ranges = [
        range(int(np.ceil(low * amounts[host] - NEUTRAL)), int(high * amounts[host] + NEUTRAL) + 1)
        for host, _, low, high in pairs
    ]
    if np.prod([float(len(each)) for each in ranges]) > MAX_COUNTS:
        raise ValueError("doping: too many combinations of dopants; narrow the fractions")
    fitting = []
    for counts in product(*ranges):
        left = dict(amounts)
        for n, (host, _, _, _) in zip(counts, pairs, strict=True):
            left[host] -= n
        total = sum(
            n * (oxidation[dopant] - oxidation[host]) for n, (host, dopant, _, _) in zip(counts, pairs, strict=True)
        )
        removed = vacancy or _choose_vacancy(total, pairs, amounts, oxidation)
        n_removed = total / oxidation[removed] if removed in amounts else -1.0
        if (
            min(left.values()) >= 0
            and -NEUTRAL < n_removed <= left.get(removed, 0)
            and abs(n_removed - round(n_removed)) < NEUTRAL
        ):
            fitting.append((counts, removed, round(n_removed)))
    return fitting


def _choose_vacancy(
    total: float, pairs: list[tuple[str, str, float, float]], amounts: Mapping[str, int], oxidation: Mapping[str, float]
) -> str:
    """Return the element to remove: an anion from a cell that is negative, a cation from one that is positive."""
    if total > 0 and pairs:
        host, _, _, _ = max(pairs, key=lambda pair: oxidation[pair[1]] - oxidation[pair[0]])
        if oxidation[host] > 0:
            return host
    same_sign = [symbol for symbol in amounts if oxidation[symbol] * (total or -1) > 0]
    return max(same_sign, key=lambda symbol: amounts[symbol])


def _draw(
    rng: np.random.Generator,
    supercells: Supercells,
    doping: Mapping[str, Mapping[str, tuple[float, float]]],
    vacancy: str | None,
    oxidation: Mapping[str, float],
    max_strain: float,
    rattle: float,
) -> Atoms:
    """Draw one crystal; see `ionic`."""
    fitting = {
        size: each for size, each in supercells.items() if _list_counts(_count(*each[0]), doping, oxidation, vacancy)
    }
    atoms = draw_supercell(rng, fitting)
    options = _list_counts(atoms.symbols.formula.count(), doping, oxidation, vacancy)
    counts, removed, n_removed = options[int(rng.integers(len(options)))]
    before = _mean_bond(atoms, oxidation)
    symbols = np.array(atoms.get_chemical_symbols(), dtype=object)
    free = {host: rng.permutation(np.flatnonzero(symbols == host)) for host in {removed, *doping}}
    pairs = [(host, dopant) for host, dopants in doping.items() for dopant in dopants]
    for n, (host, dopant) in zip(counts, pairs, strict=True):
        symbols[free[host][:n]] = dopant
        free[host] = free[host][n:]
    gone = free[removed][:n_removed]
    atoms.symbols = symbols.tolist()
    atoms.set_cell(atoms.cell.array * _mean_bond(atoms, oxidation) / before, scale_atoms=True)
    kept = np.setdiff1d(np.arange(len(atoms)), gone)
    atoms = Atoms(atoms.numbers[kept], atoms.positions[kept], cell=atoms.cell.array, pbc=True)
    apply_strain(rng, atoms, max_strain)
    displace_atoms(rng, atoms, rattle)
    atoms.info = {"system_type": "crystal", "charge": 0}
    return atoms


def _mean_bond(atoms: Atoms, oxidation: Mapping[str, float]) -> float:
    """Return the mean length of the bonds of valence one between cations and anions of a crystal, Å."""
    amounts = atoms.symbols.formula.count()
    lengths = [
        (valence_distance(cation, anion), n * m)
        for cation, n in amounts.items()
        for anion, m in amounts.items()
        if oxidation[cation] > 0 > oxidation[anion]
    ]
    values, weights = zip(*lengths, strict=True)
    return float(np.average(values, weights=weights))
