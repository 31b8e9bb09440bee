"""Random picks, for comparison."""

from __future__ import annotations

import numpy as np

from daskpipe.stages.select.blocks import Blocks, Picks


class Random:
    """Pick frames at random without replacement, all equally likely.

    Parameters
    ----------
    n
        Frames to pick.
    seed
        Decides the canonical order, of which the first `n` frames are drawn.
    """

    def __init__(self, *, n: int, seed: int) -> None:
        self.n = n

    def pick(self, blocks: Blocks) -> Picks:
        """Return the first `n` frames of the canonical order, which is a shuffle of all frames."""
        index = np.sort(blocks.order[: self.n]).astype(np.int64)
        return Picks(index=index, cluster=np.full(len(index), -1, dtype=np.int32), reason="random")
