"""Wire generators into a lazy Dask bag of seed structures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import dask
import dask.bag as db
import numpy as np
from ase import Atoms
from pydantic_core import to_jsonable_python

from daskpipe.core.errors import ConfigError, Rejection
from daskpipe.core.seeds import random_stream
from daskpipe.core.structures import copy_arrays, from_atoms, hex_ids, round_positions
from daskpipe.engine.rows import UnitRows, dataset_to_arrays, read_unit
from daskpipe.engine.units import Payload
from daskpipe.stages.generate import GENERATORS, INFO_KEYS, call_generator, family_size, is_enumerated
from daskpipe.stages.generate.base import hash_base
from daskpipe.stages.generate.checks import Limits, find_fault, system_type
from daskpipe.stages.generate.reading.electrons import ElectronError, electrons_of
from daskpipe.stages.generate.reading.frame_ranges import FrameRange, read_frame_range
from daskpipe.stages.generate.reading.left_out import NOTED, shorten_tallies, tally_names
from daskpipe.stages.generate.sources import Source

if TYPE_CHECKING:
    import xarray as xr

VERSION = 2

TRIES = 20
"""Structures that are drawn, at most, until one passes the checks of seeds."""

REFUSED = "refused"
"""Key of ``info``, and beginning of the names of tallies: reasons why the structures drawn before this one failed."""

FILES = "files"
"""Name of the generator, and of the source, that reads the paths in the config."""

EXTERNAL = "external"
"""Name of the generator that runs a program of another environment."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One piece of work for a generator: a random structure, a molecule or a file.

    Parameters
    ----------
    source
        Name of the source in the config.
    generator
        Name of the generator.
    index
        Number of the request within its source. With the run's seed and the source it decides the random stream.
    params
        Parameters of the generator, JSON types.
    digest
        Checksum of the file to read, if any: it decides the structures as the parameters do.
    count
        Number of structures to take from a random generator: more than one of those that come in families.
    """

    source: str
    generator: str
    index: int
    params: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    count: int = 1

    @property
    def name(self) -> str:
        """Name of the request in messages."""
        return f"{self.source}#{self.index}"

    def fingerprint(self) -> list[Any]:
        """Return all that decides the structures of the request beside the run's seed, as JSON types.

        Parameters that a generator got after its first version, named by ``ADDED_PARAMETERS`` in its module, are left
        out where they have their default: runs made before keep their keys.
        """
        added = GENERATORS.find_companion(self.generator, "ADDED_PARAMETERS") or ()
        fields = GENERATORS.params_model(self.generator).model_fields if added else {}
        params = {
            name: value
            for name, value in self.params.items()
            if name not in added or value != to_jsonable_python(fields[name].get_default())
        }
        family = [self.count] if self.count > 1 else []
        return [self.source, self.generator, self.index, params, self.digest, *family]


def list_requests(sources: Mapping[str, Source], paths: list[str], base_dir: Path) -> list[Request]:
    """List what to generate, in the order of the sources, files last.

    Parameters
    ----------
    sources
        Sources of the config by name.
    paths
        Files, folders and globs, which become a further source named ``files``.
    base_dir
        Folder that relative paths start from.

    Raises
    ------
    ConfigError
        If there is nothing to generate, if the name of a source is not one word or is taken, or if a generator refuses
        its parameters.
    InputError
        If a path does not exist.
    """
    sources = dict(sources)
    if paths:
        if FILES in sources:
            raise ConfigError(f"a source is named {FILES!r}, as that of paths is; give its files in paths or rename it")
        sources[FILES] = Source.model_validate({"generator": FILES, "paths": paths})
    made: list[Request] = []
    for name, source in sources.items():
        if name.split() != [name]:
            raise ConfigError(f"source {name!r}: use one word without white space as its name")
        try:
            made += _requests_of(name, source, base_dir)
        except ValueError as error:
            raise ConfigError(f"generate.sources.{name}: {error}") from error
    if not made:
        raise ConfigError("nothing to generate: give sources, or paths of your own structures")
    return made


def _requests_of(name: str, source: Source, base_dir: Path) -> list[Request]:
    request = partial(Request, source=name, generator=source.generator)
    if is_enumerated(source.generator):
        items = GENERATORS.find_companion(source.generator, "expand_requests")(source.params, source.n, base_dir)
        return [request(index=index, params=params, digest=digest) for index, (params, digest) in enumerate(items)]
    # A call checks the parameters against each other before anything is drawn.
    open_stream(request(index=0, params=source.params), seed=0)
    digest, family, n = hash_base(source.params), family_size(source.generator, source.params), source.n or 0
    return [
        request(index=index, params=source.params, digest=digest, count=min(family, n - index * family))
        for index in range(-(-n // family))
    ]


def open_stream(request: Request, *, seed: int) -> Iterator[Atoms | Rejection]:
    """Return what the generator of a request yields, from the random stream of the request; nothing is drawn yet.

    Raises
    ------
    ValueError
        If parameters of the generator contradict each other.
    """
    rng = random_stream(seed, "generate", request.source, request.index)
    return call_generator(GENERATORS.get(request.generator), request.params, rng=rng, index=request.index)


def cut_requests(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Cut requests into batches of at most `size` structures, or files; one request is never cut.

    Examples
    --------
    >>> batches = cut_requests([Request(source="a", generator="alloys", index=i, count=3) for i in range(3)], size=6)
    >>> [[request.index for request in batch] for batch in batches]
    [[0, 1], [2]]
    """
    batches: list[list[Request]] = []
    room = 0
    for request in requests:
        if not batches or request.count > room:
            batches.append([])
            room = size
        batches[-1].append(request)
        room -= request.count
    return batches


def generate_seeds(requests: list[Request], *, seed: int, limits: Limits, partition_size: int) -> db.Bag:
    """Return the seed structures as a lazy bag of ``Atoms | Rejection``.

    Parameters
    ----------
    requests
        Requests from `list_requests`.
    seed
        The run's seed. Each request has its own random stream, so that neither partition size nor order matters.
    limits
        Limits that structures must satisfy.
    partition_size
        Number of requests of a partition.
    """
    parts = [requests[start : start + partition_size] for start in range(0, len(requests), partition_size)]
    # Named here: Dask would hash every request, in the process that keeps the workers busy.
    lazy = [
        dask.delayed(
            partial(generate_partition, part, seed=seed, limits=limits), name=f"seeds-{uuid4().hex}", traverse=False
        )()
        for part in parts
    ]
    return db.from_delayed(lazy)


def generate_partition(requests: list[Request], *, seed: int, limits: Limits) -> list[Atoms | Rejection]:
    """Generate and check the structures of some requests, in order.

    A random structure that fails the checks is replaced by the next of its stream, and counted; after `TRIES` of them
    the request becomes a rejection. What fails of a list, such as a file, becomes a rejection.

    Positions are rounded as the dataset stores them. ``info`` has system_type, generator (the name of the source) and,
    where they are known, charge, spin_multiplicity and config_type. Initial charges and magnetic moments of atoms,
    isotopes and fixed atoms are kept; calculators are dropped.

    Raises
    ------
    Exception
        Any error of a generator: it is a bug or an impossible geometry, not a bad structure.
    """
    out: list[Atoms | Rejection] = []
    for request in requests:
        try:
            structures = (
                item if isinstance(item, Rejection) else _finish_structure(item, request, limits)
                for item in open_stream(request, seed=seed)
            )
            made = list(structures) if is_enumerated(request.generator) else _draw_admitted(structures, request)
        except Exception as error:
            error.add_note(f"while generating {request.name}")
            raise
        if not made:
            raise ValueError(f"generator {request.generator!r} made nothing for {request.name}")
        out += made
    return out


def _draw_admitted(structures: Iterator[Atoms | Rejection], request: Request) -> list[Atoms | Rejection]:
    """Take as many structures from a random stream as the request wants, each in place of those that failed before."""
    taken: list[Atoms | Rejection] = []
    failed: list[Rejection] = []
    for item in islice(structures, request.count * TRIES):
        if isinstance(item, Rejection):
            failed.append(item)
            continue
        if failed:
            item.info[REFUSED] = tuple(rejection.reason for rejection in failed)
            failed = []
        taken.append(item)
        if len(taken) == request.count:
            return taken
    missing = request.count - len(taken)
    if not failed and not taken:
        return []
    reasons = Counter(rejection.reason for rejection in failed)
    counted = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common()) or "none"
    last = f"the last: {failed[-1].evidence}" if failed else "the generator ended"
    evidence = f"{len(failed)} structures in a row failed ({counted}); {last}"
    reason = failed[-1].reason if failed else "exhausted"
    name = request.name
    taken += [
        Rejection(stage="generate", structure=f"{name}/{number}" if number else name, reason=reason, evidence=evidence)
        for number in range(missing)
    ]
    return taken


def _finish_structure(made: Atoms, request: Request, limits: Limits) -> Atoms | Rejection:
    # A new object has no calculator, tags or momenta.
    info = {key: made.info[key] for key in INFO_KEYS if key in made.info}
    name = made.info.get("name", request.name)
    try:
        atoms = Atoms(made.numbers, made.positions, cell=made.cell.array, pbc=made.pbc, info=info | electrons_of(made))
        copy_arrays(made, round_positions(atoms))
    except ElectronError as error:
        return Rejection(stage="generate", structure=name, reason=error.reason, evidence=str(error))
    except ValueError as error:
        return Rejection(stage="generate", structure=name, reason="constraint", evidence=str(error))
    if fault := find_fault(atoms, limits):
        return Rejection(stage="generate", structure=name, reason=fault.reason, evidence=fault.evidence)
    if "system_type" not in atoms.info:
        atoms.info["system_type"] = system_type(atoms)
    atoms.info["generator"] = request.source
    if NOTED in made.info:
        atoms.info[NOTED] = made.info[NOTED]
    return atoms


def to_payloads(items: list[Atoms | Rejection]) -> list[Payload]:
    """Flatten a partition of the bag into the payload of a unit; its tallies count what files hold and is left out."""
    rejected = [item for item in items if isinstance(item, Rejection)]
    seeds = [item for item in items if not isinstance(item, Rejection)]
    tallies = Counter(name for atoms in seeds for name in tally_names(atoms.info.get(NOTED, ())))
    tallies += Counter(
        f"{REFUSED}/{atoms.info['generator']}/{reason}" for atoms in seeds for reason in atoms.info.get(REFUSED, ())
    )
    arrays = dataset_to_arrays(from_atoms(seeds))
    return [Payload(arrays=arrays, n_out=len(seeds), rejected=rejected, tallies=shorten_tallies(tallies))]


def count_refused(tallies: Mapping[str, int]) -> dict[str, int]:
    """Return how many structures failed the checks and were replaced, by ``source/reason``, from tallies of units.

    Examples
    --------
    >>> count_refused({"refused/alloys/overlap": 3, "left_out/tags": 1})
    {'alloys/overlap': 3}
    """
    prefix = f"{REFUSED}/"
    return {name.removeprefix(prefix): n for name, n in sorted(tallies.items()) if name.startswith(prefix)}


def frame_range_payload(frame_range: FrameRange) -> Payload:
    """Read a frame range of a file into the payload of a unit."""
    (payload,) = to_payloads(list(read_frame_range(frame_range)))
    return payload


def load_frame_range(frame_range: FrameRange) -> xr.Dataset:
    """Read a frame range of a file, without the frames that cannot be described."""
    return from_atoms([item for item in read_frame_range(frame_range) if not isinstance(item, Rejection)])


def list_elements(units: Iterable[np.ndarray]) -> list[str]:
    """List the elements that occur in units of frames.

    Parameters
    ----------
    units
        Atomic numbers of the atoms of each unit, shape (atom,).

    Returns
    -------
    list of str
        Chemical symbols, sorted.

    Examples
    --------
    >>> list_elements([np.array([29, 79]), np.array([8, 29])])
    ['Au', 'Cu', 'O']
    """
    from ase.data import chemical_symbols

    numbers = np.unique(np.concatenate([np.unique(unit) for unit in units]))
    return sorted(chemical_symbols[number] for number in numbers.tolist())


def find_distinct_seeds(
    root: Path, keys: list[str], holds: Callable[[str], bool] = lambda _: True
) -> tuple[list[UnitRows], list[Rejection], list[str]]:
    """Find the distinct ones among committed seeds.

    Parameters
    ----------
    root
        Run directory.
    keys
        Keys of the units of seeds, in canonical order.
    holds
        Returns whether a seed, by its id in hex, belongs to this run; other shards explore the others.

    Returns
    -------
    rows : list of Rows
        Location of each seed; of equal structures only the first.
    duplicates : list of Rejection
        The other ones, whose trajectories would be the same.
    elements : list of str
        Symbols of the elements that occur, sorted.
    """
    from ase.data import chemical_symbols

    rows: list[UnitRows] = []
    duplicates: list[Rejection] = []
    first: dict[str, str] = {}
    numbers: set[int] = set()
    for key in keys:
        ds = read_unit(root, "generate", key)
        numbers |= set(ds["numbers"].values.tolist())
        for row, structure in enumerate(hex_ids(ds)):
            name = f"{ds['composition'].values[row]} from {ds['generator'].values[row]}"
            if structure in first:
                duplicates.append(
                    Rejection(
                        stage="generate",
                        structure=f"{structure}/{len(duplicates)}",
                        reason="duplicate",
                        evidence=f"{name} equals the seed {first[structure]}",
                    )
                )
                continue
            first[structure] = name
            if holds(structure):
                rows.append(UnitRows(stage="generate", key=key, rows=(row,)))
    return rows, duplicates, sorted(chemical_symbols[number] for number in numbers)
