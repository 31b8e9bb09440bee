"""A calculator in a process of its own: what it does to itself harms one structure and no other."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from daskpipe.core.errors import ConfigError, Yielded
from daskpipe.potentials import Failure, Results
from daskpipe.potentials.child_process import TRIES, ChildLimits
from daskpipe.potentials.isolated.process import CalculatorProcess, CalculatorSpec, isolate_calculator

HOSTILE = f"{Path(__file__).parent / 'hostile.py'}:Hostile"
PATIENCE = 4.0
"""Seconds that a structure may take: a hundred times what a sane one does."""
MEMORY = 1_000_000_000


def row(symbol: str, n: int) -> Atoms:
    """A chain of atoms, slightly disordered."""
    return Atoms(f"{symbol}{n}", positions=[[2.6 * i, 0.1 * (i % 2), 0] for i in range(n)])


@pytest.fixture
def process():
    made = CalculatorProcess(CalculatorSpec(place=HOSTILE), ChildLimits(silence=PATIENCE, memory=MEMORY))
    yield made
    made._close()


def test_results_are_those_of_the_calculator(process):
    crystal = bulk("Au", cubic=True)
    crystal.rattle(0.05, rng=np.random.default_rng(0))
    structures = [row("Au", 3), crystal, row("Pt", 2)]
    for atoms, results in zip(structures, process.evaluate(structures), strict=True):
        atoms.calc = EMT()
        assert isinstance(results, Results)
        assert results.energy == atoms.get_potential_energy()
        np.testing.assert_array_equal(results.forces, atoms.get_forces())
        if atoms.pbc.all():
            np.testing.assert_array_equal(results.stress, atoms.get_stress())
        else:
            assert np.isnan(results.stress).all()


@pytest.mark.parametrize(
    ("n", "reason", "evidence"),
    [
        (2, "crashed", r"SIGSEGV; it wrote: about to read address 0.*3 times"),
        (4, "not_finite", "energy"),
        (5, "failed", "ValueError: no parameters for this bond"),
        (9, "crashed", "exit code|closed its pipe"),
    ],
)
def test_the_reason_is_named_and_the_others_have_their_labels(process, n, reason, evidence):
    sane = [row("Au", 3), row("Pt", 4)]
    first, bad, last = process.evaluate([sane[0], row("Cu", n), sane[1]])
    assert isinstance(bad, Failure)
    assert bad.reason == reason
    assert re.search(evidence, bad.evidence), bad.evidence
    for atoms, results in zip(sane, (first, last), strict=True):
        atoms.calc = EMT()
        assert isinstance(results, Results)
        assert results.energy == atoms.get_potential_energy()


@pytest.mark.parametrize("n", [6, 8])
def test_prints_and_forks_change_nothing(process, n):
    structures = [row("Cu", n), row("Au", 3)]
    for atoms, results in zip(structures, process.evaluate(structures), strict=True):
        atoms.calc = EMT()
        assert isinstance(results, Results)
        assert results.energy == atoms.get_potential_energy()


@pytest.mark.slow
@pytest.mark.parametrize(("n", "reason"), [(3, "hung"), (7, "memory")])
def test_what_never_answers_or_takes_too_much_is_ended(process, n, reason):
    bad, good = process.evaluate([row("Cu", n), row("Au", 3)])
    assert isinstance(bad, Failure)
    assert bad.reason == reason
    assert isinstance(good, Results)


def test_a_structure_has_three_tries_and_the_others_one(tmp_path):
    log = tmp_path / "log"
    spec = CalculatorSpec(place=HOSTILE, arguments={"log": str(log)})
    process = CalculatorProcess(spec, ChildLimits(silence=PATIENCE))
    process.evaluate([row("Au", 3), row("Cu", 2), row("Pt", 4)])
    process._close()
    assert log.read_text().split() == ["Au3", *["Cu2"] * TRIES, "Pt4"]


def test_properties_that_are_not_given_are_absent():
    crystal = bulk("Ag", cubic=True)
    without_forces = bulk("Ag").repeat((5, 1, 1))
    potential = isolate_calculator(CalculatorSpec(place=HOSTILE), ChildLimits(silence=PATIENCE))
    assert potential.label is not None
    stressless, forceless = potential.label([crystal, without_forces])
    assert isinstance(stressless, Results)
    assert np.isnan(stressless.stress).all()
    assert forceless == Failure(reason="failed", evidence="the calculator gave no forces")


def test_what_does_not_converge_is_tried_with_robust_settings():
    plain = CalculatorProcess(CalculatorSpec(place=HOSTILE), ChildLimits(silence=PATIENCE))
    (failed,) = plain.evaluate([row("Ag", 6)])
    assert failed == Failure(reason="unconverged", evidence="SCF did not converge in 50 cycles")
    robust = CalculatorProcess(CalculatorSpec(place=HOSTILE, robust={"tolerance": 2}), ChildLimits(silence=PATIENCE))
    assert isinstance(robust.evaluate([row("Ag", 6)])[0], Results)
    in_vain = CalculatorProcess(CalculatorSpec(place=HOSTILE, robust={"tolerance": 1.5}), ChildLimits(silence=PATIENCE))
    (failed,) = in_vain.evaluate([row("Ag", 6)])
    assert isinstance(failed, Failure)
    assert (
        failed.evidence == "SCF did not converge in 50 cycles; with robust settings: SCF did not converge in 50 cycles"
    )
    for process in (plain, robust, in_vain):
        process._close()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("no_such_module:Calculator", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("ase.calculators.emt:NoSuch", "AttributeError.*NoSuch"),
    ],
)
def test_a_calculator_that_cannot_be_made_stops_the_run(place, message):
    process = CalculatorProcess(CalculatorSpec(place=place), ChildLimits(silence=PATIENCE))
    with pytest.raises(ConfigError, match=message):
        process.evaluate([row("Au", 2)])


def test_an_interpreter_that_is_not_there_is_named():
    spec = CalculatorSpec(place="ase.calculators.emt:EMT", python="/no/such/python")
    with pytest.raises(ConfigError, match=r"(?s)cannot be made with /no/such/python: its process ended.*No such file"):
        CalculatorProcess(spec, ChildLimits(silence=PATIENCE)).evaluate([row("Au", 2)])


def test_a_worker_that_ends_soon_gives_the_unit_away(process, monkeypatch):
    process.evaluate([row("Au", 2)])

    def end() -> None:
        raise Yielded("the worker ends in 10 s")

    monkeypatch.setattr("daskpipe.potentials.child_process.yield_if_ending", end)
    with pytest.raises(Yielded):
        process.evaluate([row("Cu", 3)])
    monkeypatch.undo()
    assert isinstance(process.evaluate([row("Au", 2)])[0], Results)
