"""A committee: the mean of its members, their disagreement, and messages as for a potential alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed

from daskpipe.core.errors import ConfigError
from daskpipe.core.torch_sim import SimState
from daskpipe.potentials import Failure, Results, batched_model, build_potential, evaluate, identify_potential
from daskpipe.potentials.batches import NeighbourFinder, Neighbours, make_state

MEMBERS = [
    {"name": "emt"},
    {"name": "lj", "params": {"epsilon": 0.3, "sigma": 2.4, "r_cut": 5.5}},
    {"name": "lj", "params": {"epsilon": 0.2, "sigma": 2.5, "r_cut": 5.0}},
]


def results(name: str, params: dict[str, object], structures: list[Atoms]) -> list[Results]:
    found = evaluate(build_potential(name, params, "cpu", "float64"), structures)
    assert all(isinstance(item, Results) for item in found), found
    return [item for item in found if isinstance(item, Results)]


def expected(structures: list[Atoms]) -> list[tuple[float, np.ndarray, np.ndarray, float]]:
    """Energy, forces, stress and disagreement of each structure, written out."""
    by_member = [results(member["name"], member.get("params", {}), structures) for member in MEMBERS]
    out = []
    for index in range(len(structures)):
        three = [answers[index] for answers in by_member]
        forces = sum(item.forces for item in three) / 3
        worst = 0.0
        for atom in range(len(structures[index])):
            variance = sum(np.sum((item.forces[atom] - forces[atom]) ** 2) for item in three) / 3
            worst = max(worst, float(np.sqrt(variance)))
        out.append((sum(item.energy for item in three) / 3, forces, sum(item.stress for item in three) / 3, worst))
    return out


def test_mean_and_disagreement_of_model_labels_and_calculator(metals: list[Atoms]) -> None:
    potential = build_potential("committee", {"members": MEMBERS}, "cpu", "float64")
    out = batched_model(potential, stress=True)(make_state(metals, torch.device("cpu"), torch.float64))
    forces = out["forces"].split([len(atoms) for atoms in metals])
    labels = results("committee", {"members": MEMBERS}, metals)
    for index, (atoms, wanted) in enumerate(zip(metals, expected(metals), strict=True)):
        energy, force, stress, disagreement = wanted
        assert disagreement > 0.1
        assert float(out["energy"][index]) == pytest.approx(energy)
        np.testing.assert_allclose(forces[index].numpy(), force, atol=1e-10)
        assert float(out["force_disagreement"][index]) == pytest.approx(disagreement)
        atoms.calc = potential.calculator
        assert labels[index].energy == pytest.approx(energy) == atoms.get_potential_energy()
        np.testing.assert_allclose(labels[index].forces, force)
        np.testing.assert_allclose(labels[index].stress, stress)
        assert labels[index].force_disagreement == pytest.approx(disagreement)
        assert atoms.calc.results["force_disagreement"] == pytest.approx(disagreement)
        if atoms.pbc.all():
            full = out["stress"][index].numpy()
            np.testing.assert_allclose(full.flat[[0, 4, 8, 5, 2, 1]], stress, atol=1e-12)


def test_members_that_agree() -> None:
    twins = {"members": [{"name": "lj"}, {"name": "lj", "params": {"sigma": 3.4}}]}
    potential = build_potential("committee", twins, "cpu", "float64")
    out = batched_model(potential)(make_state([Atoms("Ar3", np.eye(3) * 3)], torch.device("cpu"), torch.float64))
    assert float(out["force_disagreement"][0]) == 0.0
    assert float(out["forces"].abs().max()) > 1e-3
    assert "stress" not in out


def test_a_member_that_fails_fails_the_system() -> None:
    members = [{"name": "xtb", "params": {"max_iterations": 3}}, {"name": "xtb"}]
    potential = build_potential("committee", {"members": members}, "cpu", "float64")
    structures = [Atoms("He"), molecule("CH3OH"), Atoms("Ne")]
    model = batched_model(potential)
    out = model(make_state(structures, torch.device("cpu"), torch.float64))
    assert list(model.failures) == [1]
    assert out["energy"].isnan().tolist() == out["force_disagreement"].isnan().tolist() == [False, True, False]
    first, second, third = evaluate(potential, structures)
    assert isinstance(first, Results)
    assert isinstance(third, Results)
    assert isinstance(second, Failure)
    assert second.reason == "unconverged"
    with pytest.raises(CalculationFailed, match="unconverged: "):
        potential.calculator.get_potential_energy(structures[1])


def test_elements_are_those_that_all_members_know() -> None:
    members = [{"name": "mace"}, {"name": "emt"}, {"name": "lj"}]
    assert identify_potential("committee", {"members": members}).elements == {"Ag", "Au", "Cu"}
    potential = build_potential("committee", {"members": members}, "cpu", "float64")
    assert potential.elements == {"Ag", "Au", "Cu"}
    assert potential.cutoff == 8.5, "the longest, of Lennard-Jones"
    assert build_potential("committee", {"members": [*members, {"name": "xtb"}]}, "cpu", "float64").cutoff is None


def test_identity_hangs_on_the_members() -> None:
    one = identify_potential("committee", {"members": [{"name": "lj"}, {"name": "emt"}]})
    assert one == identify_potential(
        "committee", {"members": [{"name": "lj", "params": {"sigma": 3.4}}, {"name": "emt"}]}
    )
    assert one.hash != identify_potential("committee", {"members": [{"name": "lj"}, {"name": "lj"}]}).hash
    assert one.name == "committee of Lennard-Jones, EMT"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([{"name": "lj"}], r"potential 'committee': members: List should have at least 2 items"),
        ([{"name": "lj"}, {"name": "mcae"}], r"unknown potential 'mcae'\. Did you mean 'mace'\?"),
        ([{"name": "lj"}, {"name": "lj", "params": {"sigmma": 1}}], r"potential 'lj': unknown parameter 'sigmma'"),
        ([{"name": "lj"}, {"name": "lj", "params": {"sigma": -1}}], r"potential 'lj': sigma: Input should be greater"),
        ([{"name": "lj"}, {"params": {}}], r"potential 'committee': members\.1\.name: Field required"),
        ([{"name": "lj"}, {"name": "lj", "parms": {}}], r"unknown parameter 'members\.1\.parms'"),
    ],
)
def test_wrong_members(members: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_potential("committee", {"members": members}, "cpu")


def test_members_of_one_cutoff_share_a_search_and_keep_their_bits(
    metals: list[Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    cutoffs = []
    search = NeighbourFinder.__call__

    def counted(self: NeighbourFinder, state: SimState) -> Neighbours:
        cutoffs.append(self.cutoff)
        return search(self, state)

    monkeypatch.setattr(NeighbourFinder, "__call__", counted)
    members = [
        {"name": "lj", "params": {"epsilon": 0.3, "sigma": 2.4, "r_cut": 5.5}},
        {"name": "mace"},
        {"name": "lj", "params": {"epsilon": 0.2, "sigma": 2.4, "r_cut": 5.5}},
        {"name": "lj", "params": {"epsilon": 0.2, "sigma": 2.2, "r_cut": 4.5}},
    ]
    state = make_state(metals, torch.device("cpu"), torch.float64)
    committee = batched_model(build_potential("committee", {"members": members}, "cpu", "float64"))
    found = committee(state)["forces"]
    assert sorted(cutoffs) == [4.5, 5.5]
    alone = [
        batched_model(build_potential(member["name"], member.get("params", {}), "cpu", "float64"))(state)["forces"]
        for member in members
    ]
    assert torch.equal(found, torch.stack(alone).mean(dim=0))
