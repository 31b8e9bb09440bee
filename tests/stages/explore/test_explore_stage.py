import re
from concurrent.futures import ThreadPoolExecutor

import dask.bag as db
import numpy as np
import pytest
from ase import Atoms
from explore_samples import (
    HOT,
    RUN_SEED,
    cluster,
    compressed,
    crystal,
    dynamics,
    emt,
    frames_by_trajectory,
    lj,
    mixed,
    seed,
    settings,
    slab,
)
from pydantic import ValidationError

from daskpipe.core.structures import from_atoms, structure_id
from daskpipe.engine.checkpoints import Checkpoints
from daskpipe.engine.commit import commit
from daskpipe.engine.rows import UnitRows, dataset_to_arrays
from daskpipe.engine.units import Payload, Unit, unit_key
from daskpipe.potentials import Potential
from daskpipe.stages.explore.settings import Guards, MonteCarlo
from daskpipe.stages.explore.stage import explore, explore_partition, list_conditions, list_seed_conditions, load_seeds
from daskpipe.stages.explore.trajectory import Condition


def run(seeds: list[Atoms], guards: Guards | None = None, build=emt, **changes) -> Payload:
    (payload,) = explore_partition(seeds, build, settings(guards, **changes), RUN_SEED)
    return payload


def test_trajectories_of_mixed_periodicity_are_the_same_alone_and_in_any_order():
    seeds = mixed()
    together = frames_by_trajectory(run(seeds))
    assert len(together) == len(seeds)
    assert frames_by_trajectory(run(seeds[::-1])) == together
    for atoms in seeds:
        ((key, frames),) = frames_by_trajectory(run([atoms])).items()
        assert frames == together[key]
        assert len(set(frames)) == dynamics().n_frames, "frames must differ from each other"


def test_frames_are_ordered_by_seed_then_time():
    seeds = mixed()
    arrays = run(seeds).arrays
    n_frames = dynamics().n_frames
    parents = [structure_id(atoms) for atoms in seeds for _ in range(n_frames)]
    assert [item.tobytes() for item in arrays["parent_id"]] == parents
    assert arrays["step"].tolist() == [5, 10, 15, 20] * len(seeds)
    assert arrays["temperature"].dtype == np.float32
    counts = dict(zip(*np.unique(arrays["system_type"], return_counts=True), strict=True))
    assert counts == {"alloy": 4 * n_frames, "cluster": 2 * n_frames, "surface": n_frames}
    ensembles = dict(zip(*np.unique(arrays["ensemble"], return_counts=True), strict=True))
    assert ensembles == {
        "npt_anisotropic": 3 * n_frames, "npt_triclinic": n_frames, "nvt_langevin": 3 * n_frames
    }  # fmt: skip


def test_a_barostat_without_a_stress_is_refused():
    """An ASE calculator gives no stress of a slab; EMT's batched_model model does."""

    def by_hand():
        return Potential(calculator=emt().calculator, elements=emt().elements)

    changes = {"ensemble": "npt_plane", "steps": 5}
    (refused,) = run([seed(slab())], build=by_hand, **changes).rejected
    assert refused.reason == "no_stress"
    assert (
        "its barostat needs a stress and the potential gives none for such a cell; give nvt_langevin"
        in refused.evidence
    )
    assert run([seed(slab())], **changes).n_out == 1


def test_zbl_refuses_a_seed_that_it_would_push_on():
    short, copper = seed(Atoms("Ni2", positions=[[0, 0, 0], [0, 0, 1.68]])), seed(cluster())
    payload = run([short, copper], repulsion="zbl")
    assert len(frames_by_trajectory(payload)) == 1
    (refused,) = payload.rejected
    assert refused.reason == "repulsion"
    assert re.search(
        r"is 1.680 Å from atom . \(Ni\); the limit is 1.736 Å, 0.7 of the sum of covalent radii: "
        "repulsion=zbl would push on it from the start; give repulsion=none, or a relaxed seed",
        refused.evidence,
    )


def poison() -> dict[str, Atoms]:
    """Seeds that are nothing to start from, or not for long, by the reason that must be named."""
    nowhere = seed(cluster("Pd"))
    nowhere.positions[2, 1] = np.nan
    endless = seed(crystal("Pd"))
    endless.cell[0, 0] = np.inf
    flat = seed(crystal("Pd"))
    flat.cell = [[3.0, 0, 0], [6.0, 0, 0], [0, 0, 3.0]]
    nothing = seed(crystal("Ni"))
    nothing.cell[:] = 0
    return {
        "not_finite": nowhere,
        "not_finite ": endless,
        "cell": flat,
        "cell ": nothing,
        "unknown_element": seed(Atoms("Fe2", positions=[[0, 0, 0], [0, 0, 2.2]]), temperature=450.0, replica=2),
        "overlap": seed(Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 0.3]])),
        "overlap ": seed(Atoms("Cu2", positions=[[1, 1, 1], [1, 1, 1]])),
        "force": seed(Atoms("Pt2", positions=[[0, 0, 0], [0, 0, 1.5]])),
        "temperature": seed(compressed()),
    }


@pytest.mark.parametrize("build", [emt, lj], ids=["emt", "lj"])
def test_poison_is_quarantined_with_reason_and_step_and_no_neighbour_changes_by_a_bit(build):
    sane, bad = mixed(), poison()
    expected = frames_by_trajectory(run([*sane, *sane[:2]], build=build))
    seeds = [atoms for pair in zip(bad.values(), [*sane, *sane], strict=False) for atoms in pair]
    payload = run(seeds, Guards(on_stop="quarantine"), build=build)
    kept = frames_by_trajectory(payload)
    assert {key: kept[key] for key in expected} == expected
    # Lennard-Jones knows all elements, and its pairs are softer: some of what blows up with EMT does not.
    assert build is lj or kept.keys() == expected.keys()
    found = {item.structure.partition("@")[0]: item for item in payload.rejected}
    named = {reason: found.get(structure_id(atoms).hex()) for reason, atoms in bad.items()}
    if build is emt:
        assert {reason: item and item.reason for reason, item in named.items()} == {
            reason: reason.strip() for reason in bad
        }
        fe = named["unknown_element"]
        assert fe is not None
        assert fe.structure == f"{structure_id(bad['unknown_element']).hex()}@450K#2"
        assert fe.evidence == "at step 0: Fe not among Ag Al Au Cu Ni Pd Pt"
    for reason in ("not_finite", "not_finite ", "cell", "cell ", "overlap", "overlap "):
        item = named[reason]
        assert item is not None
        assert item.reason == reason.strip()
        assert item.details["step"] == 0
        assert len(item.details["crashed"]["symbols"]) == len(bad[reason])
    assert {item.stage for item in payload.rejected} == {"explore"}
    assert all("step" in item.details for item in payload.rejected)


def test_what_is_kept_of_a_broken_trajectory_is_in_the_payload_and_the_stop_in_the_quarantine():
    payload = run([seed(compressed())], stride=1)
    (stop,) = payload.rejected
    assert payload.n_out == stop.details["step"] - 1 > 0
    assert payload.arrays["step"].tolist() == list(range(1, stop.details["step"]))


def test_an_ensemble_that_a_structure_cannot_have_is_refused_for_it_alone():
    payload = run([seed(slab()), seed(crystal())], ensemble="npt_triclinic")
    (stop,) = payload.rejected
    assert stop.reason == "ensemble"
    assert "the structure is open along c; give npt_plane or nvt_langevin" in stop.evidence
    assert payload.n_out == dynamics().n_frames


def test_ensembles_by_system_type_and_slabs_that_relax_in_plane():
    seeds = [seed(slab(), system_type="surface"), seed(crystal()), seed(cluster(), system_type="cluster")]
    arrays = run(seeds, relax_plane=True, ensembles={"cluster": "nvt_rescale"}).arrays
    assert arrays["ensemble"].tolist()[::4] == ["npt_plane", "npt_anisotropic", "nvt_rescale"]
    cell = arrays["cell"][3]
    assert np.abs(cell[:2] - slab().cell.array[:2]).max() > 1e-4
    np.testing.assert_array_equal(cell[2], slab().cell.array[2])


def test_oxidation_states_must_be_there_for_all_elements():
    moves = MonteCarlo(swaps=1, oxidation_states={"Cu": 1.0})
    payload = run([seed(cluster("Au")), seed(cluster("Cu"))], monte_carlo=moves)
    (stop,) = payload.rejected
    assert stop.reason == "oxidation_states"
    assert "are given for Cu and not for Au" in stop.evidence
    assert payload.n_out == dynamics().n_frames


def test_zbl_keeps_atoms_apart_that_the_potential_would_let_through():
    """A pair that falls into the well of a Lennard-Jones that is far too small for copper."""
    pair = seed(Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 1.95]]))

    def small():
        from daskpipe.potentials import build_potential

        return build_potential("lj", {"epsilon": 0.3, "sigma": 1.2, "r_cut": 5.0}, "cpu", "float64")

    warm = Guards(max_temperature_ratio=50, evaporation=None)
    changes = {"ensemble": "nve", "steps": 100, "stride": 2, "timestep": 4.0}
    near = run([pair], warm, build=small, **changes).arrays["positions"].reshape(-1, 2, 3)
    far = run([pair], warm, build=small, **changes, repulsion="zbl").arrays["positions"].reshape(-1, 2, 3)
    lengths = [np.linalg.norm(np.ptp(frames, axis=1), axis=1) for frames in (near, far)]
    assert lengths[0].min() < 1.5 < 1.6 < lengths[1].min()


def test_a_partition_may_lose_all_its_seeds():
    payload = run([seed(Atoms("Fe"))])
    assert (payload.n_out, len(payload.rejected)) == (0, 1)
    assert payload.arrays["positions"].shape == (0, 3)
    assert payload.arrays["structure_id"].dtype == np.dtype("V16")


def test_the_same_object_twice_is_two_trajectories():
    atoms = seed(cluster())
    payload = run([atoms, atoms])
    ids = [item.tobytes() for item in payload.arrays["structure_id"]]
    n_frames = dynamics().n_frames
    assert ids[:n_frames] == ids[n_frames:]


def test_threads_that_share_a_potential_do_not_disturb_each_other():
    seeds = [seed(crystal("Cu"), replica=replica) for replica in range(4)]
    long_enough_to_interleave = {"steps": 60, "stride": 20}
    expected = [frames_by_trajectory(run([atoms], **long_enough_to_interleave)) for atoms in seeds]
    with ThreadPoolExecutor(len(seeds)) as threads:
        found = list(threads.map(lambda atoms: frames_by_trajectory(run([atoms], **long_enough_to_interleave)), seeds))
    assert found == expected


@pytest.mark.parametrize("partition_size", [1, 4])
def test_bag_is_lazy_and_partition_size_does_not_matter(partition_size):
    built = []

    def build():
        built.append(1)
        return emt()

    seeds = mixed()
    bag = db.from_sequence(seeds, partition_size=partition_size)
    payloads = explore(bag, build, settings(), RUN_SEED)
    assert built == []
    assert payloads.npartitions == -(-len(seeds) // partition_size)
    found = payloads.compute(scheduler="synchronous")
    assert len(built) == payloads.npartitions
    ids = [item.tobytes() for payload in found for item in payload.arrays["structure_id"]]
    assert ids == [item.tobytes() for item in run(seeds).arrays["structure_id"]]


def stored(tmp_path, types: tuple[str, ...] = ()) -> list[UnitRows]:
    """Four seeds in the directory: bulk, slab, cluster, bulk."""
    seeds = [seed(crystal("Cu")), seed(slab()), seed(cluster("Pd")), seed(crystal("Au"))]
    for atoms, name in zip(seeds, types, strict=False):
        atoms.info["system_type"] = name
    key = unit_key("generate", 1, {}, [], 0)
    unit = Unit(stage="generate", index=0, key=key, n_inputs=len(seeds))
    commit(tmp_path, unit, Payload(arrays=dataset_to_arrays(from_atoms(seeds)), n_out=len(seeds)))
    return [UnitRows(stage="generate", key=key, rows=(row,)) for row in range(len(seeds))]


def test_seeds_come_from_the_tree_with_their_conditions(tmp_path):
    pieces = stored(tmp_path)
    chosen = [Condition(temperature=300.0), Condition(temperature=300.0, replica=1), Condition(temperature=450.0)]
    seeds = load_seeds(tmp_path, [pieces[2], pieces[0], pieces[0]], chosen)
    expected = [structure_id(seed(atoms)) for atoms in (cluster("Pd"), crystal("Cu"), crystal("Cu"))]
    assert [structure_id(atoms) for atoms in seeds] == expected
    assert [atoms.info["condition"] for atoms in seeds] == chosen


def test_the_grid_has_each_temperature_pressure_and_replica_once():
    grid = dynamics(temperatures=[300.0, {"start": 300, "end": 900}], pressures=[0.0, 2.0], replicas=3)
    found = list_conditions(grid)
    assert len(found) == len({repr(condition) for condition in found}) == 2 * 2 * 3
    assert len(list_conditions(grid, pressed=False)) == 2 * 3


def test_several_pressures_are_for_what_has_a_barostat(tmp_path):
    pieces = stored(tmp_path)

    def pressures(**changes):
        listed = list_seed_conditions(tmp_path, pieces, settings(**changes))
        return [[condition.pressure for condition in each] for each in listed]

    both, one = [0.0, 1.0], [0.0]
    assert pressures(pressures=both) == [both, one, one, both]
    assert pressures(pressures=both, relax_plane=True, ensembles={"alloy": "auto"}) == [both, one, one, both]
    listed = list_seed_conditions(tmp_path / "nowhere", pieces, settings())
    assert [[condition.pressure for condition in each] for each in listed] == [one] * 4


def test_a_system_type_has_temperatures_of_its_own(tmp_path):
    pieces = stored(tmp_path, ("crystal", "surface", "surface", "alloy"))
    hot, cold = [600.0, 900.0], [100.0]
    chosen = settings(temperatures=hot, temperatures_by_type={"surface": cold})
    listed = list_seed_conditions(tmp_path, pieces, chosen)
    assert [[condition.temperature for condition in each] for each in listed] == [hot, cold, cold, hot]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"surface": []}, "temperatures_by_type of surface is empty"),
        ({"surface": [300, 300]}, "a temperature given twice"),
        ({"surface": [{"start": 300, "end": -5}]}, "a temperature must be greater than 0 K"),
    ],
)
def test_wrong_temperatures_of_a_type_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        dynamics(temperatures_by_type=given)


def test_a_unit_goes_on_from_its_checkpoint_and_leaves_none_behind(tmp_path):
    unit = Unit(stage="explore", index=0, key="cd" * 16, n_inputs=1)
    seeds = mixed()
    chosen = settings(checkpoint=1e-9)
    handle = Checkpoints(root=tmp_path, unit=unit)
    (expected,) = explore_partition(seeds, emt, chosen, RUN_SEED)
    (payload,) = explore_partition(seeds, emt, chosen, RUN_SEED, checkpoints=handle)
    assert len(handle.list_files()) == 1
    (resumed,) = explore_partition(seeds, emt, chosen, RUN_SEED, checkpoints=handle)
    for found in (payload, resumed):
        assert set(found.arrays) == set(expected.arrays)
        for name, array in expected.arrays.items():
            np.testing.assert_array_equal(found.arrays[name], array)
    commit(tmp_path, unit, payload)
    assert handle.list_files() == []


def test_hot_is_as_hot_as_the_samples_say():
    assert {atoms.info["condition"].temperature for atoms in mixed()} == {HOT, HOT / 2}
