"""Coverage of a pool by picks, a feature and a row at a time."""

import math
from collections import Counter

import numpy as np


def find_bins(column: np.ndarray, n_bins: int) -> list[int]:
    """Bin of each value between the extremes; the largest value belongs to the last bin."""
    low, high = column.min(), column.max()
    return [0 if high == low else min(int((value - low) / (high - low) * n_bins), n_bins - 1) for value in column]


def shannon_entropy(found: list[int]) -> float:
    """Shannon entropy of the bins in nats."""
    return -sum(count / len(found) * math.log(count / len(found)) for count in Counter(found).values())


def measure_feature(column: np.ndarray, picked: list[int], n_bins: int) -> tuple[float, float]:
    """Entropy of the picks over that of the pool (1 for a constant), and share of the pool's bins that they hit."""
    pool = find_bins(column, n_bins)
    picks = [pool[row] for row in picked]
    ratio = shannon_entropy(picks) / shannon_entropy(pool) if len(set(pool)) > 1 else 1.0
    return ratio, len(set(picks)) / len(set(pool))


def nearest_distances(rows: np.ndarray, picked: list[int]) -> list[float]:
    """Distance of each row to its nearest pick."""
    return [min(math.dist(row, rows[pick]) for pick in picked) for row in rows]
