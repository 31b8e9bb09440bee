"""Draw pictures of structures, with ASE and matplotlib."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms

VIEW = "-75x,20y,5z"
"""Rotation, in degrees: a little from above, so that layers and cells are seen."""

INCHES, DOTS = 2.0, 160
"""Width and height of a picture, in inches, and its resolution, in dots an inch."""


@dataclass(frozen=True)
class Thumbnail:
    """Picture of a structure, as a data URI, and its formula, size and id."""

    uri: str
    formula: str
    n_atoms: int
    id: str


def draw_thumbnails(pictures: Mapping[str, list[Atoms]]) -> dict[str, list[Thumbnail]]:
    """Draw structures, by kind of system."""
    return {
        kind: [_draw_structure(atoms) for atoms in atoms_of_kind]
        for kind, atoms_of_kind in pictures.items()
        if atoms_of_kind
    }


def make_legend(symbols: Iterable[str]) -> dict[str, str]:
    """Return the colour of each element in the pictures."""
    from ase.data import atomic_numbers
    from ase.data.colors import jmol_colors

    rounded = {symbol: [round(255 * part) for part in jmol_colors[atomic_numbers[symbol]]] for symbol in symbols}
    return {symbol: f"#{red:02x}{green:02x}{blue:02x}" for symbol, (red, green, blue) in rounded.items()}


def _draw_structure(atoms: Atoms) -> Thumbnail:
    from ase.visualize.plot import plot_atoms
    from matplotlib.figure import Figure

    figure = Figure(figsize=(INCHES, INCHES), dpi=DOTS)
    axes = figure.add_axes((0, 0, 1, 1))
    shown = atoms.copy()
    shown.wrap()
    plot_atoms(shown, axes, rotation=VIEW, show_unit_cell=2 if atoms.pbc.any() and atoms.cell.rank == 3 else 0)
    axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Thumbnail(uri, atoms.get_chemical_formula(), len(atoms), atoms.info["structure_id"].hex()[:8])
