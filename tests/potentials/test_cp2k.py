"""CP2K's density functional theory, computed here where the program is installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from daskpipe.core.errors import ConfigError
from daskpipe.potentials import Failure, Results, build_potential, evaluate, identify_potential
from daskpipe.potentials.cp2k_input import Cp2kSettings, count_k_points, read_kinds, write_input
from daskpipe.potentials.cp2k_shell import find_unconverged
from daskpipe.stages.label.settings import LabelChecks

needs_cp2k = pytest.mark.skipif(shutil.which("cp2k_shell.psmp") is None, reason="no CP2K here: apt install cp2k")

QUICK = {"cutoff": 350.0, "rel_cutoff": 50.0, "basis": "SZV-MOLOPT-SR-GTH"}
"""The same code at a tenth of the cost."""

SETTINGS = Cp2kSettings(
    functional="PBE", basis="DZVP-MOLOPT-SR-GTH", cutoff=500.0, rel_cutoff=60.0, eps_scf=1e-6, max_scf=100,
    k_width=14.0, method="auto",
)  # fmt: skip

BASIS = """# a comment
 H  DZVP-MOLOPT-SR-GTH DZVP-MOLOPT-SR-GTH-q1
 1
 Cu DZVP-MOLOPT-SR-GTH DZVP-MOLOPT-SR-GTH-q11
 Cu TZVP-MOLOPT-SR-GTH TZVP-MOLOPT-SR-GTH-q11
 Og DZVP-MOLOPT-SR-GTH DZVP-MOLOPT-SR-GTH-q8
"""
POTENTIALS = """H GTH-PBE-q1 GTH-PBE
Cu GTH-PBE-q11 GTH-PBE
Cu GTH-PBE-q19
Og GTH-PBE-q18
"""


def label(structures: list[Atoms], **params) -> list[Results | Failure]:
    return evaluate(build_potential("cp2k", params, "cpu", "float64"), structures)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "BASIS_MOLOPT").write_text(BASIS)
    (tmp_path / "GTH_POTENTIALS").write_text(POTENTIALS)
    return tmp_path


def test_an_element_needs_a_basis_and_a_pseudopotential_of_as_many_electrons(data):
    kinds = read_kinds(data, "DZVP-MOLOPT-SR-GTH", "PBE")
    assert {symbol: kind.n_electrons for symbol, kind in kinds.items()} == {"H": 1, "Cu": 11}
    assert kinds["Cu"].potential == "GTH-PBE-q11"
    assert read_kinds(data, "DZVP-MOLOPT-SR-GTH", "BLYP") == {}


def test_molecules_are_open_and_crystals_have_k_points(data):
    kinds = read_kinds(data, "DZVP-MOLOPT-SR-GTH", "PBE")
    radical = Atoms("H", info={"charge": 0})
    text = write_input(radical, SETTINGS, kinds, data, robust=False)
    assert "PSOLVER WAVELET" in text
    assert "UKS T" in text
    assert "STRESS_TENSOR ANALYTICAL" not in text
    assert "&OT" in text
    assert "&OT" not in write_input(radical, SETTINGS, kinds, data, robust=True)
    crystal = write_input(bulk("Cu"), SETTINGS, kinds, data, robust=False)
    assert "SCHEME MONKHORST-PACK 7 7 7" in crystal
    assert "FERMI_DIRAC" in crystal
    assert "STRESS_TENSOR ANALYTICAL" in crystal


def test_k_points_fill_the_width_of_the_cell_and_a_slab_has_one_across():
    assert count_k_points(bulk("Cu", cubic=True), 14.0) == (4, 4, 4)
    assert count_k_points(bulk("Cu", cubic=True).repeat(4), 14.0) == (1, 1, 1)
    slab = bulk("Cu", cubic=True)
    slab.pbc = (True, True, False)
    assert count_k_points(slab, 14.0) == (4, 4, 1)
    assert count_k_points(molecule("H2O"), 14.0) == (1, 1, 1)


STEPS = """    19 OT DIIS     0.15E+00    0.3     0.00012345       -17.1640447508 -1.2E-04
    20 OT DIIS     0.15E+00    0.3     0.00004321       -17.1640448508 -1.0E-07
"""


@pytest.mark.parametrize(
    ("log", "evidence"),
    [
        (f"{STEPS}  *** SCF run converged in    20 steps ***", None),
        (
            f"{STEPS}  *** WARNING :: SCF run NOT converged ***",
            "in 2 steps; its last change was 4.3e-05",
        ),
        (
            f"{STEPS}  Leaving inner SCF loop after 20 steps.\n outer SCF loop converged in 2 iterations",
            None,
        ),
        ("", "in 0 steps"),
    ],
)
def test_a_field_counts_only_if_cp2k_says_that_it_converged(log, evidence):
    found = find_unconverged(log)
    if evidence is None:
        assert found is None
    else:
        assert found is not None
        assert found.reason == "unconverged"
        assert found.evidence == f"the SCF did not converge {evidence}"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"command": "no_such_cp2k"}, "needs the program no_such_cp2k, which is not on the PATH; apt install cp2k"),
        ({"command": "true", "data": "/no/such/folder"}, "no BASIS_MOLOPT and GTH_POTENTIALS in /no/such/folder"),
    ],
)
def test_what_is_missing_is_named_before_anything_runs(params, message):
    with pytest.raises(ConfigError, match=message):
        identify_potential("cp2k", params)


def test_an_unknown_basis_is_named(data):
    with pytest.raises(ConfigError, match="no element has the basis 'nonsense' and a pseudopotential for PBE"):
        identify_potential("cp2k", {"command": "true", "data": str(data), "basis": "nonsense"})


def test_a_program_that_is_no_cp2k_says_what_it_wrote(data):
    with pytest.raises(ConfigError, match="false does not start: its process ended with exit code 1"):
        label([Atoms("H")], command="false", data=str(data))


@needs_cp2k
@pytest.mark.slow
def test_molecules_forces_and_what_does_not_converge():
    near, far = molecule("H2"), molecule("H2")
    step = 0.02
    far.positions[0, 2] += step
    found, moved = label([near, far], **QUICK)
    assert isinstance(found, Results), found
    assert isinstance(moved, Results), moved
    slope = -(moved.energy - found.energy) / step
    assert slope == pytest.approx((found.forces[0, 2] + moved.forces[0, 2]) / 2, abs=0.02)
    assert np.isnan(found.stress).all()
    (fault,) = label([near], **QUICK, max_scf=1, eps_scf=1e-9)
    assert isinstance(fault, Failure)
    assert fault.reason == "unconverged"
    assert "with strong damping: the SCF did not converge" in fault.evidence


@needs_cp2k
@pytest.mark.slow
def test_molecules_and_a_solid_are_labelled():
    silicon = bulk("Si")
    silicon.rattle(0.03, seed=0)
    found = label([*map(molecule, ("H", "HF")), silicon], **QUICK, k_width=6.0)
    assert [item for item in found if isinstance(item, Failure)] == []
    solid = found[-1]
    assert isinstance(solid, Results)
    assert np.isfinite(solid.stress).all()
    assert np.abs(solid.forces.sum(axis=0)).max() < 2 * LabelChecks().max_net_force
