import dask
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111

from daskpipe.core.structures import from_atoms, round_positions, to_atoms
from daskpipe.engine.commit import commit
from daskpipe.engine.rows import dataset_to_arrays, read_unit
from daskpipe.engine.units import Payload, Unit, unit_key
from daskpipe.stages.describe import build_descriptor
from daskpipe.stages.describe import rows as rows_module
from daskpipe.stages.describe.reduction import fit_axes, unit_length
from daskpipe.stages.describe.rows import describe_groups, make_structures, most_atoms, split_groups
from daskpipe.stages.describe.settings import Describe
from daskpipe.stages.describe.stage import (
    FIT,
    describe,
    describe_atoms,
    describe_unit,
    fit_reduction,
    load_reductions,
    pack_block,
    sample_atoms,
    sample_frames,
)

SPECIES = ["Ag", "Cu"]
PARAMS = {"r_cut": 3.5, "n_max": 2, "l_max": 1}
SETTINGS = Describe(params=PARAMS, dims=4, sample=9)
OF_ATOMS = SETTINGS.model_copy(update={"level": "atom", "atom_sample": 15})
OTHERS = [
    Describe(descriptor="acsf", params={"r_cut": 3.5}, dims=3, level="atom", sample=9),
    Describe(descriptor="mbtr", params={"grid": {"min": 0, "max": 1, "sigma": 0.2, "n": 5}}, dims=3, sample=9),
    Describe(descriptor="mace", dims=3, level="atom", sample=9),
]
RUN_SEED = 5


class Counting:
    """Dask scheduler that counts how often it was asked to compute."""

    def __init__(self) -> None:
        self.n_computes = 0

    def __call__(self, dsk, keys, **kwargs):
        self.n_computes += 1
        return dask.get(dsk, keys, **kwargs)


def frames(n: int = 12) -> list[Atoms]:
    rng = np.random.default_rng(0)
    found = []
    for index in range(n):
        atoms = [bulk("Cu", cubic=True), fcc111("Ag", (1, 1, 3), vacuum=4.0), Atoms("CuAg", [[0, 0, 0], [0, 0, 2.5]])][
            index % 3
        ]
        atoms.rattle(0.2, rng=rng)
        found.append(round_positions(atoms))
    return found


def explored(root, structures, sizes) -> list[tuple[str, int]]:
    """Commit `structures` as exploration units of so many frames; return their keys and sizes."""
    assert sum(sizes) == len(structures)
    root.mkdir(exist_ok=True)
    units, start = [], 0
    for index, size in enumerate(sizes):
        key = unit_key("explore", 1, {"sizes": sizes, "index": index}, [], 0)
        arrays = dataset_to_arrays(from_atoms(structures[start : start + size]))
        commit(root, Unit(stage="explore", index=index, key=key, n_inputs=1), Payload(arrays=arrays, n_out=size))
        units.append((key, size))
        start += size
    return units


def fitted(root, units, settings=SETTINGS) -> str:
    keys = [key for key, _ in units]
    key = unit_key(FIT, 1, settings.model_dump(), keys, RUN_SEED)
    payload = fit_reduction(root, "explore", keys, settings, SPECIES, RUN_SEED)
    commit(root, Unit(stage=FIT, index=0, key=key, n_inputs=payload.n_out), payload)
    return key


def full(structures, settings=SETTINGS, average="off") -> np.ndarray:
    return build_descriptor(settings, SPECIES, average).compute(structures)


def means(structures, settings=SETTINGS) -> np.ndarray:
    """Mean rows of structures, one after another."""
    return np.stack([full([atoms], settings).mean(axis=0, dtype=float) for atoms in structures]).astype(np.float32)


# --- Dask arrays --------------------------------------------------------------------------------------


def test_arrays_are_lazy_with_known_chunks_and_dtype(tmp_path):
    structures, sizes = frames(), (5, 3, 4)
    units = explored(tmp_path, structures, sizes)
    n_atoms = [len(atoms) for atoms in structures]
    of_units = tuple(sum(piece) for piece in (n_atoms[:5], n_atoms[5:8], n_atoms[8:]))
    counting = Counting()
    with dask.config.set(scheduler=counting):
        lazy = describe(tmp_path, "explore", units, OF_ATOMS, SPECIES, "key-of-a-unit-that-is-not-there-yet")
        atoms = describe_atoms(tmp_path, "explore", units, OF_ATOMS, SPECIES, "key-of-a-unit-that-is-not-there-yet")
        assert lazy.chunks == (sizes, (OF_ATOMS.dims,))
        assert atoms.chunks == (of_units, (OF_ATOMS.dims,))
        assert lazy.dtype == atoms.dtype == np.float32
        assert counting.n_computes == 0
        key = fitted(tmp_path, units, OF_ATOMS)
        found = describe(tmp_path, "explore", units, OF_ATOMS, SPECIES, key).compute()
        of_atoms = describe_atoms(tmp_path, "explore", units, OF_ATOMS, SPECIES, key).compute()
        assert counting.n_computes == 2
    assert found.dtype == of_atoms.dtype == np.float32
    assert found.shape == lazy.shape
    assert of_atoms.shape == atoms.shape


def test_blocks_hold_what_the_tools_give_in_memory(tmp_path):
    structures = frames()
    units = explored(tmp_path, structures, (5, 3, 4))
    key = fitted(tmp_path, units, OF_ATOMS)
    reduction, of_atoms = load_reductions(tmp_path, key, OF_ATOMS)
    expected = reduction(means(structures), normalise=True)
    lazy = describe(tmp_path, "explore", units, OF_ATOMS, SPECIES, key)
    assert np.ptp(expected, axis=0).min() > 0
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), expected)
    np.testing.assert_array_equal(lazy.blocks[1].compute(scheduler="synchronous"), expected[5:8])
    expected = of_atoms(full(structures), normalise=True)
    assert np.ptp(expected, axis=0).min() > 0
    lazy = describe_atoms(tmp_path, "explore", units, OF_ATOMS, SPECIES, key)
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), expected)
    first = sum(len(atoms) for atoms in structures[:5])
    block = lazy.blocks[1].compute(scheduler="synchronous")
    np.testing.assert_array_equal(block, expected[first : first + len(block)])


def test_both_levels_describe_a_structure_by_the_same_numbers(tmp_path):
    units = explored(tmp_path, frames(), (5, 7))
    found = {}
    for settings in (SETTINGS, OF_ATOMS):
        key = fitted(tmp_path, units, settings)
        found[settings.level] = describe(tmp_path, "explore", units, settings, SPECIES, key).compute(
            scheduler="synchronous"
        )
    np.testing.assert_array_equal(found["atom"], found["structure"])


def test_a_structure_is_described_by_the_outer_average():
    structures = frames()
    ds = from_atoms(structures)
    found = np.concatenate([descriptors for _, descriptors, _ in describe_groups(ds, SETTINGS, SPECIES)])
    np.testing.assert_allclose(found, full(structures, average="outer"), rtol=1e-4, atol=1e-6 * found.max())


def test_a_unit_holds_both_levels_from_one_pass(tmp_path, monkeypatch):
    passes = []

    def counted(*args):
        passes.append(args)
        return describe_groups(*args)

    monkeypatch.setattr(rows_module, "describe_groups", counted)
    units = explored(tmp_path, frames(), (5, 7))
    for settings, names in ((SETTINGS, {"features"}), (OF_ATOMS, {"features", "environments"})):
        key = fitted(tmp_path, units, settings)
        passes.clear()
        (payload,) = dask.compute(
            describe_unit(tmp_path, "explore", *units[1], settings, SPECIES, key), scheduler="synchronous"
        )
        assert len(passes) == 1
        assert payload.arrays.keys() == names
        assert payload.n_out == 7
        for name, lazy in (("features", describe), ("environments", describe_atoms)):
            if name in names:
                expected = (
                    lazy(tmp_path, "explore", units, settings, SPECIES, key).blocks[1].compute(scheduler="synchronous")
                )
                np.testing.assert_array_equal(payload.arrays[name], expected)


def test_pack_makes_a_payload():
    block = np.arange(6, dtype=np.float32).reshape(3, 2)
    payload = pack_block({"features": block})
    assert payload.n_out == 3
    np.testing.assert_array_equal(payload.arrays["features"], block)


# --- what does not matter -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        *((settings, sizes) for settings in (SETTINGS, OF_ATOMS) for sizes in ((12,), (1,) * 12, (7, 0, 5))),
        *((settings, (7, 0, 5)) for settings in OTHERS[:2]),
    ],
)
def test_partition_of_the_frames_does_not_matter(tmp_path, sizes, settings):
    structures = frames()
    found = {}
    for name, partition in (("one", (5, 3, 4)), ("other", sizes)):
        root = tmp_path / name
        units = explored(root, structures, partition)
        key = fitted(root, units, settings)
        lazy = describe(root, "explore", units, settings, SPECIES, key)
        assert lazy.numblocks == (len(partition), 1)
        arrays = {"features": lazy.compute(scheduler="synchronous")}
        if settings.level == "atom":
            arrays["environments"] = describe_atoms(root, "explore", units, settings, SPECIES, key).compute(
                scheduler="synchronous"
            )
        for index, reduction in enumerate(load_reductions(root, key, settings)):
            for attribute in ("mean", "axes", "explained") if reduction else ():
                arrays[f"{attribute} {index}"] = getattr(reduction, attribute)
        found[name] = arrays
    assert np.ptp(found["one"]["features"], axis=0).min() > 0
    for name, array in found["one"].items():
        np.testing.assert_array_equal(array, found["other"][name], err_msg=name)


def test_partition_matters_to_mace_in_the_last_bits_only(tmp_path):
    """Its rows come from batches; so the same frames in other units have the same features to rounding."""
    settings = OTHERS[2]
    structures = frames()
    units = explored(tmp_path / "one", structures, (5, 3, 4))
    key = fitted(tmp_path / "one", units, settings)
    expected = describe_atoms(tmp_path / "one", "explore", units, settings, SPECIES, key).compute(
        scheduler="synchronous"
    )
    others = explored(tmp_path / "other", structures, (12,))
    other = fitted(tmp_path / "other", others, settings)
    found = describe_atoms(tmp_path / "other", "explore", others, settings, SPECIES, other).compute(
        scheduler="synchronous"
    )
    assert np.ptp(expected, axis=0).min() > 1e-2
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_workers_and_threads_do_not_matter(tmp_path, client):
    units = explored(tmp_path, frames(), (5, 3, 4))
    key = fitted(tmp_path, units, OF_ATOMS)
    lazy = [array(tmp_path, "explore", units, OF_ATOMS, SPECIES, key) for array in (describe, describe_atoms)]
    expected = dask.compute(*lazy, scheduler="synchronous")
    for found in (dask.compute(*lazy, scheduler="threads", num_workers=3), client.gather(client.compute(lazy))):
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("group_bytes", [1, 640])
def test_groups_do_not_matter(tmp_path, monkeypatch, group_bytes):
    units = explored(tmp_path, frames(), (12,))
    key = fitted(tmp_path, units, OF_ATOMS)
    lazy = [array(tmp_path, "explore", units, OF_ATOMS, SPECIES, key) for array in (describe, describe_atoms)]
    expected = dask.compute(*lazy, scheduler="synchronous")
    axes = load_reductions(tmp_path, key, OF_ATOMS)
    monkeypatch.setattr(rows_module, "GROUP_BYTES", group_bytes)
    assert len(list(describe_groups(from_atoms(frames()), OF_ATOMS, SPECIES))) > 3
    for ours, theirs in zip(dask.compute(*lazy, scheduler="synchronous"), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    again = fit_reduction(tmp_path, "explore", [units[0][0]], OF_ATOMS, SPECIES, RUN_SEED)
    np.testing.assert_array_equal(again.arrays["axes"], axes[0].axes)
    np.testing.assert_array_equal(again.arrays["environment_axes"], axes[1].axes)


def test_order_of_the_frames_does_not_change_the_axes(tmp_path):
    structures = frames()
    one, other = tmp_path / "one", tmp_path / "other"
    first = load_reductions(one, fitted(one, explored(one, structures, (5, 3, 4)), OF_ATOMS), OF_ATOMS)
    second = load_reductions(other, fitted(other, explored(other, structures[::-1], (4, 8)), OF_ATOMS), OF_ATOMS)
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours.axes, theirs.axes)


# --- the sample ---------------------------------------------------------------------------------------


def test_axes_are_those_of_a_sample_of_the_size_asked_for(tmp_path):
    structures = frames()
    units = explored(tmp_path, structures, (6, 6))
    keys = [key for key, _ in units]
    few = fit_reduction(tmp_path, "explore", keys, SETTINGS, SPECIES, RUN_SEED)
    assert few.n_out == SETTINGS.sample
    everything = fit_reduction(
        tmp_path, "explore", keys, SETTINGS.model_copy(update={"sample": 100}), SPECIES, RUN_SEED
    )
    assert everything.n_out == len(structures)
    expected = fit_axes(unit_length(means(structures)), SETTINGS.dims)
    np.testing.assert_allclose(everything.arrays["axes"], expected.axes, atol=1e-6)
    assert not np.allclose(few.arrays["axes"], expected.axes, atol=1e-3)
    other_seed = fit_reduction(tmp_path, "explore", keys, SETTINGS, SPECIES, RUN_SEED + 1)
    assert not np.array_equal(few.arrays["mean"], other_seed.arrays["mean"])


def test_axes_of_atoms_are_those_of_a_sample_of_atoms(tmp_path):
    structures = frames()
    units = explored(tmp_path, structures, (6, 6))
    keys = [key for key, _ in units]
    sample = sample_frames(tmp_path, "explore", keys, OF_ATOMS.sample, RUN_SEED)
    chosen = sample_atoms(sample, OF_ATOMS.atom_sample, RUN_SEED)
    assert chosen.sum() == OF_ATOMS.atom_sample < len(chosen)
    taken = [to_atoms(sample, index) for index in range(OF_ATOMS.sample)]
    expected = fit_axes(unit_length(full(taken)[chosen]), OF_ATOMS.dims)
    found = fit_reduction(tmp_path, "explore", keys, OF_ATOMS, SPECIES, RUN_SEED)
    for name in ("mean", "axes", "explained"):
        np.testing.assert_allclose(found.arrays[f"environment_{name}"], getattr(expected, name), atol=1e-9)
    assert found.arrays["axes"].shape == found.arrays["environment_axes"].shape
    assert not sample_atoms(sample, OF_ATOMS.atom_sample, RUN_SEED + 1)[chosen].all()


def test_rows_are_not_scaled_when_told_so(tmp_path):
    plain = OF_ATOMS.model_copy(update={"normalise": False})
    structures = frames()
    units = explored(tmp_path, structures, (12,))
    key = fitted(tmp_path, units, plain)
    reduction, of_atoms = load_reductions(tmp_path, key, plain)
    found = describe(tmp_path, "explore", units, plain, SPECIES, key).compute(scheduler="synchronous")
    np.testing.assert_array_equal(found, reduction(means(structures)))
    found = describe_atoms(tmp_path, "explore", units, plain, SPECIES, key).compute(scheduler="synchronous")
    np.testing.assert_array_equal(found, of_atoms(full(structures)))
    assert not np.allclose(found, of_atoms(full(structures), normalise=True), rtol=0.1)


# --- a few at a time ----------------------------------------------------------------------------------


def test_groups_tile_the_structures_and_keep_the_bound():
    n_atoms = np.array([3, 3, 3, 20, 1, 9, 1, 1])
    found = list(split_groups(n_atoms, 10))
    assert [(group.start, group.stop) for group in found] == [(0, 3), (3, 4), (4, 6), (6, 8)]
    assert list(split_groups(n_atoms[:0], 10)) == []


def test_a_group_takes_the_memory_it_may(monkeypatch):
    descriptor = build_descriptor(SETTINGS, SPECIES, "off")
    bytes_an_atom = descriptor.compute([bulk("Cu")]).nbytes
    assert most_atoms(descriptor) == rows_module.GROUP_BYTES // bytes_an_atom
    monkeypatch.setattr(rows_module, "GROUP_BYTES", 1)
    assert most_atoms(descriptor) == 1


def test_geometries_are_the_structures(tmp_path):
    structures = frames()
    structures[2].info["charge"] = -1
    units = explored(tmp_path, structures, (12,))
    ds = read_unit(tmp_path, "explore", units[0][0])
    found = make_structures(ds)
    assert found == [to_atoms(ds, index) for index in range(len(structures))]
    assert [atoms.info["charge"] for atoms in found] == [0, 0, -1] + [0] * 9
