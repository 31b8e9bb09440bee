"""Reports of a selection and of splits, as stages write them."""

from __future__ import annotations

from typing import Any

REPORT: dict[str, Any] = {
    "method": "fps",
    "n_pool": 12_000,
    "n_picked": 1_500,
    "duplicates": {"against_pool": 1_234, "against_dataset": 0, "threshold": 0.001, "scale": 0.2},
    "candidates": {"marked": 0, "picked": 0},
    "coverage": {
        "clusters_hit": 0.75, "bins_hit": 0.504, "elements_hit": 1.0, "nearest_mean": 0.012345, "nearest_p95": 0.0456,
        "nearest_max": 1.5,
    },
}  # fmt: skip

SPLIT_REPORT: dict[str, Any] = {
    "by": "seed", "near_duplicates": 0.01, "n_groups": 1_200, "largest_group": 40, "frame_distance": 0.1,
    "counts": {"test": 1_000, "train": 8_000, "val": 0}, "leakage": {"test": 0.004}, "leakage_random": {"test": 0.61},
}  # fmt: skip
