from concurrent.futures import ThreadPoolExecutor

import dask.bag as db
import numpy as np
import pytest
from ase import Atoms
from explore_samples import HOT, cluster, compressed, crystal, dynamics, emt, seed, slab, trajectories

from daskpipe.explore.settings import Guards
from daskpipe.explore.stage import explore, explore_partition, load_seeds
from daskpipe.structures import from_atoms, structure_id
from daskpipe.work import Payload, Rows, Unit, arrays_of, commit, key_of

RUN_SEED = 7


def run(seeds: list[Atoms], **settings) -> Payload:
    (payload,) = explore_partition(seeds, emt, dynamics(**settings), Guards(), RUN_SEED)
    return payload


def mixed() -> list[Atoms]:
    """Seeds of three periodicities, interleaved."""
    return [
        seed(crystal("Cu")),
        seed(cluster("Cu"), system_type="cluster"),
        seed(slab(), system_type="surface"),
        seed(cluster("Au"), system_type="cluster"),
        seed(crystal("Cu"), replica=1),
        seed(crystal("Cu"), temperature=HOT / 2),
    ]


def test_trajectories_of_mixed_periodicity_are_the_same_alone_and_in_any_order():
    seeds = mixed()
    together = trajectories(run(seeds))
    assert len(together) == len(seeds)
    assert trajectories(run(seeds[::-1])) == together
    for atoms in seeds:
        ((key, frames),) = trajectories(run([atoms])).items()
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
    assert counts == {"alloy": 3 * n_frames, "cluster": 2 * n_frames, "surface": n_frames}


def test_what_fails_is_rejected_and_the_rest_is_unchanged_by_a_bit():
    unknown = seed(Atoms("Fe2", positions=[[0, 0, 0], [0, 0, 2.2]]), temperature=450.0, replica=2)
    touching = seed(Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 0.3]]))
    nowhere = seed(cluster("Pd"))
    nowhere.positions[2, 1] = np.nan
    sane = mixed()
    expected = trajectories(run(sane))
    payload = run([touching, *sane[:2], unknown, *sane[2:4], nowhere, *sane[4:], seed(compressed())])
    assert trajectories(payload) == expected
    assert payload.n_out == len(sane) * dynamics().n_frames
    assert [item.reason for item in payload.rejected] == ["force", "unknown_element", "not_finite", "temperature"]
    assert {item.stage for item in payload.rejected} == {"explore"}
    assert payload.rejected[1].structure == f"{structure_id(unknown).hex()}@450K#2"
    assert payload.rejected[1].evidence == "Fe not among Ag Al Au Cu Ni Pd Pt"


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
    expected = [trajectories(run([atoms], **long_enough_to_interleave)) for atoms in seeds]
    with ThreadPoolExecutor(len(seeds)) as threads:
        found = list(threads.map(lambda atoms: trajectories(run([atoms], **long_enough_to_interleave)), seeds))
    assert found == expected


@pytest.mark.parametrize("partition_size", [1, 4])
def test_bag_is_lazy_and_partition_size_does_not_matter(partition_size):
    built = []

    def build():
        built.append(1)
        return emt()

    seeds = mixed()
    bag = db.from_sequence(seeds, partition_size=partition_size)
    payloads = explore(bag, build, dynamics(), Guards(), RUN_SEED)
    assert built == []
    assert payloads.npartitions == -(-len(seeds) // partition_size)
    found = payloads.compute(scheduler="synchronous")
    assert len(built) == payloads.npartitions
    ids = [item.tobytes() for payload in found for item in payload.arrays["structure_id"]]
    assert ids == [item.tobytes() for item in run(seeds).arrays["structure_id"]]


def test_seeds_come_from_the_tree_with_their_conditions(tmp_path):
    stored = [seed(crystal("Cu")), seed(slab()), seed(cluster("Pd"))]
    key = key_of("generate", 1, {}, [], 0)
    unit = Unit(stage="generate", index=0, key=key, n_inputs=3)
    commit(tmp_path, unit, Payload(arrays=arrays_of(from_atoms(stored)), n_out=3))
    pieces = [Rows(stage="generate", key=key, rows=(row,)) for row in (2, 0, 0)]
    seeds = load_seeds(tmp_path, pieces, [(300.0, 0), (300.0, 1), (450.0, 0)])
    assert [structure_id(atoms) for atoms in seeds] == [structure_id(stored[row]) for row in (2, 0, 0)]
    assert [(atoms.info["temperature"], atoms.info["replica"]) for atoms in seeds] == [(300, 0), (300, 1), (450, 0)]
