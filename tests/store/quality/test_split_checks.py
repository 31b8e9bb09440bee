"""The checks of splits, and the profiles of the gate."""

import numpy as np
import pytest
from pydantic import ValidationError

from daskpipe.core.structures import as_void
from daskpipe.store.connectivity import Frame
from daskpipe.store.quality.check import Check
from daskpipe.store.quality.dataset_checks import check_elements
from daskpipe.store.quality.profiles import PROFILES, apply_profile, list_unfixable, profile_of, soften_failures
from daskpipe.store.quality.settings import CHECKS, EnergyLimits, Quality
from daskpipe.store.quality.split_checks import check_leakage, check_splits, find_leaks

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
LIMIT = 0.05


def ids_of(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return as_void(rng.bytes(16) for _ in range(n))


def check_groups(sizes, codes, kinds=None):
    """Check groups of these sizes, each in one split and of one system type."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    kind = None if kinds is None else np.array(kinds)[group]
    return check_splits(ids_of(len(group)), np.array(codes)[group], group, SHARES, LIMIT, kind)


def test_the_limit_is_what_whole_groups_allow():
    # 100 groups of one: nothing hinders 80, 10 and 10, and a large group elsewhere is no excuse.
    check = check_groups([1] * 100, [0] * 80 + [1] * 10 + [2] * 10)
    assert (check.verdict, check.value, check.threshold) == ("pass", 0.0, LIMIT)
    # One group of 40 fits in training: val and test can be met all the same.
    sizes = [40] + [1] * 60
    assert check_groups(sizes, [0] * 41 + [1] * 10 + [2] * 10).threshold == pytest.approx(LIMIT)
    check = check_groups(sizes, [0] * 21 + [1] * 20 + [2] * 20)
    assert (check.verdict, check.value) == ("fail", pytest.approx(0.2))
    assert "off by 20.0% at most (allowed 5.0%)" in check.says


def test_a_set_of_one_group_is_never_split():
    check = check_groups([50], [0])
    assert check.verdict == "fail"
    assert "empty: val, test" in check.says
    assert check.threshold == pytest.approx(LIMIT + 0.2)  # not 105 %


def test_a_type_that_a_split_lacks():
    kinds = ["alloy"] * 20 + ["cluster"] * 20
    codes = [0] * 16 + [1] * 2 + [2] * 2
    fair = check_groups([3] * 40, codes + codes, kinds)
    assert (fair.verdict, "has no" in fair.says) == ("pass", False)
    # All of the held-out structures are alloys, and 20 groups of clusters would allow better.
    check = check_groups([3] * 40, [0] * 12 + [1] * 4 + [2] * 4 + [0] * 20, kinds)
    assert check.verdict == "fail"
    assert "val has no cluster; test has no cluster" in check.says
    # Two groups of clusters cannot be in three splits.
    few = check_groups([3] * 22, [*codes, 0, 0], kinds[:20] + ["cluster"] * 2)
    assert few.verdict == "warn"
    assert "val has no cluster; test has no cluster" in few.says


# --- leakage -----------------------------------------------------------------------------------------


def walk_columns(n_walks: int, n_frames: int, *, imported: bool):
    """Make random walks of four atoms, each around its own position; features are the positions."""
    rng = np.random.default_rng(1)
    base = 8 * rng.normal(size=(n_walks, 1, 4, 3))
    positions = (base + rng.normal(0, 0.05, (n_walks, n_frames, 4, 3)).cumsum(axis=1)).reshape(-1, 4, 3)
    n = n_walks * n_frames
    parent = as_void(int(number + 1).to_bytes(16) for number in np.repeat(np.arange(n_walks), n_frames))
    frames = [
        Frame(numbers=np.full(4, 29), positions=place, cell=np.zeros((3, 3)), pbc=np.zeros(3, bool))
        for place in positions
    ]
    columns = {
        "structure_id": ids_of(n),
        "parent_id": np.zeros_like(parent) if imported else parent,
        "generator": np.full(n, "import" if imported else "alloys"),
        "composition": np.zeros(n, dtype=int),
        "features": positions.reshape(n, 12).astype(np.float32),
    }
    return columns, lambda rows: {row: frames[row] for row in rows.tolist()}


@pytest.mark.parametrize("imported", [False, True])
def test_torn_trajectories_leak_and_whole_ones_do_not(imported):
    columns, read = walk_columns(10, 20, imported=imported)
    whole = np.repeat([0] * 8 + [1, 2], 20)
    torn = np.random.default_rng(2).choice(3, 200, p=[0.8, 0.1, 0.1])
    for split, verdict in ((whole, "pass"), (torn, "fail")):
        looked, leaks = find_leaks({**columns, "split": split}, read)
        assert sorted(looked.tolist()) == np.flatnonzero(split > 0).tolist()
        check = check_leakage(columns["structure_id"], split, looked, leaks, 0.2)
        assert check.verdict == verdict
        assert check.n_offenders == (leaks.sum() if verdict == "fail" else 0)
        assert (check.value == 0) == (verdict == "pass")
    assert check.value > 0.3


def test_leakage_needs_trajectories_and_training_structures():
    columns, read = walk_columns(10, 20, imported=False)
    for split in (np.zeros(200, int), np.full(200, 2)):
        looked, leaks = find_leaks({**columns, "split": split}, read)
        assert check_leakage(columns["structure_id"], split, looked, leaks, 0.2).verdict == "skipped"
    single, read = walk_columns(200, 1, imported=False)
    looked, _ = find_leaks({**single, "split": np.tile([0, 0, 0, 1, 2], 40)}, read)
    assert not len(looked)


# --- profiles ----------------------------------------------------------------------------------------


def test_profiles_are_derived_from_the_data():
    imported = {"generator": np.array(["alloys", "import"]), "system_type": np.array(["molecule"] * 2)}
    molecules = {"generator": np.array(["molecules"] * 2), "system_type": np.array(["molecule"] * 2)}
    mixed = {"generator": np.array(["a", "b"]), "system_type": np.array(["molecule", "bulk"])}
    profiles = [profile_of(Quality(), columns) for columns in (imported, molecules, mixed, {})]
    assert profiles == ["import", "molecules", "run", "run"]
    assert profile_of(Quality(profile="reference"), mixed) == "reference"
    kinds = np.array(["molecule", "molecular_cluster", "liquid"])
    assert profile_of(Quality(), {"system_type": kinds}) == "molecules"  # what consists of molecules
    for kind in kinds:
        settings, _ = apply_profile(Quality(), "import", {"system_type": np.array([kind, "bulk"])})
        assert settings.forces == 40.0


def test_profiles_name_checks():
    assert {name for profile in PROFILES.values() for name in profile.warn} <= set(CHECKS)
    assert {name for profile in PROFILES.values() for name in profile.thresholds} <= set(CHECKS)


def test_a_limit_of_the_profile_gives_way_to_one_that_is_set():
    assert apply_profile(Quality(), "molecules")[0].forces == 40.0
    assert apply_profile(Quality(forces=5.0), "molecules")[0].forces == 5.0
    assert apply_profile(Quality(), "run")[0] == Quality()
    of_metals, of_both = (
        apply_profile(Quality(), "import", {"system_type": np.array(types)})[0]
        for types in (["bulk"], ["bulk", "molecule"])
    )
    assert (of_metals.forces, of_both.forces) == (Quality().forces, 40.0)
    assert apply_profile(Quality(energy=EnergyLimits(deviations=7)), "molecules")[0].energy.deviations == 7
    assert apply_profile(Quality(warn=("forces",)), "reference")[1].warn == ("forces",)


def test_what_is_wrong_in_any_data_is_no_warning():
    checks = [
        Check(name="energy", verdict="fail", says="outliers"),
        Check(name="energy", verdict="fail", says="NaN", hard=True),
        Check(name="cell", verdict="fail", says=""),
        Check(name="energy", verdict="pass", says=""),
    ]
    assert [check.verdict for check in soften_failures(checks, {"energy"})] == ["warn", "fail", "fail", "pass"]


def test_an_element_that_was_asked_for_is_missing_in_any_data():
    rare, missing = (check_elements({"Cu": 100, "Au": 1}, 1_000, requested, 0.01) for requested in ([], ["Pt"]))
    assert [check.verdict for check in soften_failures([rare, missing], {"elements"})] == ["warn", "fail"]


def test_given_splits_cannot_be_mended():
    assert list_unfixable({"split_report": '{"n_given": 3}'}) == ("splits", "leakage")
    assert list_unfixable({"split_report": '{"n_gap": 0}'}) == ("leakage",)
    assert list_unfixable({"split_report": '{"by": "seed"}'}) == list_unfixable({}) == ()


def test_settings_of_profiles():
    with pytest.raises(ValidationError, match="unknown check 'force'. Did you mean 'forces'"):
        Quality(warn=("force",))
    with pytest.raises(ValidationError, match="Input should be 'auto', 'run', 'import', 'molecules' or 'reference'"):
        Quality.model_validate({"profile": "metals"})
