import json
from dataclasses import asdict

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.neighborlist import neighbor_list
from load_samples import ATTRS

import daskpipe
from daskpipe.core.errors import InputError
from daskpipe.core.structures import from_atoms, to_atoms
from daskpipe.core.variables import decode_names
from daskpipe.load import Spec, normalisation, spec
from daskpipe.store import open_dataset, write_dataset

CUTOFF = 3.5


def frames_of(store, split):
    ds = open_dataset(store).load()
    return [to_atoms(ds, int(row)) for row in np.flatnonzero(decode_names(ds["split"]) == split)]


def test_it_is_what_a_plain_computation_gives(store, monkeypatch):
    monkeypatch.setattr(normalisation, "BLOCK", 3)  # several blocks
    frames = frames_of(store, "train")
    computed = spec(store, cutoff=CUTOFF)
    forces = np.concatenate([atoms.get_forces() for atoms in frames])
    energies = np.array([atoms.get_potential_energy() for atoms in frames])
    n_atoms = np.array([len(atoms) for atoms in frames])
    compositions = np.array([[np.sum(atoms.numbers == z) for z in (29, 47, 79)] for atoms in frames], dtype=float)
    e0s = np.linalg.lstsq(compositions, energies, rcond=None)[0]
    assert (computed.n_structures, computed.n_atoms) == (len(frames), n_atoms.sum())
    assert computed.elements == [29, 47, 79]
    assert list(computed.e0s) == ["Cu", "Ag", "Au"]
    assert list(computed.e0s.values()) == pytest.approx(e0s.tolist(), rel=1e-9)
    assert computed.mean_energy_per_atom == pytest.approx((energies / n_atoms).mean(), rel=1e-12)
    assert computed.std_energy_per_atom == pytest.approx((energies / n_atoms).std(), rel=1e-9)
    residual = (energies - compositions @ e0s) / n_atoms
    assert computed.std_residual_per_atom == pytest.approx(np.sqrt((residual**2).mean()), rel=1e-9)
    assert computed.rms_force == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-9)
    assert computed.max_force == pytest.approx(np.linalg.norm(forces, axis=1).max(), rel=1e-9)
    pairs = sum(len(neighbor_list("i", atoms, CUTOFF)) for atoms in frames)
    assert computed.avg_num_neighbors == pairs / n_atoms.sum()


def test_it_is_json(store):
    computed = daskpipe.load.spec(store, "val")
    assert computed.avg_num_neighbors is None
    assert Spec(**json.loads(json.dumps(asdict(computed)))) == computed


def test_a_fixed_stoichiometry_gives_the_smallest_norm(tmp_path):
    frames = []
    for repeat in (1, 2, 3):
        atoms = Atoms("Na" * repeat + "Cl" * repeat, positions=np.arange(6.0 * repeat).reshape(-1, 3))
        results = {"energy": -3.0 * repeat, "forces": np.zeros((2 * repeat, 3))}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    write_dataset(from_atoms(frames), tmp_path / "salt.zarr", attrs=ATTRS)
    with pytest.warns(UserWarning, match="do not determine the energies of Na, Cl: .*smallest are taken"):
        computed = spec(tmp_path / "salt.zarr", split=None)
    assert computed.e0s == pytest.approx({"Na": -1.5, "Cl": -1.5})
    assert computed.std_residual_per_atom == pytest.approx(0, abs=1e-9)


def test_an_empty_split_is_refused(tmp_path):
    ds = from_atoms([])
    with pytest.raises(InputError, match="has no structure of split None; take another split"):
        write_and_spec(ds, tmp_path / "empty.zarr")


def write_and_spec(ds, path):
    empty = ds.assign(energy=("structure", np.zeros(0)), forces=(("atom", "xyz"), np.zeros((0, 3), "f4")))
    write_dataset(empty, path, attrs=ATTRS)
    return spec(path, split=None)
