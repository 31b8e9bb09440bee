"""Near-duplicates by looking at all pairs."""

import math

import numpy as np


def find_near_duplicates(
    rows: np.ndarray, order: np.ndarray, limit: float, against: np.ndarray
) -> tuple[list[bool], list[bool]]:
    """For each row: does it lie within `limit` of the dataset; of an earlier row that is kept?"""
    of_dataset, of_pool = [False] * len(rows), [False] * len(rows)
    kept: list[int] = []
    for row in order.tolist():
        point = rows[row].astype(float)
        of_dataset[row] = any(math.dist(point, other) <= limit for other in against.astype(float))
        of_pool[row] = any(math.dist(point, rows[other].astype(float)) <= limit for other in kept)
        if not (of_dataset[row] or of_pool[row]):
            kept.append(row)
    return of_dataset, of_pool
