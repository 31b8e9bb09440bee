import warnings

import pytest
import torch
from load_samples import N_STRUCTURES

from daskpipe.core.errors import ConfigError
from daskpipe.core.structures import to_atoms
from daskpipe.load import MACEDataset, TorchDataset, mace_data
from daskpipe.store import open_dataset

ELEMENTS = [29, 47, 79]
CUTOFF = 4.0

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mace.data import AtomicData, KeySpecification, config_from_atoms
    from mace.tools import AtomicNumberTable
    from mace.tools.torch_geometric.dataloader import DataLoader


def convert_by_mace(ds, index, heads=("Default",), head="Default"):
    """Convert a structure with MACE, under the names that its files have."""
    atoms = to_atoms(ds, index)
    atoms.info["REF_energy"] = atoms.get_potential_energy()
    atoms.arrays["REF_forces"] = atoms.get_forces()
    if "stress" in atoms.calc.results:
        atoms.info["REF_stress"] = atoms.get_stress()
        if not atoms.pbc.all():
            atoms.info["config_stress_weight"] = 0.0
    atoms.info["total_charge"] = atoms.info["charge"]
    if "spin_multiplicity" in atoms.info:
        atoms.info["total_spin"] = atoms.info["spin_multiplicity"]
    config = config_from_atoms(atoms, KeySpecification.from_defaults(), head_name=head)
    return AtomicData.from_config(config, AtomicNumberTable(ELEMENTS), CUTOFF, heads=list(heads))


def assert_equal(converted, wanted):
    assert sorted(converted.keys) == sorted(wanted.keys)
    for name in wanted.keys:
        if isinstance(wanted[name], torch.Tensor):
            assert converted[name].dtype == wanted[name].dtype, name
            assert torch.equal(converted[name], wanted[name]), name
        else:
            assert converted[name] == wanted[name], name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_field_by_field_what_mace_makes_itself(store, dtype):
    ds = open_dataset(store).load()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        data = MACEDataset(store, elements=ELEMENTS, cutoff=CUTOFF)
        assert len(data) == N_STRUCTURES
        weights = set()
        for index in range(N_STRUCTURES):
            converted = data[index]
            assert_equal(converted, convert_by_mace(ds, index))
            weights.add(
                (converted.energy_weight.item(), converted.stress_weight.item(), converted.virials_weight.item())
            )
        assert weights == {(1.0, 1.0, 0.0), (1.0, 0.0, 0.0)}  # molecules have no stress
    finally:
        torch.set_default_dtype(before)


def test_items_batches_and_heads(store):
    ds = open_dataset(store).load()
    data = TorchDataset(store)
    heads = ("pbe", "scan")
    options = {"heads": heads, "head": "scan"}
    (converted,) = mace_data(data[3], ELEMENTS, CUTOFF, **options)
    assert_equal(converted, convert_by_mace(ds, 3, **options))
    assert converted.head == 1
    for converted, index in zip(mace_data(data.__getitems__([5, 2]), ELEMENTS, CUTOFF), (5, 2), strict=True):
        assert_equal(converted, convert_by_mace(ds, index))


def test_maces_own_loader_takes_it(store):
    data = MACEDataset(store, "train", elements=ELEMENTS, cutoff=CUTOFF)
    loader = DataLoader(data, batch_size=4, shuffle=False)
    energies = torch.cat([batch.energy for batch in loader])
    stored = TorchDataset(store, "train").__getitems__(range(len(data)))["energy"]
    assert torch.equal(energies, stored.to(energies.dtype))


def test_unknown_elements_are_refused(store):
    data = MACEDataset(store, elements=[29, 47], cutoff=CUTOFF)
    with pytest.raises(ConfigError, match=r"holds element 79, which is not among the elements 29, 47; give all"):
        [data[index] for index in range(len(data))]
