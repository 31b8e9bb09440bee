"""Crystal structures by name: space group, positions of the sites and shape of the cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from ase import Atoms
from ase.data import chemical_symbols

from daskpipe.core.errors import describe_unknown
from daskpipe.stages.generate.bonding import Pattern
from daskpipe.stages.generate.supercells import primitive_cell

Position = tuple[float, float, float]

T = 1 / 3
CLOSE_PACKED = (8 / 3) ** 0.5
"""Ratio c/a of close-packed spheres in hcp."""


@dataclass(frozen=True, kw_only=True)
class Prototype:
    """A structure type.

    Parameters
    ----------
    space_group
        Number of the space group.
    sites
        Fractional coordinates of the sites of each kind in the conventional cell, one for each Wyckoff position.
    shape
        The ratios b/a and c/a of the conventional cell.
    angles
        Angles of the conventional cell, degrees.
    setting
        Origin choice, as in the International Tables.
    """

    space_group: int
    sites: Mapping[str, tuple[Position, ...]]
    shape: tuple[float, float] = (1.0, 1.0)
    angles: Position = (90.0, 90.0, 90.0)
    setting: int = 1

    @property
    def conventional_cell(self) -> Atoms:
        """Conventional cell, with atomic number 1 on the sites of the first kind, 2 on those of the second."""
        from ase.spacegroup import crystal

        basis = [position for positions in self.sites.values() for position in positions]
        kinds = [kind for kind, positions in enumerate(self.sites.values(), 1) for _ in positions]
        cell = crystal(
            [chemical_symbols[kind] for kind in kinds],
            basis,
            spacegroup=self.space_group,
            setting=self.setting,
            cellpar=[4.0, 4.0 * self.shape[0], 4.0 * self.shape[1], *self.angles],
        )
        return Atoms(cell.numbers, cell.positions, cell=cell.cell.array, pbc=True)


def _hexagonal(space_group: int, c: float, **sites: tuple[Position, ...]) -> Prototype:
    return Prototype(space_group=space_group, sites=sites, shape=(1.0, c), angles=(90.0, 90.0, 120.0))


def _tetragonal(space_group: int, c: float, *, setting: int = 1, **sites: tuple[Position, ...]) -> Prototype:
    return Prototype(space_group=space_group, sites=sites, shape=(1.0, c), setting=setting)


def _cubic(space_group: int, *, setting: int = 1, **sites: tuple[Position, ...]) -> Prototype:
    return Prototype(space_group=space_group, sites=sites, setting=setting)


O = (0.0, 0.0, 0.0)  # noqa: E741 (the origin)
Q = (0.25, 0.25, 0.25)
H = (0.5, 0.5, 0.5)

PROTOTYPES: dict[str, Prototype] = {
    # Elements
    "simple_cubic": _cubic(221, A=(O,)),
    "fcc": _cubic(225, A=(O,)),
    "bcc": _cubic(229, A=(O,)),
    "hcp": _hexagonal(194, CLOSE_PACKED, A=((T, 2 * T, 0.25),)),
    "dhcp": _hexagonal(194, 2 * CLOSE_PACKED, A=(O, (T, 2 * T, 0.25))),
    "diamond": _cubic(227, A=(O,)),
    "graphite": _hexagonal(194, 2.73, A=((0, 0, 0.25), (T, 2 * T, 0.25))),
    "alpha_arsenic": _hexagonal(166, 2.62, A=((0, 0, 0.233),)),
    "beta_tin": _tetragonal(141, 0.546, A=(O,)),
    # AX
    "rocksalt": _cubic(225, A=(O,), X=(H,)),
    "cesium_chloride": _cubic(221, A=(O,), X=(H,)),
    "zincblende": _cubic(216, A=(O,), X=(Q,)),
    "wurtzite": _hexagonal(186, CLOSE_PACKED, A=((T, 2 * T, 0),), X=((T, 2 * T, 0.375),)),
    "nickel_arsenide": _hexagonal(194, 1.39, A=(O,), X=((T, 2 * T, 0.25),)),
    "boron_nitride": _hexagonal(194, 2.66, A=((T, 2 * T, 0.25),), X=((T, 2 * T, 0.75),)),
    "tungsten_carbide": _hexagonal(187, 0.976, A=(O,), X=((T, 2 * T, 0.5),)),
    "iron_silicide": _cubic(198, A=((0.137, 0.137, 0.137),), X=((0.842, 0.842, 0.842),)),
    "L1_0": _tetragonal(123, 1.31, A=(O,), X=(H,)),
    # AX2 and A2X
    "fluorite": _cubic(225, A=(O,), X=(Q,)),
    "antifluorite": _cubic(225, A=(Q,), X=(O,)),
    "rutile": _tetragonal(136, 0.644, A=(O,), X=((0.305, 0.305, 0),)),
    "anatase": _tetragonal(141, 2.514, A=(O,), X=((0, 0, 0.2081),)),
    "brookite": Prototype(
        space_group=61,
        sites={"A": ((0.1289, 0.0972, 0.8628),), "X": ((0.0095, 0.1491, 0.1835), (0.2314, 0.1110, 0.5366))},
        shape=(0.593, 0.560),
    ),
    "baddeleyite": Prototype(
        space_group=14,
        sites={"A": ((0.2754, 0.0395, 0.2083),), "X": ((0.07, 0.3317, 0.3447), (0.4496, 0.7569, 0.4792))},
        shape=(1.0119, 1.0324),
        angles=(90.0, 99.23, 90.0),
    ),
    "pyrite": _cubic(205, A=(O,), X=((0.385, 0.385, 0.385),)),
    "cuprite": _cubic(224, A=(Q,), X=(O,)),
    "cadmium_iodide": _hexagonal(164, 1.6, A=(O,), X=((T, 2 * T, 0.25),)),
    "cadmium_chloride": _hexagonal(166, 4.53, A=(O,), X=((0, 0, 0.25),)),
    "molybdenite": _hexagonal(194, 3.89, A=((T, 2 * T, 0.25),), X=((T, 2 * T, 0.621),)),
    "aluminium_diboride": _hexagonal(191, 1.08, A=(O,), X=((T, 2 * T, 0.5),)),
    "laves_C14": _hexagonal(194, CLOSE_PACKED, A=((T, 2 * T, 0.062),), X=(O, (0.83, 0.66, 0.25))),
    "laves_C15": _cubic(227, setting=2, A=((0.125, 0.125, 0.125),), X=(H,)),
    "molybdenum_disilicide": _tetragonal(139, 2.45, A=(O,), X=((0, 0, 0.335),)),
    # AX3, A3X and A2X3
    "L1_2": _cubic(221, A=(O,), X=((0.5, 0.5, 0),)),
    "D0_3": _cubic(225, A=(O,), X=(Q, H)),
    "D0_19": _hexagonal(194, 0.81, A=((T, 2 * T, 0.25),), X=((0.833, 0.666, 0.25),)),
    "D0_22": _tetragonal(139, 2.2, A=(O,), X=((0, 0, 0.5), (0, 0.5, 0.25))),
    "A15": _cubic(223, A=((0.25, 0, 0.5),), X=(O,)),
    "rhenium_trioxide": _cubic(221, A=(O,), X=((0.5, 0, 0),)),
    "skutterudite": _cubic(204, A=(Q,), X=((0, 0.335, 0.16),)),
    "corundum": _hexagonal(167, 2.73, A=((0, 0, 0.352),), X=((0.306, 0, 0.25),)),
    "bixbyite": _cubic(206, A=(Q, (0.968, 0, 0.25)), X=((0.391, 0.152, 0.380),)),
    "bismuth_telluride": _hexagonal(166, 6.96, A=((0, 0, 0.4),), X=(O, (0, 0, 0.212))),
    "calcium_copper": _hexagonal(191, 0.8, A=(O,), X=((T, 2 * T, 0), (0.5, 0, 0.5))),
    "calcium_hexaboride": _cubic(221, A=(O,), X=((0.5, 0.5, 0.2),)),
    # Three elements and more
    "half_heusler": _cubic(216, A=(O,), B=(Q,), X=(H,)),
    "heusler": _cubic(225, A=(Q,), B=(O,), X=(H,)),
    "max_phase": _hexagonal(194, 4.4, A=((T, 2 * T, 0.084),), B=((T, 2 * T, 0.75),), X=(O,)),
    "thorium_chromium_silicide": _tetragonal(139, 2.6, A=(O,), B=((0, 0.5, 0.25),), X=((0, 0, 0.38),)),
    "layered_oxide": _hexagonal(166, 4.99, A=((0, 0, 0.5),), B=(O,), X=((0, 0, 0.26),)),
    "delafossite": _hexagonal(166, 5.93, A=(O,), B=((0, 0, 0.5),), X=((0, 0, 0.11),)),
    "chalcopyrite": _tetragonal(122, 1.97, A=(O,), B=((0, 0, 0.5),), X=((0.2575, 0.25, 0.125),)),
    "perovskite": _cubic(221, A=(H,), B=(O,), X=((0.5, 0, 0),)),
    "orthorhombic_perovskite": Prototype(
        space_group=62,
        sites={
            "A": ((0.036, 0.25, 0.9932),),
            "B": ((0.5, 0, 0),),
            "X": ((0.4838, 0.25, 0.0714), (0.2888, 0.0371, 0.7108)),
        },
        shape=(1.4038, 0.9885),
    ),
    "ilmenite": _hexagonal(148, 2.767, A=((0, 0, 0.3553),), B=((0, 0, 0.1464),), X=((0.3174, 0.0233, 0.245),)),
    "lithium_niobate": _hexagonal(161, 2.69, A=((0, 0, 0.2787),), B=(O,), X=((0.0492, 0.3446, 0.0647),)),
    "calcite": _hexagonal(167, 3.42, A=(O,), B=((0, 0, 0.25),), X=((0.2568, 0, 0.25),)),
    "ruddlesden_popper": _tetragonal(139, 3.3, A=((0, 0, 0.355),), B=(O,), X=((0, 0.5, 0), (0, 0, 0.155))),
    "double_perovskite": _cubic(225, A=(Q,), B=(O,), C=(H,), X=((0.245, 0, 0),)),
    "vacancy_ordered_perovskite": _cubic(225, A=(Q,), B=(O,), X=((0.24, 0, 0),)),
    "spinel": _cubic(227, setting=2, A=((0.125, 0.125, 0.125),), B=(H,), X=((0.2625, 0.2625, 0.2625),)),
    "zircon": _tetragonal(
        141, 0.905, setting=2, A=((0, 0.75, 0.125),), B=((0, 0.25, 0.375),), X=((0, 0.0661, 0.1953),)
    ),
    "scheelite": _tetragonal(
        88, 2.169, setting=2, A=((0, 0.25, 0.625),), B=((0, 0.25, 0.125),), X=((0.1507, 0.0086, 0.2106),)
    ),
    "garnet": _cubic(230, A=((0.125, 0, 0.25),), B=(O,), C=((0.375, 0, 0.25),), X=((-0.0306, 0.0512, 0.15),)),
}
"""Structure types by name. Coordinates and ratios are those of the compounds that they are named after, rounded;
garnet's of Y3Al5O12, layered_oxide's of LiCoO2, delafossite's of CuAlO2, orthorhombic_perovskite's of CaTiO3. Wyckoff
positions are those of the AFLOW Encyclopedia of Crystallographic Prototypes (Mehl et al., Comput. Mater. Sci. 136, S1,
2017)."""


def check_prototype(name: str) -> str:
    """Return `name` if it is a known structure type, else raise ValueError with similar ones and the list."""
    if name not in PROTOTYPES:
        raise ValueError(describe_unknown("prototype", name, sorted(PROTOTYPES)))
    return name


@cache
def load_pattern(name: str) -> Pattern:
    """Return the pattern of a structure type by name; its numbers mark the kinds of sites in the order of the table."""
    return Pattern.from_cell(primitive_cell(PROTOTYPES[name].conventional_cell))
