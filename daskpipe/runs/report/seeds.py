"""Describe the diversity of the seeds of a run."""

from __future__ import annotations

from daskpipe.engine.rows import read_unit
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Receipt
from daskpipe.stages.generate.diversity import format_diversity, measure_diversity


def describe_seeds(directory: RunDirectory, receipts: list[Receipt], config: str) -> list[str]:
    """Describe the diversity of the seeds that a run has made so far, as lines of text."""
    import yaml

    keys = [receipt.key for receipt in receipts if receipt.n_out]
    if not keys:
        return []
    sources = (yaml.safe_load(config).get("generate") or {}).get("sources") or {}
    wanted = {name: source["n"] for name, source in sources.items() if source.get("n")}
    units = (read_unit(directory.root, "generate", key) for key in keys)
    return format_diversity(measure_diversity(units, sum(receipt.n_out for receipt in receipts), wanted))
