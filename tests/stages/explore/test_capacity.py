import itertools
import json
from collections.abc import Sequence

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from explore_samples import emt, lj

from daskpipe.core.torch_sim import ModelInterface
from daskpipe.potentials import batched_model
from daskpipe.stages.explore.capacity import (
    CPU_ATOMS,
    PROBES,
    BatchCapacity,
    is_out_of_memory,
    measure_capacity,
    memory_growth,
    n_pairs,
    remember_or_measure,
)

COPPER = bulk("Cu", cubic=True)


def test_room_on_a_cpu_counts_atoms():
    model = batched_model(emt())
    assert measure_capacity(model, [COPPER], None, 5.0, "emt").capacity == CPU_ATOMS
    space = measure_capacity(model, [COPPER], 10, 5.0, "emt")
    weight = space.weigh(COPPER)
    assert [space.can_join([weight] * number, weight) for number in range(4)] == [True, True, False, False]


def test_what_is_too_heavy_flies_alone():
    space = BatchCapacity(len, 3)
    assert space.can_join([], space.weigh(COPPER))
    assert not space.can_join([space.weigh(Atoms("H"))], space.weigh(COPPER))


def test_halving_takes_half_of_what_was_in_flight():
    space = BatchCapacity(len, 1000)
    space.halve_limit([4] * 5)
    assert space.capacity == 10


def test_pairs_grow_with_density():
    assert n_pairs(COPPER, 2.6) == 4 * 12
    assert n_pairs(molecule("H2O"), 1.2) == 4
    squeezed = COPPER.copy()
    squeezed.set_cell(0.8 * COPPER.cell, scale_atoms=True)
    assert n_pairs(squeezed, 5.0) > n_pairs(COPPER, 5.0)
    assert n_pairs(COPPER.repeat(2), 5.0) == 8 * n_pairs(COPPER, 5.0)


def test_growth_is_the_slope_and_not_what_the_model_takes_for_itself():
    """A device whose memory is 300 MB for the model and 700 bytes for each unit of weight."""
    sizes: list[int] = []

    def peak_memory(structures: Sequence[Atoms], model: ModelInterface) -> float:
        sizes.append(len(structures))
        return 3e8 + 700.0 * sum(map(weigh, structures))

    def weigh(atoms: Atoms) -> float:
        return len(atoms) + n_pairs(atoms, 5.0)

    assert memory_growth(batched_model(lj()), COPPER, weigh, peak_memory) == pytest.approx(700)
    large, small = (size * weigh(COPPER) for size in sizes)
    assert [small, large] == pytest.approx(list(PROBES), rel=0.2)


def test_one_structure_may_be_larger_than_the_probes():
    grown = memory_growth(batched_model(lj()), COPPER, lambda _: 1e6, lambda structures, _: 1e9 * len(structures))
    assert grown == pytest.approx(1e3)


def test_what_was_measured_is_remembered(tmp_path):
    calls = itertools.count(1)

    def measure() -> float:
        return 100.0 * next(calls)

    assert remember_or_measure("a model on a device", measure, tmp_path / "new") == 100
    assert remember_or_measure("a model on a device", measure, tmp_path / "new") == 100
    assert remember_or_measure("another", measure, tmp_path / "new") == 200
    assert json.loads((tmp_path / "new" / "memory.json").read_text()) == {"a model on a device": 100, "another": 200}
    (tmp_path / "new" / "memory.json").write_text('{"torn')
    assert remember_or_measure("another", measure, tmp_path / "new") == 300


def test_cache_is_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remember_or_measure("x", lambda: 1.0)
    assert (tmp_path / "daskpipe" / "memory.json").exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("whatever"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("Failed to allocate 1234 bytes on device 'cuda:0'"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("a cell without volume"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected


def test_torch_on_this_machine_says_it_so():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.float64)
    assert is_out_of_memory(caught.value)
