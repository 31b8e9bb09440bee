from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from report_samples import HOSTILE_WORD

from daskpipe.runs.report import atom_totals
from daskpipe.runs.report import contents as measuring
from daskpipe.runs.report.contents import Contents, measure_contents
from daskpipe.runs.report.facts import _list_steps
from daskpipe.runs.report.measures import FORCE_EDGES, PAIR_EDGES, count_pairs, make_histogram

GPA = 160.21766208
"""One eV/Å^3, CODATA 2014."""


@pytest.fixture(scope="module")
def held(hostile_dataset: Path) -> Contents:
    return measure_contents(hostile_dataset)


def test_counts_are_those_of_a_slow_loop(held: Contents, structures: list[Atoms]) -> None:
    atoms = Counter(symbol for one in structures for symbol in one.get_chemical_symbols())
    holders = Counter(symbol for one in structures for symbol in set(one.get_chemical_symbols()))
    assert held.elements == atoms
    assert list(held.elements) == ["Cu", "Ag", "Au"]  # the order of the periodic table
    assert held.holders == holders
    assert held.types == Counter(one.info["system_type"] for one in structures)
    assert sum(held.compositions.values()) <= held.n_structures == len(structures)
    assert held.n_compositions == len({one.get_chemical_formula() for one in structures})
    assert held.strata is not None
    assert held.strata.tolist() == [6] * 5  # thirty structures, dealt out over five strata
    assert sum(split["structures"] for split in held.splits.values()) == len(structures)
    assert sum(split["atoms"] for split in held.splits.values()) == held.n_atoms == sum(map(len, structures))
    assert held.torn_groups == 0


def test_forces_fall_into_the_bins_of_a_slow_loop(held: Contents, structures: list[Atoms]) -> None:
    by_kind, by_element = defaultdict(list), defaultdict(list)
    for atoms in structures:
        norms = np.linalg.norm(atoms.get_forces().astype(np.float32).astype(float), axis=1)
        by_kind[atoms.info["system_type"]] += norms.tolist()
        for symbol, norm in zip(atoms.symbols, norms, strict=True):
            by_element[symbol].append(norm)
    assert held.forces is not None
    assert held.forces_of_elements is not None
    for histogram, expected in ((held.forces, by_kind), (held.forces_of_elements, by_element)):
        assert histogram.counts.keys() == expected.keys()
        for name, norms in expected.items():
            assert np.array_equal(histogram.counts[name], np.histogram(norms, histogram.edges)[0])
    everything = np.concatenate(list(by_kind.values()))
    assert held.forces.high == pytest.approx(everything.max(), rel=1e-6)
    width_of_a_bin = FORCE_EDGES[1] / FORCE_EDGES[0]
    assert np.median(everything) / width_of_a_bin < held.forces.median < np.median(everything) * width_of_a_bin


def test_energies_are_what_a_linear_fit_leaves(held: Contents, structures: list[Atoms]) -> None:
    counts = np.array([[list(one.numbers).count(z) for z in (29, 47, 79)] for one in structures])
    n_atoms = counts.sum(axis=1, keepdims=True)
    energies = np.array([one.get_potential_energy() for one in structures]) / n_atoms[:, 0]
    fit = np.linalg.lstsq(counts / n_atoms, energies, rcond=None)[0]
    residuals = energies - counts / n_atoms @ fit
    assert held.energies is not None
    assert held.energies.low == pytest.approx(residuals.min(), abs=1e-9)
    assert held.energies.high == pytest.approx(residuals.max(), abs=1e-9)
    assert held.energies.n_values == len(structures)
    assert held.n_unlabelled == 0


def test_pressures_have_the_sign_of_compression(held: Contents, structures: list[Atoms]) -> None:
    expected = [-one.calc.results["stress"][:3].mean() * GPA for one in structures if "stress" in one.calc.results]
    assert held.stress_pressure is not None
    assert held.stress_pressure.n_values == len(expected)
    assert held.stress_pressure.low == pytest.approx(min(expected), rel=1e-6)
    assert held.pressure is not None
    assert held.pressure.counts[HOSTILE_WORD].sum() == held.pressure.n_values == 10  # each third has a barostat


def test_components_of_the_stress_are_those_of_the_labels(held: Contents, structures: list[Atoms]) -> None:
    stresses = np.array([one.calc.results["stress"] for one in structures if "stress" in one.calc.results]) * GPA
    assert held.stress_components is not None
    assert held.stress_components.n_values == stresses.size
    assert held.stress_components.low == pytest.approx(stresses.min(), rel=1e-6)
    for number, name in enumerate(("xx", "yy", "zz", "yz", "xz", "xy")):
        expected = np.histogram(stresses[:, number], held.stress_components.edges)[0]
        assert held.stress_components.counts[name].tolist() == expected.tolist()


def test_volumes_are_those_of_what_is_periodic_in_three_directions(held: Contents, structures: list[Atoms]) -> None:
    crystals = [one for one in structures if one.pbc.all()]
    assert held.n_volumes_of == len(crystals) == 10
    assert list(held.volumes) == [HOSTILE_WORD]
    assert sorted(held.volumes[HOSTILE_WORD][:, 0]) == pytest.approx(
        sorted(one.get_volume() / len(one) for one in crystals)
    )


def test_numbers_of_a_kind_are_those_of_a_slow_loop(held: Contents, structures: list[Atoms]) -> None:
    assert [kind.name for kind in held.kinds] == list(held.types)
    for kind in held.kinds:
        own = [one for one in structures if one.info["system_type"] == kind.name]
        norms = np.concatenate([np.linalg.norm(one.get_forces(), axis=1) for one in own])
        assert kind.n_structures == len(own)
        assert kind.n_atoms == len(norms)
        assert kind.force_high == pytest.approx(norms.max(), rel=1e-6)
        assert kind.force_mean_square == pytest.approx(np.sqrt(np.mean(norms**2)), rel=1e-6)
        assert held.energies is not None
        assert kind.energy_low is not None
        assert kind.energy_mean is not None
        assert kind.energy_high is not None
        assert held.energies.low <= kind.energy_low < kind.energy_mean < kind.energy_high <= held.energies.high


def test_blocks_do_not_change_the_numbers(
    held: Contents, hostile_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atom_totals, "BLOCK_ATOMS", 11)
    seen = []
    whole = atom_totals.read_blocks

    def counted(*arguments):
        for rows, block in whole(*arguments):
            seen.append(rows)
            yield rows, block

    monkeypatch.setattr(atom_totals, "read_blocks", counted)
    again = measure_contents(hostile_dataset)
    assert len(seen) > 20  # thirty structures of 4 to 8 atoms, twice
    assert again.elements == held.elements
    assert again.holders == held.holders
    for name in ("forces", "forces_of_elements", "sizes"):
        one, other = getattr(again, name), getattr(held, name)
        assert all(np.array_equal(one.counts[group], other.counts[group]) for group in other.counts)
    assert again.energies is not None
    assert held.energies is not None
    assert again.energies.low == pytest.approx(held.energies.low, abs=1e-9)


def test_samples_depend_on_ids_alone(held: Contents, hostile_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "PAIR_SAMPLE", (400, 40))
    monkeypatch.setattr(measuring, "MAP_SAMPLE", 12)
    few = measure_contents(hostile_dataset)
    assert 0 < few.pairs.n_atoms <= 40
    assert few.features is not None
    assert held.features is not None
    assert len(few.features.points) == 12
    assert few.features.n_structures == held.n_structures
    for kind, here in few.features.colourings["kind"].items():
        everything = {tuple(point) for point in held.features.points[held.features.colourings["kind"][kind]]}
        assert {tuple(point) for point in few.features.points[here]} <= everything
    for kind, pictures in few.pictures.items():
        assert [one.info["structure_id"] for one in pictures] == [
            one.info["structure_id"] for one in held.pictures[kind]
        ]


def test_rare_kinds_are_drawn_together(hostile_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "MOST_TYPES", 2)
    few = measure_contents(hostile_dataset)
    assert list(few.types)[-1] == measuring.REST
    assert sum(few.types.values()) == few.n_structures


def test_distances_are_those_of_all_images() -> None:
    a = 3.0
    cubic = Atoms("Cu", cell=[a, a, a], pbc=True)
    pairs = count_pairs([cubic])
    shifts = np.array(np.meshgrid(*[range(-3, 4)] * 3)).reshape(3, -1).T
    distances = np.linalg.norm(a * shifts[np.any(shifts != 0, axis=1)], axis=1)
    within = distances[distances < PAIR_EDGES[-1]]
    assert pairs.shortest["Cu-Cu"] == pytest.approx(a)
    assert pairs.counts["Cu-Cu"].sum() == len(within)
    assert pairs.n_pairs["Cu-Cu"] == len(within) // 2
    molecule = Atoms("HClH", positions=[[0, 0, 0], [1.2, 0, 0], [2.4, 0, 0]])
    pairs = count_pairs([molecule])
    assert pairs.n_pairs == {"H-H": 1, "Cl-H": 2}


def test_a_histogram_leaves_far_values_out_and_counts_them() -> None:
    values = np.concatenate([np.linspace(0, 1, 1000), [1e6]])
    histogram = make_histogram(values, np.zeros(1001, dtype=int), ["all"])
    assert histogram is not None
    assert histogram.n_outside == 1
    assert histogram.edges[-1] < 2
    assert histogram.high == 1e6
    assert histogram.n_values == 1001
    assert make_histogram(np.array([np.nan]), np.zeros(1, dtype=int), ["all"]) is None


def test_a_histogram_of_whole_numbers_has_whole_bins() -> None:
    histogram = make_histogram(np.array([1, 2, 2, 5]), np.array([0, 0, 1, 1]), ["a", "b"])
    assert histogram is not None
    assert histogram.edges.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert histogram.counts["a"].tolist() == [1, 1, 0, 0, 0]
    assert histogram.counts["b"].tolist() == [0, 1, 0, 0, 1]


def test_what_comes_in_goes_out_or_is_taken_out() -> None:
    outs = {"generate": 12, "explore": 90, "select": 33, "label": 30, "store": 30}
    counts = {("generate", "overlap"): 4, ("generate", "duplicate"): 2, ("label", "max_force"): 3}
    selection = {"duplicates": {"against_pool": 5, "against_dataset": 2}}
    steps = {step.stage: step for step in _list_steps(outs, {"explore": 20}, counts, selection)}
    assert list(steps) == ["generate", "explore", "select", "label", "store"]
    for stage in ("generate", "select", "label", "store"):
        assert steps[stage].n_in == steps[stage].n_out + sum(steps[stage].removed.values()), stage
    assert steps["generate"].n_out == 10  # of twelve seeds two are equal to others
    assert steps["explore"].n_in == 20
    assert list(_list_steps({"generate": 3}, {}, {}, {})) == [steps["generate"].__class__(
        stage="generate", n_in=3, came="structures made or read", n_out=3, went="seeds", removed={}, of="structures"
    )]  # fmt: skip
