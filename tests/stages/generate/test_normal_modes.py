"""Normal modes: frequencies of ASE's own, displacements of the right size, and structures that stay valid."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.optimize import BFGS
from ase.vibrations import Vibrations
from pydantic import ValidationError

from daskpipe.core.errors import Rejection
from daskpipe.potentials import Failure
from daskpipe.stages.generate import GENERATORS
from daskpipe.stages.generate.base import hash_base
from daskpipe.stages.generate.normal_modes import check_potential, displace_along_modes, find_modes
from daskpipe.stages.generate.perturb import perturb

CLUSTER = Atoms("Cu4", positions=2.6 / 8**0.5 * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]))


@pytest.fixture(scope="module")
def relaxed() -> Atoms:
    atoms = CLUSTER.copy()
    atoms.calc = EMT()
    BFGS(atoms, logfile=None).run(fmax=1e-4)
    return atoms


def test_frequencies_are_those_of_ase(relaxed: Atoms, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vibrations = Vibrations(relaxed, delta=0.01)
    vibrations.run()
    theirs = np.sort(vibrations.get_energies().real)[-6:]  # eV; the six others are translations and rotations
    modes = find_modes(relaxed, check_potential("emt"))
    assert not isinstance(modes, Failure)
    ours = units._hbar * 1e10 / np.sqrt(units._e * units._amu) * np.sqrt(modes.stiffness)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    momentum = (relaxed.get_masses()[None, :, None] * modes.vectors).sum(axis=1)
    np.testing.assert_allclose(momentum, 0, atol=1e-4)


def test_displacements_hold_half_kt_a_mode(relaxed: Atoms) -> None:
    """The mean potential energy of a harmonic solid is kT/2 a mode; EMT is nearly harmonic at 50 K."""
    modes = find_modes(relaxed, check_potential("emt"))
    assert not isinstance(modes, Failure)
    rng, rises = np.random.default_rng(0), []
    lowest = relaxed.get_potential_energy()
    for _ in range(300):
        atoms = relaxed.copy()
        displace_along_modes(rng, atoms, modes, 50.0, 0.7)
        atoms.calc = EMT()
        rises.append(atoms.get_potential_energy() - lowest)
    expected = len(modes.stiffness) * units.kB * 50 / 2
    error = np.std(rises) / len(rises) ** 0.5
    assert np.mean(rises) == pytest.approx(expected, abs=5 * error)


def draw(n: int = 3, seed: int = 0, **params: Any) -> list[Atoms | Rejection]:
    given = GENERATORS.check_params("perturb", {"kinds": ["modes"], "potential": "emt", **params})
    return list(islice(perturb(rng=np.random.default_rng(seed), index=0, **given), n))


def test_a_source_displaces_along_modes() -> None:
    cold, hot = (draw(of="Cu", temperature=temperature) for temperature in (10, 1000))

    def spread(made: list[Atoms | Rejection]) -> float:
        positions = [atoms.positions for atoms in made if isinstance(atoms, Atoms)]
        assert len(positions) == 3
        return float(np.abs(positions[1] - positions[0]).max())

    assert 0 < spread(cold) < spread(hot) / 3


def test_what_a_potential_cannot_compute_is_a_rejection() -> None:
    (made,) = draw(1, of={"generator": "molecules", "names": ["H2O"], "rattle": 0})
    assert isinstance(made, Rejection)
    assert (made.reason, made.evidence.startswith("the potential of its modes:")) == ("unknown_element", True)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"potential": None}, "kinds: modes needs a potential, and nothing else does; e.g. potential: xtb"),
        ({"kinds": ["rattle"]}, "kinds: modes needs a potential, and nothing else does"),
        ({"kinds": ["swap", "modes"], "of": "CuAu"}, "modes are those of the structure as it is; leave swap out"),
    ],
)
def test_what_contradicts_itself_is_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(**{"of": "Cu", **params})


@pytest.mark.parametrize(
    ("potential", "message"),
    [
        ("emtt", "unknown potential 'emtt'. Did you mean 'emt'"),
        ({"name": "lj", "params": {"sigm": 1}}, "unknown parameter 'sigm'. Did you mean 'sigma'"),
        ({"nam": "lj"}, "expected the name of a potential, or {name: NAME, params: {...}}; received {'nam': 'lj'}"),
    ],
)
def test_wrong_potentials_are_refused(potential: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        GENERATORS.check_params("perturb", {"of": "Cu", "kinds": ["modes"], "potential": potential})
    assert message in str(caught.value)


def test_the_potential_is_part_of_the_key() -> None:
    digests = {
        hash_base(GENERATORS.check_params("perturb", {"of": "Cu", "kinds": ["modes"], "potential": potential}))
        for potential in ("emt", "lj", {"name": "lj", "params": {"sigma": 3.0}})
    }
    assert len(digests) == 3
    assert hash_base(GENERATORS.check_params("perturb", {"of": "Cu"})) == ""


def test_bases_of_all_kinds_have_modes() -> None:
    for atoms in (bulk("Cu", cubic=True), molecule("N2")):
        found = find_modes(atoms, check_potential("lj"))
        assert not isinstance(found, Failure)
        assert found.vectors.shape[1:] == (len(atoms), 3)
