import dask
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111

from daskpipe.describe.reduction import fit
from daskpipe.describe.settings import Describe
from daskpipe.describe.soap import SOAP
from daskpipe.describe.stage import (
    FIT,
    describe,
    descriptors,
    features,
    fit_reduction,
    load_reduction,
    pack,
    unit_length,
)
from daskpipe.structures import from_atoms, round_positions
from daskpipe.work import Payload, Unit, arrays_of, commit, key_of, read_unit

SPECIES = ["Ag", "Cu"]
PARAMS = {"r_cut": 3.5, "n_max": 2, "l_max": 1}
SETTINGS = Describe(params=PARAMS, dims=4, sample=9)
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
    units, start = [], 0
    for index, size in enumerate(sizes):
        key = key_of("explore", 1, {"sizes": sizes, "index": index}, [], 0)
        arrays = arrays_of(from_atoms(structures[start : start + size]))
        commit(root, Unit(stage="explore", index=index, key=key, n_inputs=1), Payload(arrays=arrays, n_out=size))
        units.append((key, size))
        start += size
    return units


def fitted(root, units) -> str:
    keys = [key for key, _ in units]
    key = key_of(FIT, 1, {}, keys, RUN_SEED)
    payload = fit_reduction(root, keys, SETTINGS, SPECIES, RUN_SEED)
    commit(root, Unit(stage=FIT, index=0, key=key, n_inputs=payload.n_out), payload)
    return key


def test_array_is_lazy_with_known_chunks_and_dtype(tmp_path):
    sizes = (5, 3, 4)
    units = explored(tmp_path, frames(), sizes)
    counting = Counting()
    with dask.config.set(scheduler=counting):
        lazy = describe(tmp_path, units, SETTINGS, SPECIES, "key-of-a-unit-that-is-not-there-yet")
        assert lazy.chunks == (sizes, (SETTINGS.dims,))
        assert lazy.shape == (12, SETTINGS.dims)
        assert lazy.dtype == np.float32
        assert counting.n_computes == 0
        key = fitted(tmp_path, units)
        found = describe(tmp_path, units, SETTINGS, SPECIES, key).compute()
        assert counting.n_computes == 1
    assert found.dtype == np.float32
    assert found.shape == lazy.shape


def test_blocks_hold_what_the_tools_give_in_memory(tmp_path):
    structures = frames()
    units = explored(tmp_path, structures, (5, 3, 4))
    key = fitted(tmp_path, units)
    lazy = describe(tmp_path, units, SETTINGS, SPECIES, key)
    reduction = load_reduction(tmp_path, key)
    in_memory = reduction(unit_length(SOAP(species=SPECIES, average="outer", **PARAMS).compute(structures)))
    assert np.ptp(in_memory, axis=0).min() > 0
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), in_memory)
    np.testing.assert_array_equal(lazy.blocks[1].compute(scheduler="synchronous"), in_memory[5:8])
    second = read_unit(tmp_path, "explore", units[1][0])
    np.testing.assert_array_equal(features(second, SETTINGS, SPECIES, reduction), in_memory[5:8])


@pytest.mark.parametrize("sizes", [(12,), (1,) * 12, (7, 0, 5)])
def test_partition_of_the_frames_does_not_matter(tmp_path, sizes):
    structures = frames()
    found = {}
    for name, partition in (("one", (5, 3, 4)), ("other", sizes)):
        root = tmp_path / name
        units = explored(root, structures, partition)
        key = fitted(root, units)
        lazy = describe(root, units, SETTINGS, SPECIES, key)
        assert lazy.numblocks == (len(partition), 1)
        found[name] = load_reduction(root, key), lazy.compute(scheduler="synchronous")
    for attribute in ("mean", "axes", "explained"):
        np.testing.assert_array_equal(getattr(found["one"][0], attribute), getattr(found["other"][0], attribute))
    np.testing.assert_array_equal(found["one"][1], found["other"][1])


def test_order_of_the_frames_does_not_change_the_axes(tmp_path):
    structures = frames()
    one, other = tmp_path / "one", tmp_path / "other"
    first = load_reduction(one, fitted(one, explored(one, structures, (5, 3, 4))))
    second = load_reduction(other, fitted(other, explored(other, structures[::-1], (4, 8))))
    np.testing.assert_array_equal(first.axes, second.axes)


def test_axes_are_those_of_a_sample_of_the_size_asked_for(tmp_path):
    structures = frames()
    units = explored(tmp_path, structures, (6, 6))
    keys = [key for key, _ in units]
    few = fit_reduction(tmp_path, keys, SETTINGS, SPECIES, RUN_SEED)
    assert few.n_out == SETTINGS.sample
    everything = fit_reduction(tmp_path, keys, SETTINGS.model_copy(update={"sample": 100}), SPECIES, RUN_SEED)
    assert everything.n_out == len(structures)
    expected = fit(unit_length(SOAP(species=SPECIES, average="outer", **PARAMS).compute(structures)), SETTINGS.dims)
    np.testing.assert_allclose(everything.arrays["axes"], expected.axes, atol=1e-9)
    assert not np.allclose(few.arrays["axes"], expected.axes, atol=1e-9)
    other_seed = fit_reduction(tmp_path, keys, SETTINGS, SPECIES, RUN_SEED + 1)
    assert not np.array_equal(few.arrays["mean"], other_seed.arrays["mean"])


def test_pack_makes_a_payload():
    block = np.arange(6, dtype=np.float32).reshape(3, 2)
    payload = pack(block)
    assert payload.n_out == 3
    assert list(payload.arrays) == ["features"]
    np.testing.assert_array_equal(payload.arrays["features"], block)


def test_descriptors_have_length_one_unless_told_otherwise():
    ds = from_atoms(frames(3))
    raw = descriptors(ds, SETTINGS.model_copy(update={"normalise": False}), SPECIES)
    scaled = descriptors(ds, SETTINGS, SPECIES)
    assert np.ptp(np.linalg.norm(raw, axis=1)) > 0.1 * np.linalg.norm(raw, axis=1).max()
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(scaled, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-5)


def test_zeros_keep_their_length():
    np.testing.assert_array_equal(unit_length(np.zeros((1, 3), dtype=np.float32)), np.zeros((1, 3)))
