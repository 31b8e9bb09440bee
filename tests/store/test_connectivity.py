"""Frames without lineage are connected by their geometry, in any order of the frames."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from daskpipe.core.structures import from_atoms, round_positions
from daskpipe.core.variables import SPLITS
from daskpipe.store import arrange_dataset
from daskpipe.store.connectivity import JUMP, Frame, connect_frames, is_near
from daskpipe.store.quality.gate import judge
from daskpipe.store.splits import Split
from daskpipe.store.stage import arrange_and_write

FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}


def make_frame(atoms: Atoms) -> Frame:
    return Frame(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc)


def make_trajectories(n: int, n_frames: int, seed: int = 0) -> list[Atoms]:
    """Make trajectories of one composition, Cu4Au4, each with gold on other sites; EMT labels."""
    rng = np.random.default_rng(seed)
    frames = []
    places = [np.sort(rng.permutation(8)[:4]).tolist() for _ in range(4 * n)]
    distinct = [list(item) for item in dict.fromkeys(map(tuple, places))][:n]
    for number, gold in enumerate(distinct):
        atoms = bulk("Cu", a=3.8, cubic=True) * (2, 1, 1)
        atoms.numbers[gold] = 79
        drift = np.zeros((8, 3))
        for _ in range(n_frames):
            drift = 0.9 * drift + rng.normal(0, 0.04, (8, 3))
            step = round_positions(Atoms(atoms.numbers, atoms.positions + drift, cell=atoms.cell, pbc=True))
            step.calc = EMT()
            results = {"energy": step.get_potential_energy(), "forces": step.get_forces()}
            distances = np.sort(step.get_all_distances(mic=True)[np.triu_indices(8, 1)])
            kinds = [step.numbers[i] + step.numbers[j] for i in range(8) for j in range(i)]
            features = np.concatenate([distances, np.bincount(kinds, weights=distances, minlength=159)[[58, 108, 158]]])
            step.calc = SinglePointCalculator(step, **results)
            step.info = {"generator": "import", "label_method": "emt", "label_status": "ok", "replica": number}
            step.info |= {"features": features.astype("f4"), "system_type": "alloy"}
            frames.append(step)
    return frames


def test_frames_of_one_system_are_near_and_others_are_not():
    rng = np.random.default_rng(0)
    crystal = bulk("Cu", cubic=True) * 2
    shaken = crystal.copy()
    shaken.rattle(0.1, rng=rng)
    strained = shaken.copy()
    strained.set_cell(shaken.cell @ (np.eye(3) + np.diag([0.05, -0.03, 0.02])), scale_atoms=True)
    crossed = shaken.copy()
    crossed.positions[3] += crossed.cell[0]  # over the boundary
    for other in (shaken, strained, crossed):
        assert is_near(make_frame(crystal), make_frame(other))
    melted = crystal.copy()
    melted.positions[5] += [JUMP + 0.2, 0, 0]
    swapped = crystal.copy()
    swapped.numbers[0] = 79
    pressed = crystal.copy()
    pressed.set_cell(0.8 * crystal.cell, scale_atoms=True)
    for other in (melted, swapped, pressed, bulk("Cu", cubic=True)):
        assert not is_near(make_frame(crystal), make_frame(other))


def test_molecules_are_compared_without_their_rotation():
    ethanol = molecule("CH3CH2OH")
    turned = ethanol.copy()
    turned.rotate(123, (1, 2, 3))
    turned.positions += [5, 6, 7]
    assert is_near(make_frame(ethanol), make_frame(turned))
    mirrored = ethanol.copy()
    mirrored.set_dihedral(2, 0, 1, 3, ethanol.get_dihedral(2, 0, 1, 3) + 120, indices=[3, 4, 8])
    assert not is_near(make_frame(ethanol), make_frame(mirrored))


@pytest.mark.parametrize("shuffled", [False, True])
def test_trajectories_are_whole_whatever_the_order(shuffled):
    frames = make_trajectories(8, 12)
    if shuffled:
        frames = [frames[row] for row in np.random.default_rng(3).permutation(len(frames))]
    ds = arrange_dataset(from_atoms(frames), seed=0, fractions=FRACTIONS, rule=Split(near_duplicates=0))
    assert ds.sizes["structure"] == 96
    for number in range(8):
        rows = ds["replica"].values == number
        assert len(set(ds["split"].values[rows])) == 1
        assert len(set(ds["group"].values[rows])) == 1
    assert len(set(ds["group"].values.tolist())) == 8


def test_many_frames_are_compared_with_their_neighbours(monkeypatch):
    frames = make_trajectories(4, 40)
    ds = from_atoms([frames[row] for row in np.random.default_rng(3).permutation(len(frames))])
    columns = {name: ds[name].values for name in ("structure_id", "generator", "features")}
    ordered = [frames[row] for row in np.random.default_rng(3).permutation(len(frames))]
    exact = connect_frames(columns, lambda row: make_frame(ordered[row]))
    assert len(set(exact.tolist())) == 4
    monkeypatch.setattr("daskpipe.store.connectivity.MOST_FRAMES", 10)
    assert np.array_equal(connect_frames(columns, lambda row: make_frame(ordered[row])), exact)


def test_rows_with_lineage_are_not_connected():
    frames = make_trajectories(2, 5)
    for atoms in frames:
        atoms.info["generator"] = "alloys"
    ds = from_atoms(frames)
    columns = {name: ds[name].values for name in ("structure_id", "generator", "composition", "features")}
    assert connect_frames(columns, lambda row: make_frame(frames[row])).tolist() == [-1] * 10
    columns["generator"] = np.full(10, "import")
    assert connect_frames(columns, lambda row: make_frame(frames[row])).tolist() == [0] * 5 + [5] * 5


def test_the_gate_reports_torn_trajectories(tmp_path):
    frames = make_trajectories(8, 12)
    attrs = {"dataset_key": "k"}
    arrange_and_write(from_atoms(frames), tmp_path / "whole", seed=0, fractions=FRACTIONS, attrs=attrs)
    arrange_and_write(
        from_atoms(frames),
        tmp_path / "torn",
        seed=0,
        fractions=FRACTIONS,
        attrs=attrs,
        rule=Split(split_by="structure"),
    )
    leaks = {name: next(c for c in judge(tmp_path / name).checks if c.name == "leakage") for name in ("whole", "torn")}
    assert leaks["whole"].verdict == "pass"
    assert leaks["torn"].verdict == "fail"
    assert leaks["torn"].value > 0.3 > leaks["whole"].value
    assert "training" in leaks["torn"].says


# --- one trajectory ----------------------------------------------------------------------------------


def test_one_trajectory_is_cut_into_blocks_of_time():
    frames = make_trajectories(1, 100)
    for step, atoms in enumerate(frames):
        atoms.info |= {"step": step, "parent_id": bytes(15) + b"\1"}
    shuffled = [frames[row] for row in np.random.default_rng(3).permutation(100)]
    ds = arrange_dataset(from_atoms(shuffled), seed=0, fractions=FRACTIONS, rule=Split(near_duplicates=0, gap=0.03))
    steps = {name: np.sort(ds["step"].values[ds["split"].values == name]) for name in SPLITS}
    # 94 frames are left of 100: two gaps of three.
    assert [len(steps[name]) for name in SPLITS] == [75, 10, 9]
    assert steps["train"].tolist() == list(range(75))
    assert steps["val"].tolist() == list(range(78, 88))
    assert steps["test"].tolist() == list(range(91, 100))
    import json

    assert json.loads(ds.attrs["split_report"])["n_gap"] == 6


def test_a_short_trajectory_is_left_alone():
    frames = make_trajectories(1, 12)
    for step, atoms in enumerate(frames):
        atoms.info |= {"step": step, "parent_id": bytes(15) + b"\1"}
    ds = arrange_dataset(from_atoms(frames), seed=0, fractions=FRACTIONS, rule=Split(near_duplicates=0))
    assert ds["split"].values.tolist() == ["train"] * 12
