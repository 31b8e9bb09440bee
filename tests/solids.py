"""Crystals at their measured lattice constants (Å), of all common kinds of bonding, for tests and benchmarks."""

from __future__ import annotations

from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal

FCC = {
    "Al": 4.050, "Ca": 5.588, "Ni": 3.524, "Cu": 3.615, "Rh": 3.803, "Pd": 3.891, "Ag": 4.086, "Pt": 3.924, "Au": 4.078,
    "Pb": 4.951,
}  # fmt: skip
BCC = {
    "Li": 3.510,
    "Na": 4.291,
    "V": 3.024,
    "Cr": 2.885,
    "Fe": 2.866,
    "Nb": 3.301,
    "Mo": 3.147,
    "Ta": 3.303,
    "W": 3.165,
}
HCP = {"Be": (2.286, 3.584), "Mg": (3.209, 5.211), "Ti": (2.951, 4.684), "Co": (2.507, 4.069), "Zn": (2.665, 4.947)}
BINARY = {
    "rocksalt": {"LiF": 4.026, "NaCl": 5.640, "MgO": 4.212, "CaO": 4.811, "TiC": 4.328, "TiN": 4.242, "NiO": 4.177},
    "cesiumchloride": {"CsCl": 4.123},
    "zincblende": {"BN": 3.615, "SiC": 4.360, "ZnS": 5.409, "GaAs": 5.653},
    "fluorite": {"CaF2": 5.463, "ZrO2": 5.090, "CeO2": 5.411, "UO2": 5.471},
}
DIAMOND = {"C": 3.567, "Si": 5.431, "Ge": 5.658}


def solids() -> dict[str, Atoms]:
    """Return the crystals by name, each in a small cell, periodic along all vectors."""
    made = {name: bulk(name, "fcc", a=a) for name, a in FCC.items()}
    made |= {name: bulk(name, "bcc", a=a) for name, a in BCC.items()}
    made |= {name: bulk(name, "hcp", a=a, c=c) for name, (a, c) in HCP.items()}
    made |= {name: bulk(name, "diamond", a=a) for name, a in DIAMOND.items()}
    for lattice, lengths in BINARY.items():
        made |= {name: bulk(name, lattice, a=a) for name, a in lengths.items()}
    made["ZnO"] = bulk("ZnO", "wurtzite", a=3.250, c=5.207)
    made["SrTiO3"] = crystal(
        ["Sr", "Ti", "O"], [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)], spacegroup=221, cellpar=[3.905] * 3 + [90] * 3
    )
    made["ReO3"] = crystal(["Re", "O"], [(0, 0, 0), (0.5, 0, 0)], spacegroup=221, cellpar=[3.748] * 3 + [90] * 3)
    made["TiO2"] = crystal(
        ["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.594, 4.594, 2.959, 90, 90, 90]
    )
    made["Al2O3"] = crystal(
        ["Al", "O"], [(0, 0, 0.352), (0.306, 0, 0.25)], spacegroup=167, cellpar=[4.759, 4.759, 12.991, 90, 90, 120]
    )
    made["SiO2"] = crystal(
        ["Si", "O"],
        [(0.4697, 0, 2 / 3), (0.4135, 0.2669, 0.7858)],
        spacegroup=154,
        cellpar=[4.913, 4.913, 5.405, 90, 90, 120],
    )
    made["V2O5"] = crystal(
        ["V", "O", "O", "O"],
        [(0.10118, 0.25, -0.1083), (0.1043, 0.25, -0.469), (-0.0689, 0.25, 0.003), (0.25, 0.25, 0.001)],
        spacegroup=59, setting=2, cellpar=[11.512, 3.564, 4.368, 90, 90, 90],
    )  # fmt: skip
    made["graphite"] = crystal(
        "CC", [(0, 0, 0.25), (1 / 3, 2 / 3, 0.25)], spacegroup=194, cellpar=[2.461, 2.461, 6.708, 90, 90, 120]
    )
    made["CO2"] = crystal("CO", [(0, 0, 0), (0.1187, 0.1187, 0.1187)], spacegroup=205, cellpar=[5.624] * 3 + [90] * 3)
    made["N2"] = crystal("N", [(0.0560, 0.0560, 0.0560)], spacegroup=205, cellpar=[5.644] * 3 + [90] * 3)
    return {
        name: Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True) for name, atoms in made.items()
    }
