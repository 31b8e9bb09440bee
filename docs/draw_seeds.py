"""Draw structures of a source of seeds, as docs/assets/generators has them.

python docs/draw_seeds.py docs/assets/generators/alloys.png '{generator: alloys, elements: {Cu: 1}, n_atoms: [8, 32]}'
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import yaml
from ase.visualize.plot import plot_atoms

from daskpipe.core.errors import Rejection
from daskpipe.stages.generate.checks import Limits
from daskpipe.stages.generate.sources import Source
from daskpipe.stages.generate.stage import generate_partition, list_requests

COLUMNS, ROWS = 6, 2


def draw_sources(path: Path, *sources: dict[str, Any]) -> None:
    """Draw twelve structures of some sources in one picture, each with its formula below."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    each = COLUMNS * ROWS // len(sources)
    models = {f"s{number}": Source.model_validate({"n": each, **source}) for number, source in enumerate(sources)}
    requests = list_requests(models, [], Path.cwd())
    made = generate_partition(requests, seed=0, limits=Limits())
    seeds = [item for item in made if not isinstance(item, Rejection)]
    for item in made:
        if isinstance(item, Rejection):
            print(f"{item.structure}: {item.reason}: {item.evidence}")
    figure, axes = plt.subplots(ROWS, COLUMNS, figsize=(COLUMNS * 1.9, ROWS * 2.2))
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, atoms in zip(axes.flat, seeds, strict=False):
        plot_atoms(atoms, axis, rotation="-75x,15y,0z", show_unit_cell=2 if atoms.pbc.any() else 0)
        axis.set_title(atoms.get_chemical_formula("metal"), fontsize=8, y=-0.12)
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    draw_sources(Path(sys.argv[1]), *(yaml.safe_load(text) for text in sys.argv[2:]))
