"""Every n-th frame, for comparison with selection by hand."""

from __future__ import annotations

import numpy as np

from daskpipe.stages.select.blocks import Blocks, Picks


class Stride:
    """Pick frames in even steps of the order in which they are stored, the first one included.

    The one method whose picks depend on that order and on nothing else.

    Parameters
    ----------
    n
        Frames to pick; the step is the number of frames over `n`, each pick rounded down to a whole frame.
    seed
        Not used.
    """

    def __init__(self, *, n: int, seed: int) -> None:
        self.n = n

    def pick(self, blocks: Blocks) -> Picks:
        """Return `n` frames in even steps."""
        n = min(self.n, len(blocks.order))
        index = np.arange(n, dtype=np.int64) * len(blocks.order) // n
        return Picks(index=index, cluster=np.full(n, -1, dtype=np.int32), reason="stride")
