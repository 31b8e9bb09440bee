"""Random numbers of one trajectory: a function of structure, conditions, replica and step, and of nothing else.

The numbers of a step do not depend on the batch, the unit or the step at which a killed unit resumed. A checkpoint
holds no state of a generator.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np

from daskpipe.core import seeds

BLOCK = 32
"""Steps whose numbers are drawn together: starting a stream takes as long as drawing some thousand numbers."""


class Purpose(IntEnum):
    """Purpose of random numbers. Changing a value here changes all trajectories."""

    VELOCITIES = 0
    THERMOSTAT = 1
    RESCALING = 2
    BAROSTAT = 3
    MOVES = 4


type Draw = Callable[[np.random.Generator, int], np.ndarray]


class RandomNumbers:
    """Source of random numbers of one trajectory.

    Parameters
    ----------
    key
        From `daskpipe.core.seeds.stream_key`.
    """

    def __init__(self, key: int) -> None:
        self.key = key
        self._blocks: dict[Purpose, tuple[int, np.ndarray]] = {}

    def stream_at(self, purpose: Purpose, step: int) -> np.random.Generator:
        """Return the stream of one step, for numbers that are not drawn at every step."""
        return seeds.stream_at(self.key, purpose, step)

    def draw_steps(self, purpose: Purpose, step: int, n_steps: int, draw: Draw) -> np.ndarray:
        """Return the numbers of the steps after `step`.

        Parameters
        ----------
        purpose, step, n_steps
            Purpose of the numbers, the last step made, and the number of steps that follow.
        draw
            Gives the numbers of so many steps, shape (steps, ...), from a generator; the same one for each call.

        Returns
        -------
        numpy.ndarray
            Shape (n_steps, ...).
        """
        parts = []
        for number in range(step // BLOCK, (step + n_steps - 1) // BLOCK + 1):
            if self._blocks.get(purpose, (-1,))[0] != number:
                self._blocks[purpose] = (number, draw(self.stream_at(purpose, number), BLOCK))
            first = number * BLOCK
            parts.append(self._blocks[purpose][1][max(step - first, 0) : step + n_steps - first])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
