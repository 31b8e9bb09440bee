"""Seed structures as a Dask bag: wiring only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.bag as db
import numpy as np
from ase import Atoms

from daskpipe.core.errors import ConfigError, Rejection
from daskpipe.core.seeds import random_stream
from daskpipe.core.structures import copy_arrays, from_atoms, hex_ids, round_positions
from daskpipe.engine.rows import UnitRows, dataset_to_arrays, read_unit
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload
from daskpipe.stages.generate import ENUMERATED, GENERATORS
from daskpipe.stages.generate.checks import Limits, find_fault, system_type
from daskpipe.stages.generate.electrons import ElectronError, electrons_of
from daskpipe.stages.generate.frame_ranges import FrameRange, read_frame_range
from daskpipe.stages.generate.left_out import NOTED, shorten_tallies, tally_names
from daskpipe.stages.generate.sources import Source

if TYPE_CHECKING:
    import xarray as xr

VERSION = 2

FILES = "files"
"""Generator, and name of the source, that reads the paths in the config."""

INFO_KEYS = ("system_type", "charge", "spin_multiplicity", "config_type")
"""What generators may say of a structure."""


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
        Number of the request within its source; with the run's seed and the source it fixes the random stream.
    params
        Parameters of the generator, JSON types.
    digest
        Checksum of the file that is read, if any: it decides the outcome as the parameters do.
    """

    source: str
    generator: str
    index: int
    params: dict[str, Any] = field(default_factory=dict)
    digest: str = ""

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"{self.source}#{self.index}"

    def fingerprint(self) -> list[Any]:
        """Return what decides the structures of the request, next to the run's seed: JSON types."""
        return [self.source, self.generator, self.index, self.params, self.digest]


def list_requests(sources: Mapping[str, Source], paths: list[str], base_dir: Path) -> list[Request]:
    """Return what is to be generated, in the order of the sources, files last.

    Parameters
    ----------
    sources
        Sources of the config by name.
    paths
        Files, folders and globs, read as a further source named ``files``.
    base_dir
        Folder that relative paths start from.

    Raises
    ------
    ConfigError
        If there is nothing to generate, a name of a source is no word or taken, or a generator refuses its parameters.
    InputError
        If a path is not there.
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
    if source.generator in ENUMERATED:
        module, _, attribute = ENUMERATED[source.generator].partition(":")
        items = getattr(import_module(module), attribute)(source.params, source.n, base_dir)
    else:
        # Generators check their parameters together when they are called, before they draw.
        GENERATORS.get(source.generator)(rng=random_stream(0, "generate", name), **source.params)
        items = [(source.params, "")] * (source.n or 0)
    return [
        Request(source=name, generator=source.generator, index=index, params=params, digest=digest)
        for index, (params, digest) in enumerate(items)
    ]


def generate_seeds(requests: list[Request], *, seed: int, limits: Limits, partition_size: int) -> db.Bag:
    """Return the seed structures as a lazy bag of ``Atoms | Rejection``.

    Parameters
    ----------
    requests
        What to generate, from `list_requests`.
    seed
        The run's seed. Each request has its own stream: neither the partition size nor the order matters.
    limits
        What structures must satisfy.
    partition_size
        Number of requests of a partition.
    """
    bag = db.from_sequence(requests, partition_size=partition_size)
    seeds: db.Bag = bag.map_partitions(generate_partition, seed=seed, limits=limits)
    return seeds


def generate_partition(requests: list[Request], *, seed: int, limits: Limits) -> list[Atoms | Rejection]:
    """Return the structures of some requests, checked, in order; those that fail as rejections.

    Positions are rounded as they will be stored. ``info`` holds system_type, generator (the name of the source) and,
    where they are known, charge, spin_multiplicity and config_type; initial charges and magnetic moments of atoms,
    isotopes and fixed atoms are kept, calculators are dropped.

    Raises
    ------
    Exception
        Whatever a generator raises: that is a bug or an impossible geometry, not a bad structure.
    """
    out: list[Atoms | Rejection] = []
    for request in requests:
        generator = GENERATORS.get(request.generator)
        structures = generator(rng=random_stream(seed, "generate", request.source, request.index), **request.params)
        try:
            made = list(structures if request.generator in ENUMERATED else islice(structures, 1))
        except Exception as error:
            error.add_note(f"while generating {request.name}")
            raise
        if not made:
            raise ValueError(f"generator {request.generator!r} made nothing for {request.name}")
        out += [item if isinstance(item, Rejection) else _finish_structure(item, request, limits) for item in made]
    return out


def _finish_structure(made: Atoms, request: Request, limits: Limits) -> Atoms | Rejection:
    # A fresh object: no calculator, tag or momentum comes along.
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
    atoms.info.setdefault("system_type", system_type(atoms))
    atoms.info["generator"] = request.source
    if NOTED in made.info:
        atoms.info[NOTED] = made.info[NOTED]
    return atoms


def to_payloads(items: list[Atoms | Rejection]) -> list[Payload]:
    """Flatten a partition of the bag into what a unit commits; tallies count what files hold and was not taken."""
    rejected = [item for item in items if isinstance(item, Rejection)]
    seeds = [item for item in items if not isinstance(item, Rejection)]
    tallies = shorten_tallies(Counter(name for atoms in seeds for name in tally_names(atoms.info.get(NOTED, ()))))
    return [Payload(arrays=dataset_to_arrays(from_atoms(seeds)), n_out=len(seeds), rejected=rejected, tallies=tallies)]


def frame_range_payload(frame_range: FrameRange) -> Payload:
    """Flatten the frames of a range of a file into what a unit commits."""
    (payload,) = to_payloads(list(read_frame_range(frame_range)))
    return payload


def load_frame_range(frame_range: FrameRange) -> xr.Dataset:
    """Read the frames of a range of a file, without those that cannot be described."""
    return from_atoms([item for item in read_frame_range(frame_range) if not isinstance(item, Rejection)])


def list_elements(root: Path, keys: list[str]) -> list[str]:
    """Symbols of the elements that occur in units of frames, sorted."""
    from ase.data import chemical_symbols

    units = [RunDirectory(root).load_arrays("explore", key, ["numbers"])["numbers"] for key in keys]
    numbers = np.unique(np.concatenate([np.unique(unit) for unit in units]))
    return sorted(chemical_symbols[number] for number in numbers.tolist())


def find_distinct_seeds(
    root: Path, keys: list[str], holds: Callable[[str], bool] = lambda _: True
) -> tuple[list[UnitRows], list[Rejection], list[str]]:
    """Look through committed seeds.

    Parameters
    ----------
    root
        Run directory.
    keys
        Keys of the units of seeds, in canonical order.
    holds
        Whether a seed, by its id in hex, belongs to this run; another shard explores the others.

    Returns
    -------
    rows : list of Rows
        Where each seed is, one after another; of equal structures only the first.
    duplicates : list of Rejection
        The others: their trajectories would be the same.
    elements : list of str
        Symbols that occur, sorted.
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
