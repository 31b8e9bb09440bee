"""Unit of work: key, attempt directory, commit by rename, receipt, quarantine.

Truth is a run directory of write-once folders; Dask moves work and holds none of it::

    units/STAGE/K0/KEY/   payload.npz  rejected.json  manifest.json, and files of the unit's own
    quarantine/KEY.json   one file a rejected structure, written by the driver from the committed units
    ledger/0001.jsonl     one segment a driver start: an index, rebuildable from the units

A unit may run twice, anywhere, at any time: the first rename wins and the other attempt is thrown away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Buffer, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from daskpipe.core.errors import Rejection
from daskpipe.core.hashing import canonical_json

if TYPE_CHECKING:
    pass

# --- keys -------------------------------------------------------------------------------------------


def key_of(stage: str, version: int, params: Mapping[str, Any], upstream: Sequence[Any], seed: int) -> str:
    """Return the key of a unit: 32 hex digits that hash all that decides its bytes.

    Parameters
    ----------
    stage, version
        The room and the version of its algorithm.
    params
        Parameters that decide the numbers (not: worker counts or devices), model hashes among them.
    upstream
        Keys, and rows, of what the unit reads.
    seed
        The run's seed.
    """
    text = canonical_json([stage, version, dict(params), list(upstream), seed])
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"daskpipe-unit").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One partition of one stage."""

    stage: str
    index: int
    key: str
    n_inputs: int
    upstream: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.stage} unit {self.index} ({self.key[:8]})"


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What a unit made: arrays by name, and the inputs that it rejected.

    `files` are kept beside the arrays, byte for byte: what is mapped, or becomes a part of the dataset, as it is.
    """

    arrays: Mapping[str, np.ndarray]
    n_out: int
    rejected: list[Rejection] = field(default_factory=list)
    tallies: Mapping[str, int] = field(default_factory=dict)
    """Counts of what happened, such as trial moves; they are summed over units."""
    files: Mapping[str, Buffer] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a task returns instead of data: under 2 kB, all that the driver needs to go on."""

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


# --- the run directory ---------------------------------------------------------------------------------------


# --- datasets in and out of units -------------------------------------------------------------------
