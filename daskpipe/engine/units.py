"""Define a unit of work: its key, what it makes, and the receipt of its commit.

Truth is a run directory of write-once folders; Dask moves work and holds none of it::

    units/STAGE/K0/KEY/   payload.npz  rejected.json  manifest.json, and files of the unit's own
    quarantine/KEY.json   one file a rejected structure, written by the driver from the committed units
    ledger/0001.jsonl     one segment a driver start: an index, rebuildable from the units

A unit may run twice, anywhere, at any time: the first rename wins, and the other attempt is thrown away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Buffer, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from daskpipe.core.errors import Rejection
from daskpipe.core.hashing import canonical_json


def unit_key(stage: str, version: int, params: Mapping[str, Any], upstream: Sequence[Any], seed: int) -> str:
    """Return the key of a unit: 32 hex digits that hash all that decides its bytes.

    Parameters
    ----------
    stage, version
        The stage and the version of its algorithm.
    params
        Parameters that decide the numbers (not: worker counts or devices), model hashes among them.
    upstream
        Keys, and rows, of what the unit reads.
    seed
        The seed of the run.

    Examples
    --------
    >>> unit_key("label", 1, {"model": "emt"}, ["a1", "b2"], seed=0)
    'af6fe050c196a80c66b266e9728868f6'
    """
    text = canonical_json([stage, version, dict(params), list(upstream), seed])
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"daskpipe-unit").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Name one partition of one stage.

    Parameters
    ----------
    stage, index, key
        The stage, the position of the unit in it, and its key, from `unit_key`.
    n_inputs
        Number of inputs: requests, seeds, frames.
    upstream
        Keys of the units that it reads.
    """

    stage: str
    index: int
    key: str
    n_inputs: int
    upstream: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.stage} unit {self.index} ({self.key[:8]})"


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Hold what a unit made: arrays by name, and the inputs that it rejected.

    `files` are kept beside the arrays, byte for byte: files that are mapped, or become parts of the dataset.
    """

    arrays: Mapping[str, np.ndarray]
    n_out: int
    rejected: list[Rejection] = field(default_factory=list)
    tallies: Mapping[str, int] = field(default_factory=dict)
    """Counts of events such as trial moves; they are summed over units."""
    files: Mapping[str, Buffer] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Hold what a task returns in place of data: under 2 kB, all that the driver needs to continue."""

    stage: str
    index: int
    key: str
    n_inputs: int
    n_out: int
    n_rejected: int
    counts: dict[str, int]
    n_bytes: int
    seconds: float
    worker: str
    tallies: dict[str, int] = field(default_factory=dict)
