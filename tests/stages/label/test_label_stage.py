import dask.bag as db
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT

from daskpipe.core.structures import from_atoms, round_positions, structure_id
from daskpipe.engine.commit import commit
from daskpipe.engine.rows import UnitRows, dataset_to_arrays
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload, Unit, unit_key
from daskpipe.potentials import Potential, build_potential
from daskpipe.stages.label.settings import LabelChecks
from daskpipe.stages.label.stage import label_frames, label_partition, load_frames

CHECKS = LabelChecks()


def emt() -> Potential:
    return build_potential("emt", {}, "cpu", "float64")


def frames() -> list[Atoms]:
    """Two periodic structures, a slab and a cluster, rattled."""
    found = [
        bulk("Cu", cubic=True),
        fcc111("Ag", (1, 2, 3), vacuum=5.0),
        Atoms("Au3", positions=[[0, 0, 0], [2.7, 0, 0], [0, 2.7, 0]]),
        bulk("Pd").repeat((2, 1, 1)),
    ]
    rng = np.random.default_rng(0)
    for index, atoms in enumerate(found):
        atoms.rattle(0.05, rng=rng)
        round_positions(atoms)
        atoms.info |= {"system_type": "alloy", "step": index}
    return found


def run(structures: list[Atoms], build=emt, checks: LabelChecks = CHECKS) -> Payload:
    (payload,) = label_partition(structures, build, "EMT", checks)
    return payload


def ids(payload: Payload) -> list[bytes]:
    return [item.tobytes() for item in payload.arrays["structure_id"]]


def test_labels_are_the_numbers_of_the_calculator():
    structures = frames()
    payload = run(structures)
    assert (payload.n_out, payload.rejected) == (4, [])
    assert ids(payload) == [structure_id(atoms) for atoms in structures]
    arrays = payload.arrays
    for row, atoms in enumerate(structures):
        atoms.calc = EMT()
        start = arrays["atom_start"][row]
        found = arrays["forces"][start : start + len(atoms)]
        assert arrays["energy"][row] == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(found, atoms.get_forces(), atol=1e-6)
        if atoms.pbc.all():
            np.testing.assert_allclose(arrays["stress"][row], atoms.get_stress(), atol=1e-9)
        else:
            assert np.isnan(arrays["stress"][row]).all()
    assert np.abs(arrays["forces"]).max() > 0.1, "forces of a rattled structure are not zero"
    assert set(arrays["label_method"].tolist()) == {"EMT"}
    assert set(arrays["label_status"].tolist()) == {"ok"}
    assert arrays["step"].tolist() == [0, 1, 2, 3]


class Fussy(EMT):
    """Gives up on gold, finds no number for silver, and raises over palladium."""

    def calculate(self, atoms, properties, system_changes):
        super().calculate(atoms, properties, system_changes)
        if "Au" in atoms.symbols:
            raise CalculationFailed("SCF not converged in 250 cycles")
        if "Pd" in atoms.symbols:
            raise ValueError("no parameters for this bond")
        if "Ag" in atoms.symbols:
            self.results["energy"] = np.nan


def test_what_the_teacher_fails_on_is_rejected_and_the_rest_goes_on():
    structures = frames()
    iron = Atoms("FeCu", positions=[[0, 0, 0], [0, 0, 2.4]])
    teacher = Potential(calculator=Fussy(), elements=emt().elements)
    payload = run([structures[0], iron, *structures[1:]], lambda: teacher)
    assert ids(payload) == [structure_id(structures[0])]
    assert payload.arrays["energy"][0] == run(structures[:1], lambda: teacher).arrays["energy"][0]
    assert [(item.reason, item.evidence) for item in payload.rejected] == [
        ("unknown_element", "Fe not among Ag Al Au Cu Ni Pd Pt"),
        ("not_finite", "NaN or infinite: energy"),
        ("unconverged", "SCF not converged in 250 cycles"),
        ("failed", "ValueError: no parameters for this bond"),
    ]
    assert {item.stage for item in payload.rejected} == {"label"}
    expected = [structure_id(atoms).hex() for atoms in (iron, *structures[1:])]
    assert [item.structure for item in payload.rejected] == expected


def test_forces_beyond_the_limit_are_rejected():
    close = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 1.2]])
    close.calc = EMT()
    largest = np.abs(close.get_forces()).max()  # along z only
    assert largest > 20
    limit = LabelChecks(max_force=20)
    payload = run([close, *frames()], checks=limit)
    assert payload.n_out == len(frames())
    ((reason, evidence),) = [(item.reason, item.evidence) for item in payload.rejected]
    assert (reason, evidence) == ("force", f"a force of {largest:.4g} eV/Å (limit 20)")


def test_a_partition_may_lose_all_its_frames():
    payload = run([Atoms("Fe")])
    assert (payload.n_out, len(payload.rejected)) == (0, 1)
    assert payload.arrays["positions"].shape == (0, 3)


def test_frames_are_left_as_they_were():
    structures = frames()
    run(structures)
    assert [atoms.calc for atoms in structures] == [None] * len(structures)
    assert all("label_method" not in atoms.info for atoms in structures)


@pytest.mark.parametrize("partition_size", [1, 3])
def test_bag_is_lazy_and_keeps_the_order(partition_size):
    built = []

    def build():
        built.append(1)
        return emt()

    structures = frames()
    bag = label_frames(db.from_sequence(structures, partition_size=partition_size), build, "EMT", CHECKS)
    assert built == []
    payloads = bag.compute(scheduler="synchronous")
    assert len(built) == len(payloads) == -(-len(structures) // partition_size)
    whole = run(structures)
    assert [item for payload in payloads for item in ids(payload)] == ids(whole)
    energies = np.concatenate([payload.arrays["energy"] for payload in payloads])
    np.testing.assert_array_equal(energies, whole.arrays["energy"])


def test_features_stratum_and_reason_come_along(tmp_path):
    structures = frames()
    explored = unit_key("explore", 1, {}, [], 0)
    payload = Payload(arrays=dataset_to_arrays(from_atoms(structures)), n_out=len(structures))
    commit(tmp_path, Unit(stage="explore", index=0, key=explored, n_inputs=1), payload)
    picked = [3, 0, 2]
    arrays = {
        "features": np.arange(8, dtype=np.float32).reshape(4, 2),
        "cluster": np.array([9, 7, 5, 3], dtype=np.int32),
        "selection_reason": np.array(["random", "kmeans_nearest", "random", "random"]),
    }
    selected = unit_key("select", 1, {}, [], 0)
    commit(tmp_path, Unit(stage="select", index=0, key=selected, n_inputs=1), Payload(arrays=arrays, n_out=4))
    pieces = [UnitRows(stage="explore", key=explored, rows=(row,)) for row in picked]
    start = 1  # a batch of labels that is not the first
    rows = tuple(range(start, start + len(picked)))
    loaded = load_frames(tmp_path, pieces, UnitRows(stage="select", key=selected, rows=rows))
    assert [structure_id(atoms) for atoms in loaded] == [structure_id(structures[row]) for row in picked]
    labelled = run(loaded)
    unit = Unit(stage="label", index=0, key=unit_key("label", 1, {}, [], 0), n_inputs=3)
    commit(tmp_path, unit, labelled)
    found = RunDirectory(tmp_path).load_arrays("label", unit.key)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array[start:])
        assert found[name].dtype.kind == array.dtype.kind
