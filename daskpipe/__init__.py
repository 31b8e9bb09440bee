"""daskpipe: make a labelled dataset for machine-learning interatomic potentials from a short config.

Structures flow as Dask bags through GPU-resourced molecular dynamics, descriptors are chunked Dask arrays,
MiniBatchKMeans strata decide which frames earn a label, and the labelled data lands in a Zarr store.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskpipe import load
    from daskpipe.core.structures import from_atoms, to_atoms
    from daskpipe.pipeline.datasets import import_labelled, merge
    from daskpipe.runs.run import Result, resume, run
    from daskpipe.stages.describe.soap.drop_in import SOAP
    from daskpipe.stages.select.pick import pick
    from daskpipe.store import export, open_dataset

__version__ = "0.1.0"

# Imported on first use, so that `import daskpipe` loads neither torch nor Dask.
_LAZY = {
    "run": "daskpipe.runs.run:run",
    "resume": "daskpipe.runs.run:resume",
    "Result": "daskpipe.runs.run:Result",
    "open_dataset": "daskpipe.store:open_dataset",
    "export": "daskpipe.store:export",
    "merge": "daskpipe.pipeline.datasets:merge",
    "import_labelled": "daskpipe.pipeline.datasets:import_labelled",
    "to_atoms": "daskpipe.core.structures:to_atoms",
    "from_atoms": "daskpipe.core.structures:from_atoms",
    "SOAP": "daskpipe.stages.describe.soap.drop_in:SOAP",
    "pick": "daskpipe.stages.select.pick:pick",
    "load": "daskpipe.load:",
}

__all__ = [
    "SOAP", "Result", "export", "from_atoms", "import_labelled", "load", "merge", "open_dataset", "pick", "resume",
    "run", "to_atoms",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'daskpipe' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    loaded = import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
