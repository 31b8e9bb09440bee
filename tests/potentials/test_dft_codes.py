"""ORCA, VASP and Quantum ESPRESSO through ASE: their words for convergence, and what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from daskpipe.core.errors import ConfigError
from daskpipe.potentials import espresso, identify_potential, orca, vasp

ORCA_GOOD = "Last Energy change  ...  -1.2e-09\n SCF CONVERGED AFTER  12 CYCLES\n****ORCA TERMINATED NORMALLY****\n"
ORCA_BAD = "Last Energy change         ...  -3.4e-03\n SCF NOT CONVERGED AFTER 125 CYCLES\n"
VASP_STEP = """--------------------------------------- Iteration      1(  40)  ----------------
  total energy-change (2. order) :-0.2345678E-03  (-0.1E-03)
"""
VASP_SAYS = "the SCF did not converge in 40 steps; its last change was -0.2345678E-03 eV"
PW_STEP = "     estimated scf accuracy    <       0.00123000 Ry\n"
PW_BAD = f"{PW_STEP * 2}     convergence NOT achieved after 100 iterations: stopping"


@pytest.mark.parametrize(
    ("module", "name", "text", "evidence"),
    [
        (orca, "orca.out", ORCA_GOOD, None),
        (orca, "orca.out", ORCA_BAD, "the SCF did not converge in 125 cycles; its last change was -3.4e-03 Hartree"),
        (vasp, "OUTCAR", f"{VASP_STEP} aborting loop because EDIFF is reached", None),
        (vasp, "OUTCAR", VASP_STEP, VASP_SAYS),
        (vasp, "OUTCAR", f"{VASP_STEP} aborting loop EDIFF was not reached (unconverged)", VASP_SAYS),
        (espresso, "espresso.pwo", f"{PW_STEP}     convergence has been achieved in  12 iterations", None),
        (
            espresso,
            "espresso.pwo",
            PW_BAD,
            "the SCF did not converge in 2 steps; its estimated error was 0.00123000 Ry",
        ),
    ],
)
def test_labels_count_only_where_the_program_says_so(tmp_path: Path, module, name, text, evidence):
    (tmp_path / name).write_text(text)
    fault = module.find_unconverged(tmp_path)
    if evidence is None:
        assert fault is None
    else:
        assert fault.reason == "unconverged"
        assert fault.evidence == evidence


def test_orca_that_broke_off_is_no_success(tmp_path: Path):
    (tmp_path / "orca.out").write_text("SCF CONVERGED AFTER  12 CYCLES\n[file orca_main] aborting the run\n")
    fault = orca.find_unconverged(tmp_path)
    assert fault is not None
    assert fault.reason == "failed"
    assert "aborting the run" in fault.evidence


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("orca", {"command": "no_such_program"}),
        ("vasp", {"command": "no_such_program"}),
        ("espresso", {"command": "no_such_program", "pseudopotentials": {"Si": "Si.UPF"}, "pseudo_dir": "."}),
    ],
)
def test_a_program_that_is_not_there_is_named(name, params):
    with pytest.raises(ConfigError, match=f"potential '{name}' needs the program 'no_such_program'"):
        identify_potential(name, params)


def test_a_pseudopotential_that_is_not_there_is_named(tmp_path: Path):
    params = {"command": "true", "pseudopotentials": {"Si": "Si.UPF"}, "pseudo_dir": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"pseudopotentials.Si: there is no .*Si\.UPF"):
        identify_potential("espresso", params)
    (tmp_path / "Si.UPF").write_text("one")
    first = identify_potential("espresso", params)
    assert first.elements == {"Si"}
    (tmp_path / "Si.UPF").write_text("another")
    assert identify_potential("espresso", params).hash != first.hash, "the bytes of a pseudopotential count"


def test_calculators_are_made_with_our_settings():
    made = orca.make_calculator("true", "PBE def2-SVP EnGrad", "")
    assert made.parameters["orcasimpleinput"] == "PBE def2-SVP EnGrad"
    made = espresso.make_calculator("true", ".", {"Si": "Si.UPF"}, 0.25, {"electrons": {"conv_thr": 1e-9}})
    assert made.parameters["kspacing"] == pytest.approx(0.25 / 6.2831853)
