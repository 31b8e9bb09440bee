"""The kit for selectors names what is wrong: one that keeps its promises, broken in one way at a time."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest

from daskpipe.stages.select.blocks import Blocks, Picks
from daskpipe.testing import check_selector


class Largest:
    """Pick the rows with the largest first feature; of equal ones the first of the canonical order."""

    def __init__(self, *, n: int, seed: int) -> None:
        self.n, self.seed = n, seed

    def score(self, blocks: Blocks) -> np.ndarray:
        return np.concatenate([features[:, 0] for _, features in blocks])

    def pick(self, blocks: Blocks) -> Picks:
        index = np.lexsort((blocks.rank, -self.score(blocks)))[: self.n].astype(np.int64)
        return self.finish(np.sort(index))

    def finish(self, index: np.ndarray) -> Picks:
        return Picks(index=index, cluster=np.full(len(index), -1, dtype=np.int32), reason="largest")


class Unsorted(Largest):
    def finish(self, index: np.ndarray) -> Picks:
        return super().finish(index[::-1])


class Twice(Largest):
    def finish(self, index: np.ndarray) -> Picks:
        return super().finish(np.concatenate([index[:1], index[:-1]]))


class Beyond(Largest):
    def finish(self, index: np.ndarray) -> Picks:
        return super().finish(index + 4296)


class OneLess(Largest):
    def finish(self, index: np.ndarray) -> Picks:
        return super().finish(index[1:])


class Int32(Largest):
    def finish(self, index: np.ndarray) -> Picks:
        return super().finish(index.astype(np.int32))


class WideStrata(Largest):
    def finish(self, index: np.ndarray) -> Picks:
        return Picks(index=index, cluster=np.zeros(len(index), dtype=np.int64), reason="largest")


class NoReason(Largest):
    def finish(self, index: np.ndarray) -> Picks:
        return Picks(index=index, cluster=np.zeros(len(index), dtype=np.int32), reason="")


class GlobalSeed(Largest):
    def score(self, blocks: Blocks) -> np.ndarray:
        return np.random.random(blocks.n_rows)  # noqa: NPY002 (what the kit is to find)


class GlobalDraw(Largest):
    def score(self, blocks: Blocks) -> np.ndarray:
        random.random()
        return super().score(blocks)


class Reseeds(Largest):
    def score(self, blocks: Blocks) -> np.ndarray:
        np.random.seed(0)  # noqa: NPY002 (what the kit is to find)
        return super().score(blocks)


class ByChunk(Largest):
    """Compare a row with its own chunk alone."""

    def score(self, blocks: Blocks) -> np.ndarray:
        if not hasattr(blocks.features, "dask"):
            return super().score(blocks)
        parts = [block.compute()[:, 0] for block in blocks.features.blocks]
        return np.concatenate([part - part.mean() for part in parts])


class Unmasked(Largest):
    def score(self, blocks: Blocks) -> np.ndarray:
        score = super().score(blocks)
        return score + np.asarray(blocks.features)[0, 0] * np.arange(len(score)) if blocks.keep is not None else score


class FirstStored(Largest):
    def score(self, blocks: Blocks) -> np.ndarray:
        return -np.arange(blocks.n_rows)


class Writes(Largest):
    def score(self, blocks: Blocks) -> np.ndarray:
        features = np.asarray(blocks.features)
        features[:] = 0
        return features[:, 0]


class KeepsNan(Largest):
    def score(self, blocks: Blocks) -> np.ndarray:
        features = np.nan_to_num(np.asarray(blocks.features), nan=1e9)
        return features[:, -1] if blocks.keep is None else features[blocks.keep, -1]


class HidesRow(Largest):
    def score(self, blocks: Blocks) -> np.ndarray:
        if not np.isfinite(np.asarray(blocks.features)).all():
            raise ValueError("not finite")  # and does not say where
        return super().score(blocks)


class NeedsMany(Largest):
    def pick(self, blocks: Blocks) -> Picks:
        assert blocks.n_rows >= self.n, "too few rows"
        return super().pick(blocks)


class FitsOnly(Largest):
    def fit_block(self, features: np.ndarray) -> None: ...


class FloatStrata(FitsOnly):
    def assign(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return features[:, 0], features[:, 0]


def test_a_good_selector_passes() -> None:
    check_selector(Largest)
    check_selector(partial(FirstStored), follows_storage=True)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Unsorted, r"the picks are not sorted"),
        (Twice, r"a structure is picked twice"),
        (Beyond, r"a pick lies beyond the last structure"),
        (OneLess, r"25 of \d+ structures asked for, index has shape \(24,\)"),
        (Int32, r"index has dtype int32, not int64"),
        (WideStrata, r"cluster has dtype int64, not int32"),
        (NoReason, r"reason is empty"),
        (GlobalSeed, r"the same seed picks otherwise a second time"),
        (GlobalDraw, r"the global generator of Python was used"),
        (Reseeds, r"the global generator of NumPy was used"),
        (ByChunk, r"chunks of \(\d+, \d+, \d+\)\.\.\. rows change the picks"),
        (Unmasked, r"rows that are masked out change the picks"),
        (FirstStored, r"structures stored in another order are picked otherwise; follow blocks\.order"),
        (KeepsNan, r"a NaN is not refused and changes the picks"),
        (HidesRow, r"the refusal of a NaN does not name its row, \d+: not finite"),
        (NeedsMany, r"too few rows"),
        (FitsOnly, r"fit_block and assign come together"),
        (FloatStrata, r"assign gives strata of dtype float32, not int32"),
    ],
)
def test_a_broken_selector_is_named_with_its_fault(broken: type, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_selector(broken)


def test_features_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        check_selector(Writes)


def test_the_number_of_picks_must_leave_a_choice() -> None:
    with pytest.raises(ValueError, match="n must be at least 1 and less than n_structures=20, received 20"):
        check_selector(Largest, n=20, n_structures=20)
