"""From sources to a bag: nothing depends on the partitioning, nothing bad passes, nothing is lost."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import dask.base
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from daskpipe.core.errors import ConfigError, InputError, Rejection
from daskpipe.core.structures import from_atoms, structure_id
from daskpipe.stages.generate import GENERATORS
from daskpipe.stages.generate.checks import Limits, find_fault
from daskpipe.stages.generate.sources import Source
from daskpipe.stages.generate.stage import (
    TRIES,
    Request,
    count_refused,
    cut_requests,
    generate_partition,
    generate_seeds,
    list_requests,
    to_payloads,
)

ELEMENTS = {"Cu": [0, 1], "Ag": [0, 1], "Au": [0, 1]}
QUICKSTART = {
    "alloys": {"generator": "alloys", "n": 9, "elements": ELEMENTS, "n_atoms": [12, 32]},
    "surfaces": {"generator": "surfaces", "n": 8, "elements": ELEMENTS, "n_atoms": [12, 32]},
    "clusters": {"generator": "clusters", "n": 7, "elements": ELEMENTS, "n_atoms": [12, 32]},
    "molecules": {"generator": "molecules", "n": 6, "elements": ["H", "C", "N", "O"]},
}
LIMITS = Limits()
DRAWS = 100
"""Of each random source; 2,000 were drawn once by hand and none was rejected."""


def asked(configs: dict[str, dict[str, object]], **changes: object) -> list[Request]:
    sources = {name: Source.model_validate({**config, **changes}) for name, config in configs.items()}
    return list_requests(sources, [], Path())


def ids(items: list[Atoms | Rejection]) -> list[bytes]:
    return [structure_id(item) for item in items if isinstance(item, Atoms)]


def test_requests_are_in_canonical_order_with_names() -> None:
    made = asked(QUICKSTART)
    assert [request.name for request in made[7:10]] == ["alloys#7", "alloys#8", "surfaces#0"]
    assert [request.source for request in made] == ["alloys"] * 9 + ["surfaces"] * 8 + ["clusters"] * 7 + [
        "molecules"
    ] * 6
    assert len({request.name for request in made}) == len(made)


@pytest.mark.parametrize("partition_size", [1, 4, 7, 100])
def test_partitions_make_no_difference(partition_size: int) -> None:
    made = asked(QUICKSTART)
    bag = generate_seeds(made, seed=3, limits=LIMITS, partition_size=partition_size)
    assert bag.npartitions == -(-len(made) // partition_size)
    found = bag.compute(scheduler="synchronous")
    one_by_one = [item for request in reversed(made) for item in generate_partition([request], seed=3, limits=LIMITS)]
    assert found == one_by_one[::-1]
    assert len(set(ids(found))) == len(made)


def test_streams_follow_seed_source_and_number_only() -> None:
    made = asked(QUICKSTART)
    first = ids(generate_partition(made, seed=0, limits=LIMITS))
    assert not set(first) & set(ids(generate_partition(made, seed=1, limits=LIMITS)))
    fewer = ids(generate_partition(asked(QUICKSTART, n=3), seed=0, limits=LIMITS))
    assert set(fewer) <= set(first)
    renamed = asked({f"my-{name}": config for name, config in QUICKSTART.items()})
    assert not set(first) & set(ids(generate_partition(renamed, seed=0, limits=LIMITS)))


FIRST_PARAMETERS = {
    "alloys": {"elements", "lattices", "n_atoms", "rattle", "strain"},
    "clusters": {"elements", "n_atoms", "rattle", "shapes", "vacuum"},
    "surfaces": {"elements", "facets", "layers", "n_atoms", "rattle", "repeats", "strain", "vacuum"},
    "molecules": {"elements", "n_atoms", "names", "rattle", "vacuum"},
}


@pytest.mark.parametrize("name", sorted(FIRST_PARAMETERS))
def test_parameters_that_came_later_leave_the_keys_of_earlier_runs(name: str) -> None:
    request = asked({name: QUICKSTART[name]})[0]
    assert set(request.fingerprint()[3]) == FIRST_PARAMETERS[name]
    later = {"alloys": {"grid": 0.25}, "molecules": {"smiles": ["CCO"]}}
    if name in later:
        changed = asked({name: {**QUICKSTART[name], **later[name]}})[0]
        assert set(changed.fingerprint()[3]) == FIRST_PARAMETERS[name] | set(later[name])


def test_nothing_runs_before_compute() -> None:
    impossible = [Request(source="s", generator="nothing-of-that-name", index=0)]
    bag = generate_seeds(impossible, seed=0, limits=LIMITS, partition_size=1)
    with pytest.raises(ConfigError, match="unknown generator 'nothing-of-that-name'"):
        bag.compute(scheduler="synchronous")


def test_partition_tasks_carry_the_name_of_the_room() -> None:
    bag = generate_seeds(asked(QUICKSTART), seed=0, limits=LIMITS, partition_size=5)
    names = {str(key[0] if isinstance(key, tuple) else key).partition("-")[0] for key in bag.dask}
    assert "generate_partition" in names
    assert all(
        isinstance(partition, list) for partition in dask.base.compute(*bag.to_delayed(), scheduler="synchronous")
    )


def test_quickstart_sources_are_never_rejected() -> None:
    random = {name: config for name, config in QUICKSTART.items() if name != "molecules"}
    found = generate_partition(asked(random, n=DRAWS), seed=0, limits=LIMITS)
    assert [item for item in found if isinstance(item, Rejection)] == []
    assert len(set(ids(found))) == 3 * DRAWS


def test_structures_are_clean_and_rounded() -> None:
    found = generate_partition(asked(QUICKSTART), seed=0, limits=LIMITS)
    for atoms in found:
        assert isinstance(atoms, Atoms)
        assert atoms.calc is None
        assert set(atoms.arrays) == {"numbers", "positions"}
        assert set(atoms.info) <= {"system_type", "generator", "charge", "spin_multiplicity"}
        np.testing.assert_array_equal(atoms.positions, atoms.positions.astype(np.float32))
    ds = from_atoms([atoms for atoms in found if isinstance(atoms, Atoms)])
    assert sorted(set(ds["system_type"].values.tolist())) == ["alloy", "cluster", "molecule", "surface"]
    assert ds["generator"].values.tolist() == [request.source for request in asked(QUICKSTART)]


def test_structures_that_fail_are_replaced_and_counted() -> None:
    crowded = Limits(min_distance=0.7)
    made = asked({"alloys": {**QUICKSTART["alloys"], "rattle": 0.2, "n": 30}})
    found = generate_partition(made, seed=0, limits=crowded)
    assert all(isinstance(item, Atoms) and find_fault(item, crowded) is None for item in found)
    assert len(set(ids(found))) == 30
    (payload,) = to_payloads(found)
    refused = count_refused(payload.tallies)
    assert set(refused) == {"alloys/overlap"}
    assert refused["alloys/overlap"] >= 5
    # Those that passed at once are what they were.
    first = ids(generate_partition(made, seed=0, limits=Limits(min_distance=0)))
    assert 0 < len(set(first) & set(ids(found))) < 30


def test_requests_of_which_nothing_passes_are_rejected_by_name() -> None:
    crowded = Limits(min_distance=1.0)
    made = asked({"alloys": {**QUICKSTART["alloys"], "strain": 0.3, "rattle": 0.8, "n": 3}})
    found = generate_partition(made, seed=0, limits=crowded)
    assert [item.structure for item in found if isinstance(item, Rejection)] == [request.name for request in made]
    for item in found:
        assert isinstance(item, Rejection)
        assert (item.stage, item.reason) == ("generate", "overlap")
        assert item.evidence.startswith(f"{TRIES} structures in a row failed ({TRIES} overlap); the last: ")


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator whose structures come in families of three, and which spreads sizes by the number of the request."""

    def chains(*, rng: np.random.Generator, index: int, bad: int = 0, most: int = 9) -> Iterator[Atoms | Rejection]:
        length = rng.uniform(2.2, 2.4)
        for member in range(most):
            spacing = 0.2 if member < bad else length + 0.01 * member
            yield Atoms(f"Cu{index + 2}", positions=[[0, 0, spacing * atom] for atom in range(index + 2)])

    module = types.ModuleType("chains_for_tests")
    chains.__module__ = module.__name__
    module.chains, module.family_size = chains, lambda params: 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(GENERATORS.table, "chains", f"{module.__name__}:chains")


@pytest.mark.usefixtures("families")
def test_families_come_from_one_request_and_counts_are_exact() -> None:
    made = asked({"own": {"generator": "chains", "n": 7}})
    assert [(request.index, request.count) for request in made] == [(0, 3), (1, 3), (2, 1)]
    found = generate_partition(made, seed=0, limits=LIMITS)
    assert [len(item) for item in found if isinstance(item, Atoms)] == [2, 2, 2, 3, 3, 3, 4]
    assert len(set(ids(found))) == 7
    # The keys of units of requests that make one structure stay what they were.
    assert [len(request.fingerprint()) for request in made] == [6, 6, 5]
    assert [len(batch) for batch in cut_requests(made, 4)] == [1, 2]
    assert [len(batch) for batch in cut_requests(made, 1)] == [1, 1, 1]


@pytest.mark.usefixtures("families")
def test_members_of_families_are_replaced_as_long_as_there_are_more() -> None:
    found = generate_partition(asked({"own": {"generator": "chains", "n": 3, "bad": 2}}), seed=0, limits=LIMITS)
    assert [len(item) for item in found if isinstance(item, Atoms)] == [2, 2, 2]
    assert count_refused(to_payloads(found)[0].tallies) == {"own/overlap": 2}
    short = generate_partition(
        asked({"own": {"generator": "chains", "n": 3, "bad": 2, "most": 4}}), seed=0, limits=LIMITS
    )
    assert [type(item) for item in short] == [Atoms, Atoms, Rejection]
    assert isinstance(short[2], Rejection)
    assert (short[2].structure, short[2].reason) == ("own#0", "exhausted")
    assert "the generator ended" in short[2].evidence


def test_mixed_folder(tmp_path: Path) -> None:
    write(tmp_path / "good.extxyz", [bulk("Cu"), bulk("Au") * (2, 1, 1)])
    write(tmp_path / "good.traj", bulk("Ag"))
    (tmp_path / "bad.xyz").write_text("2\n\nCu 0 0 0\n")
    (tmp_path / "empty.cif").touch()
    (tmp_path / "overlap.xyz").write_text("2\n\nCu 0 0 0\nCu 0 0 0.3\n")
    (tmp_path / "strange.xyz").write_text("1\n\nQq 0 0 0\n")
    (tmp_path / "dummy.xyz").write_text("1\n\nX 0 0 0\n")
    (tmp_path / "README.md").write_text("not a structure")
    made = list_requests({}, ["."], tmp_path)
    found = generate_seeds(made, seed=0, limits=LIMITS, partition_size=2).compute(scheduler="synchronous")
    reasons = {item.structure: item.reason for item in found if isinstance(item, Rejection)}
    assert reasons == {
        "bad.xyz": "unreadable",
        "dummy.xyz#0": "unknown_element",
        "empty.cif": "empty",
        "overlap.xyz#0": "overlap",
        "strange.xyz#0": "unknown_element",
    }
    good = [item for item in found if isinstance(item, Atoms)]
    assert [atoms.get_chemical_formula() for atoms in good] == ["Cu", "Au2", "Ag"]
    assert all(atoms.info == {"system_type": "bulk", "generator": "files"} for atoms in good)


def test_seeds_keep_the_charges_and_moments_of_their_atoms(tmp_path: Path) -> None:
    salt = bulk("NaCl", "rocksalt", a=5.64)
    salt.set_initial_charges([1, -1])
    salt.set_initial_magnetic_moments([0, 2])
    write(tmp_path / "a.extxyz", [salt, bulk("Cu")])
    (payload,) = to_payloads(generate_partition(list_requests({}, ["a.extxyz"], tmp_path), seed=0, limits=LIMITS))
    assert payload.arrays["initial_charges"].tolist() == pytest.approx([1, -1, np.nan], nan_ok=True)
    assert payload.arrays["initial_magmoms"].tolist() == pytest.approx([0, 2, np.nan], nan_ok=True)


def test_files_of_sources_and_of_paths_join(tmp_path: Path) -> None:
    write(tmp_path / "a.extxyz", bulk("Cu"))
    own = Source.model_validate({"generator": "files", "paths": ["a.extxyz"]})
    made = list_requests({"own": own}, ["*.extxyz"], tmp_path)
    assert [request.name for request in made] == ["own#0", "files#0"]
    assert made[0].params == made[1].params
    with pytest.raises(ConfigError, match="a source is named 'files'"):
        list_requests({"files": own}, ["*.extxyz"], tmp_path)


def test_a_changed_file_changes_the_request(tmp_path: Path) -> None:
    write(tmp_path / "a.extxyz", bulk("Cu"))
    before = list_requests({}, ["a.extxyz"], tmp_path)
    assert list_requests({}, ["a.extxyz"], tmp_path) == before
    write(tmp_path / "a.extxyz", bulk("Au"))
    assert list_requests({}, ["a.extxyz"], tmp_path) != before


def test_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to generate: give sources, or paths"):
        list_requests({}, [], tmp_path)
    with pytest.raises(InputError, match=r"'gone\.xyz' does not exist"):
        list_requests({}, ["gone.xyz"], tmp_path)
    with pytest.raises(ConfigError, match="source 'two words': use one word"):
        list_requests({"two words": Source.model_validate(QUICKSTART["alloys"])}, [], tmp_path)
    with pytest.raises(ConfigError, match=r"generate\.sources\.alloys: n_atoms: there is no compact supercell of hcp"):
        asked({"alloys": {**QUICKSTART["alloys"], "n_atoms": 13}}, lattices=["hcp"])
    with pytest.raises(ConfigError, match=r"generate\.sources\.molecules: no molecule is left"):
        asked({"molecules": {**QUICKSTART["molecules"], "elements": ["Au"]}})


def broken(*, rng: np.random.Generator) -> Iterator[Atoms]:
    """Raise, as a generator with a bug does."""
    raise ArithmeticError("a bug")
    yield


def exhausted(*, rng: np.random.Generator) -> Iterator[Atoms]:
    """Make nothing."""
    yield from ()


def test_generators_that_fail_raise_with_the_name_of_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("broken", "exhausted"):
        monkeypatch.setitem(GENERATORS.table, name, f"{__name__}:{name}")
    with pytest.raises(ArithmeticError, match="a bug") as caught:
        generate_partition([Request(source="s", generator="broken", index=4)], seed=0, limits=LIMITS)
    assert caught.value.__notes__ == ["while generating s#4"]
    with pytest.raises(ValueError, match="'exhausted' made nothing for s#4"):
        generate_partition([Request(source="s", generator="exhausted", index=4)], seed=0, limits=LIMITS)


def test_importing_the_room_imports_neither_ase_nor_dask() -> None:
    heavy = "{'ase', 'dask', 'scipy'} & set(sys.modules)"
    code = f"import sys, daskpipe.stages.generate.sources, daskpipe.stages.generate.checks; print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
