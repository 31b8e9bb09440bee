"""The gate on EMT labels: GO for the clean set, and NO-GO with the right reason for each planted fault."""

import json
import sys

import numpy as np
import pytest
import xarray as xr
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.cluster import Icosahedron
from pydantic import ValidationError

from daskpipe.core.errors import InputError
from daskpipe.core.structures import concat, from_atoms, round_positions, structure_id, take, to_atoms
from daskpipe.core.variables import decode_names
from daskpipe.store import arrange_and_write, open_dataset, write_dataset
from daskpipe.store.quality.check import MOST_OFFENDERS
from daskpipe.store.quality.gate import judge
from daskpipe.store.quality.settings import CHECKS, Quality, Shares, SizeLimits
from daskpipe.store.quality.verdict import Outcome, format_verdict

N_SEEDS, N_FRAMES = 16, 6
KCAL_PER_EV, EV_PER_HARTREE, EV_PER_A_OF_HARTREE_PER_BOHR = 23.0605, 27.2114, 51.4221
FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
ATTRS = {
    "dataset_key": "k1",
    "config": json.dumps({"generate": {"sources": {"a": {"elements": {"Cu": [0, 1], "Au": 0.5, "Pt": 0}}}}}),
    "quarantined": json.dumps({"explore/force": 40, "label/not_finite": 1}),
}


def label_structure(atoms: Atoms) -> Atoms:
    round_positions(atoms)
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.pbc.all():
        results["stress"] = atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info |= {"label_method": "emt", "label_status": "ok"}
    return atoms


def frames_of(kind: str, rng: np.random.Generator) -> list[Atoms]:
    seed = bulk("Cu", a=3.8, cubic=True) * (2, 1, 1) if kind == "alloy" else Icosahedron("Cu", 2, latticeconstant=3.8)
    seed.numbers = rng.choice([29, 79], size=len(seed))
    seed.info["system_type"] = kind
    parent = structure_id(seed)
    frames = []
    for step in range(N_FRAMES):
        frame = seed.copy()
        frame.rattle(0.08, rng=rng)
        frame = label_structure(frame)
        features = np.histogram(frame.get_all_distances(mic=True), bins=8, range=(2, 6))[0] / len(frame)
        frame.info |= {"parent_id": parent, "step": step, "replica": 0, "features": features.astype("f4")}
        frames.append(frame)
    return frames


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    rng = np.random.default_rng(0)
    frames = [frame for seed in range(N_SEEDS) for frame in frames_of(("alloy", "cluster")[seed % 2], rng)]
    path = tmp_path_factory.mktemp("quality") / "clean.zarr"
    arrange_and_write(from_atoms(frames), path, seed=0, fractions=FRACTIONS, attrs=ATTRS)
    return path


@pytest.fixture
def ds(clean) -> xr.Dataset:
    return open_dataset(clean).load()


@pytest.fixture
def judged(tmp_path):
    def judged(ds: xr.Dataset, *, outcome=None, attrs=ATTRS, **settings):
        rule = {"split_rule": {"fractions": FRACTIONS}}
        write_dataset(ds, tmp_path / "dataset.zarr", attrs={**rule, **attrs})
        return judge(tmp_path / "dataset.zarr", Quality(**settings), outcome=outcome)

    return judged


def change_structure(ds: xr.Dataset, name: str, row: int, value) -> xr.Dataset:
    """Replace the values of a variable of one structure, or apply a function to them."""
    values = ds[name].values.copy()
    start = int(ds["atom_start"][row])
    where = slice(start, start + int(ds["n_atoms"][row])) if "atom" in ds[name].dims else row
    values[where] = value(values[where]) if callable(value) else value
    return ds.assign({name: (ds[name].dims, values, ds[name].attrs)})


def row_of(ds: xr.Dataset, kind: str) -> int:
    return int(np.flatnonzero(decode_names(ds["system_type"]) == kind)[0])


def hex_id(ds: xr.Dataset, row: int) -> str:
    return ds["structure_id"].values[row].tobytes().hex()


def failed_checks(verdict) -> set[str]:
    return {check.name for check in verdict.checks if check.verdict == "fail"}


def find_check(verdict, name: str):
    return next(check for check in verdict.checks if check.name == name)


def test_a_clean_set_passes(clean):
    verdict = judge(clean)
    assert verdict.go
    assert [check.name for check in verdict.checks] == list(CHECKS)
    assert {check.name for check in verdict.checks if check.verdict == "skipped"} == {
        "periodic_share",
        "finite_differences",
    }
    assert (verdict.dataset, verdict.dataset_key, verdict.n_structures) == (str(clean), "k1", N_SEEDS * N_FRAMES)
    assert all(check.n_offenders == len(check.offenders) == 0 for check in verdict.checks)


def test_values_are_those_of_the_arrays(clean, ds):
    verdict = judge(clean)
    norms = np.linalg.norm(ds["forces"].values.astype(float), axis=1)
    assert find_check(verdict, "forces").value == pytest.approx(np.percentile(norms, 99), rel=1e-12)
    assert find_check(verdict, "largest_force").value == norms.max()
    closest = []
    for row in range(ds.sizes["structure"]):
        atoms = to_atoms(ds, row)
        atoms = atoms * np.where(atoms.pbc, 3, 1)  # images, one by one
        distances = atoms.get_all_distances()
        np.fill_diagonal(distances, np.inf)
        radii = np.where(atoms.numbers == 29, 1.32, 1.36)  # Cu and Au, DOI 10.1039/b801115j
        closest.append((distances / (radii[:, None] + radii)).min())
    assert find_check(verdict, "overlap").value == pytest.approx(min(closest), abs=1e-5)
    stress = ds["stress"].values
    assert find_check(verdict, "stress").value == pytest.approx(np.nanmax(np.abs(stress)) * 160.21766, rel=1e-6)
    assert find_check(verdict, "label_success").value == pytest.approx(96 / 97)
    assert find_check(verdict, "units").value == pytest.approx(1, abs=0.1)


def onto_another(positions):
    return np.concatenate([positions[1:2] + 0.4, positions[1:]]).astype("f4")


def far_away(positions):
    return np.concatenate([positions[:1] + 30, positions[1:]]).astype("f4")


ONE_STRUCTURE = {
    "overlap": ("cluster", "positions", onto_another, {"overlap"}),
    "overlap with an image": ("alloy", "positions", lambda x: x + np.eye(len(x), 3, k=-2) * 3.4, {"overlap"}),
    "atom that left": ("cluster", "positions", far_away, {"isolated_atoms"}),
    "left-handed": ("alloy", "cell", lambda cell: cell[[1, 0, 2]], {"cell"}),
    "no cell": ("alloy", "cell", 0.0, {"cell"}),
    "singular": ("alloy", "cell", lambda cell: cell[[0, 0, 2]], {"cell"}),
    "skew": ("alloy", "cell", lambda cell: cell + 60 * np.eye(3, k=-1), {"cell"}),
    "dense": ("alloy", "cell", lambda cell: 0.2 * cell, {"cell"}),
    "empty": ("alloy", "cell", lambda cell: 20 * cell, {"cell"}),
    "positions not finite": ("alloy", "positions", np.nan, {"cell"}),
    "energy not finite": ("alloy", "energy", np.nan, {"energy"}),
    "energy infinite": ("cluster", "energy", np.inf, {"energy"}),
    "energy off by 1 eV an atom": ("alloy", "energy", lambda energy: energy + 8, {"energy"}),
    "energy in kcal/mol": ("cluster", "energy", lambda energy: energy * KCAL_PER_EV, {"energy"}),
    "forces not finite": ("alloy", "forces", np.nan, {"forces"}),
    "one force not finite": ("alloy", "forces", lambda x: x + np.where(np.eye(len(x), 3), np.nan, 0), {"forces"}),
    "large force": ("cluster", "forces", lambda x: x + 60 * np.outer(np.eye(len(x))[0] - np.eye(len(x))[1], [1, 0, 0]),
                    {"largest_force"}),
    "net force": ("cluster", "forces", lambda forces: forces + np.float32(0.02), {"net_force"}),
    "zero forces": ("cluster", "forces", 0.0, {"zero_forces"}),
    "stress not finite": ("alloy", "stress", lambda stress: np.where(np.eye(6)[0], np.nan, stress), {"stress"}),
    "stress infinite": ("alloy", "stress", np.inf, {"stress"}),
    "stress in GPa": ("alloy", "stress", lambda stress: stress * 160.2 + 1, {"stress"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", ONE_STRUCTURE)
def test_a_fault_of_one_structure(fault, ds, judged):
    kind, name, value, reasons = ONE_STRUCTURE[fault]
    row = row_of(ds, kind)
    verdict = judged(change_structure(ds, name, row, value))
    assert not verdict.go
    assert failed_checks(verdict) == reasons
    for reason in reasons:
        assert find_check(verdict, reason).offenders == (hex_id(ds, row),)
        assert find_check(verdict, reason).n_offenders == 1


@pytest.mark.parametrize(
    ("name", "factor", "reasons"),
    [
        ("energy", KCAL_PER_EV, {"units"}),
        ("energy", 1 / EV_PER_HARTREE, {"units"}),
        ("forces", EV_PER_A_OF_HARTREE_PER_BOHR, {"units", "forces", "largest_force"}),
        ("forces", 1 / EV_PER_A_OF_HARTREE_PER_BOHR, {"units"}),
        ("forces", -1.0, {"units"}),
    ],
)
def test_wrong_units(name, factor, reasons, ds, clean, judged):
    verdict = judged(ds.assign({name: (ds[name] * np.asarray(factor, ds[name].dtype)).assign_attrs(ds[name].attrs)}))
    assert failed_checks(verdict) == reasons
    check = find_check(verdict, "units")
    exact = find_check(judge(clean), "units").value * (factor if name == "energy" else 1 / factor)
    assert check.value == pytest.approx(exact, rel=1e-4)
    assert check.n_offenders > 0.5 * ds.sizes["structure"]
    assert ("wrong sign" in check.says) == (factor < 0)


def test_units_hold_the_stress_of_changing_cells(judged):
    rng = np.random.default_rng(1)
    frames = []
    for _ in range(20):
        seed = bulk("Cu", cubic=True)
        parent = structure_id(seed)
        for strain in (-0.01, 0.01):
            frame = seed.copy()
            frame.set_cell(frame.cell.array * (1.04 + strain), scale_atoms=True)
            frame.rattle(0.01, rng=rng)
            frame.info |= {"parent_id": parent, "system_type": "bulk", "replica": len(frames) // 2, "step": 0}
            frames.append(label_structure(frame))
    ds = from_atoms(frames)
    only = dict.fromkeys(CHECKS) | {"units": 1.5}
    assert find_check(judged(ds, **only), "units").value == pytest.approx(1, abs=0.05)


def test_units_need_pairs(ds, judged):
    _, first = np.unique(ds["group"].values, return_index=True)
    check = find_check(judged(take(ds, first)), "units")
    assert (check.verdict, check.value) == ("skipped", None)
    assert (
        check.says == "only 0 pairs of neighbouring frames of one seed; 12 are needed to hold energies against forces"
    )


def test_doubled_structures(ds, judged):
    rows = [*range(ds.sizes["structure"]), 3, 4, 4]
    verdict = judged(take(ds, rows))
    assert failed_checks(verdict) == {"duplicates"}
    assert sorted(find_check(verdict, "duplicates").offenders) == sorted(hex_id(ds, row) for row in (3, 4, 4))
    assert find_check(verdict, "duplicates").value == 3 / 99


def test_repeated_structures(ds, judged):
    copies = []
    for row in (row_of(ds, "alloy"), row_of(ds, "cluster")):
        atoms = to_atoms(ds, row)
        results = atoms.calc.results
        order = np.random.default_rng(row).permutation(len(atoms))
        copy = atoms[order]
        copy.positions += [0.3, 1.7, -0.4]
        copy.wrap()
        if not copy.pbc.any():
            copy.rotate(50, (1, 2, 3))
        copy = label_structure(copy)
        assert copy.get_potential_energy() == pytest.approx(results["energy"], abs=1e-4)
        copy.info = {"features": copy.info["features"], "system_type": copy.info["system_type"], "label_status": "ok"}
        copies.append(copy)
    both = concat([ds_in_names(ds), from_atoms(copies)])
    verdict = judged(both)
    assert failed_checks(verdict) == {"duplicates"}
    assert find_check(verdict, "duplicates").n_offenders == 2
    assert "0 by id, 2 by their distances" in find_check(verdict, "duplicates").says


def ds_in_names(ds: xr.Dataset) -> xr.Dataset:
    """Decode the coded variables to names."""
    coded = [name for name in ds.data_vars if "flag_meanings" in ds[name].attrs]
    return ds.assign({name: (ds[name].dims, decode_names(ds[name])) for name in coded}).drop_vars(["split", "group"])


def test_missing_element(ds, judged):
    verdict = judged(ds, outcome=Outcome(elements=["Cu", "Au", "Pt"]))
    assert failed_checks(verdict) == {"elements"}
    assert find_check(verdict, "elements").says.startswith(
        "requested and missing: Pt; the rarest element, Pt, is in 0.0%"
    )


def test_the_config_tells_the_elements(ds, judged):
    sources = {"a": {"elements": ["Cu", "Ag"]}, "b": {"elements": {"Au": [0, 0.5], "Pd": [0, 0]}}, "c": {}}
    attrs = {**ATTRS, "config": json.dumps({"generate": {"sources": sources}})}
    check = find_check(judged(ds, attrs=attrs), "elements")
    assert "requested and missing: Ag;" in check.says


def test_rare_element(ds, judged):
    row = row_of(ds, "cluster")
    verdict = judged(change_structure(ds, "numbers", row, lambda numbers: [47, *numbers[1:]]), elements=0.02)
    assert failed_checks(verdict) == {"elements"}
    assert find_check(verdict, "elements").value == 1 / ds.sizes["structure"]


def test_unbalanced_types(ds, judged):
    kinds = decode_names(ds["system_type"])
    rows = np.concatenate([np.flatnonzero(kinds == "cluster"), np.flatnonzero(kinds == "alloy")[:4]])
    verdict = judged(take(ds, rows), splits=None)
    assert failed_checks(verdict) == {"type_balance"}
    assert find_check(verdict, "type_balance").value == pytest.approx(2 * 4 / 52)
    assert find_check(verdict, "type_balance").says == "4 alloy, 48 cluster; alloy is the rarest"


def test_missing_type(ds, judged):
    verdict = judged(ds, outcome=Outcome(system_types=["alloy", "cluster", "surface"]))
    assert failed_checks(verdict) == {"type_balance"}
    assert find_check(verdict, "type_balance").value == 0


def test_torn_split(ds, judged):
    split, group = ds["split"].values, ds["group"].values
    row = int(np.flatnonzero(split == 0)[0])
    verdict = judged(change_structure(ds, "split", row, 1))
    assert failed_checks(verdict) == {"splits"}
    assert find_check(verdict, "splits").offenders == (hex_id(ds, row),)
    assert (group == group[row]).sum() == N_FRAMES


def test_lineage_tells_groups_where_none_are_stored(ds, judged):
    row = int(np.flatnonzero(ds["split"].values == 0)[0])
    verdict = judged(change_structure(ds, "split", row, 1).drop_vars("group"))
    assert find_check(verdict, "splits").offenders == (hex_id(ds, row),)


def test_empty_and_uneven_splits(ds, judged, tmp_path):
    split = ds["split"].values
    verdict = judged(take(ds, np.flatnonzero(split != 2)))
    assert failed_checks(verdict) == {"splits"}
    assert "empty: test" in find_check(verdict, "splits").says
    rule = {"split_rule": {"fractions": {"train": 0.0, "val": 0.5, "test": 0.5}}}
    write_dataset(ds, tmp_path / "uneven.zarr", attrs={**ATTRS, **rule})
    assert failed_checks(judge(tmp_path / "uneven.zarr")) == {"splits"}


def test_failed_labels(ds, judged, tmp_path):
    verdict = judged(ds, attrs={**ATTRS, "quarantined": json.dumps({"label/not_finite": 6, "label/force": 1})})
    assert failed_checks(verdict) == {"label_success"}
    assert find_check(verdict, "label_success").value == 96 / 103
    assert find_check(verdict, "label_success").says == "96 of 103 structures labelled; failed: 1 force, 6 not_finite"
    write_dataset(ds, tmp_path / "plain.zarr", attrs={"dataset_key": "k2"})
    assert find_check(judge(tmp_path / "plain.zarr"), "label_success").verdict == "skipped"
    assert failed_checks(judge(tmp_path / "plain.zarr", outcome=Outcome(failures={"scf": 10}))) == {"label_success"}


def test_label_status(ds, judged):
    status = np.where(np.arange(ds.sizes["structure"]) < 2, "unconverged", "ok")
    verdict = judged(ds.assign(label_status=("structure", status)))
    assert failed_checks(verdict) == {"label_checks"}
    assert sorted(find_check(verdict, "label_checks").offenders) == sorted(hex_id(ds, row) for row in (0, 1))


def test_no_labels_at_all(ds, judged):
    verdict = judged(ds.drop_vars(["energy", "forces", "stress", "label_status"]))
    assert failed_checks(verdict) == {"energy", "forces"}
    assert find_check(verdict, "energy").says == "the dataset has no energy"
    assert find_check(verdict, "units").says == "the dataset does not tell: energies and forces"
    assert find_check(verdict, "net_force").verdict == find_check(verdict, "stress").verdict == "skipped"


def test_one_composition_dominates(ds, judged):
    codes = ds["composition"].values
    most = np.bincount(codes).argmax()
    rows = np.flatnonzero(codes == most)
    mixed = np.concatenate([np.repeat(rows, 20), np.flatnonzero(codes != most)[:2]])
    verdict = judged(take(ds, mixed), duplicates=None, splits=None, diversity=None, type_balance=None)
    assert failed_checks(verdict) == {"composition_entropy"}


def test_sizes(ds, judged):
    n_clusters = int((ds["n_atoms"].values == 13).sum())
    check = find_check(judged(ds, sizes=SizeLimits(max_atoms=12)), "sizes")
    assert (check.verdict, check.n_offenders) == ("fail", n_clusters)
    assert check.says == f"8 to 13 atoms, {n_clusters} structures outside 1 to 12; 50.0% have 8"


@pytest.mark.parametrize(("limits", "verdict"), [((0.4, 0.6), "pass"), ((0.6, 1), "fail"), ((0, 0.4), "fail")])
def test_periodic_share(limits, verdict, clean):
    check = find_check(judge(clean, Quality(periodic_share=Shares(least=limits[0], most=limits[1]))), "periodic_share")
    assert (check.verdict, check.value) == (verdict, 0.5)


def test_poor_diversity(ds, judged):
    features = np.where(np.arange(ds.sizes["structure"])[:, None] % 2, 1, 0) + 1e-3 * ds["features"].values
    verdict = judged(ds.assign(features=(("structure", "feature"), features.astype("f4"))))
    assert failed_checks(verdict) == {"diversity"}
    assert find_check(verdict, "diversity").value == pytest.approx(2, abs=0.01)  # two clumps


def test_zero_forces_by_symmetry(ds, judged):
    crystal = bulk("Cu", cubic=True)
    crystal.calc = SinglePointCalculator(crystal, energy=0.0, forces=np.zeros((4, 3)), stress=np.zeros(6))
    off = crystal.copy()
    off.positions[0] += 0.1
    off.calc = SinglePointCalculator(off, energy=0.0, forces=np.zeros((4, 3)), stress=np.zeros(6))
    single = Atoms("Cu")
    single.calc = SinglePointCalculator(single, energy=0.0, forces=np.zeros((1, 3)))
    check = find_check(judged(from_atoms([crystal, off, single])), "zero_forces")
    assert check.offenders == (structure_id(off).hex(),)


@pytest.mark.slow
def test_blocks_do_not_matter(ds, clean, monkeypatch, judged):
    bad = change_structure(change_structure(ds, "energy", 5, np.nan), "forces", 7, np.nan)
    verdicts = [judged(change_structure(bad, "positions", row_of(ds, "cluster"), onto_another)).as_json()]
    path = verdicts[0]["dataset"]
    module = sys.modules["daskpipe.store.quality.measuring"]
    for structures, atoms in ((1, 2**20), (7, 2**20), (65_536, 40)):
        monkeypatch.setattr(module, "BLOCK_STRUCTURES", structures)
        monkeypatch.setattr(module, "BLOCK_ATOMS", atoms)
        verdicts.append(judge(path).as_json())
    assert not verdicts[0]["go"]
    assert verdicts[1:] == verdicts[:1] * 3


def test_json(ds, judged):
    verdict = judged(
        change_structure(change_structure(ds, "positions", row_of(ds, "cluster"), far_away), "energy", 0, np.nan)
    )
    back = json.loads(json.dumps(verdict.as_json(), allow_nan=False))
    assert back == verdict.as_json()
    assert list(back) == ["go", "dataset", "dataset_key", "n_structures", "profile", "checks"]
    isolated = next(check for check in back["checks"] if check["name"] == "isolated_atoms")
    assert isolated["value"] is None  # nothing within reach
    assert isolated["offenders"] == [hex_id(ds, row_of(ds, "cluster"))]


def test_the_list_of_offenders_is_capped_and_their_number_is_not(ds, judged):
    rows = np.arange(ds.sizes["structure"]).repeat(1 + MOST_OFFENDERS // 60)
    check = find_check(judged(take(ds, rows), units=None), "duplicates")
    assert check.n_offenders == len(rows) - ds.sizes["structure"] > MOST_OFFENDERS == len(check.offenders)


def test_text(ds, judged, clean):
    # The alloys' features are so alike that they are one group: no other split has any.
    assert format_verdict(judge(clean))[-1] == "GO; warnings: splits"
    row = row_of(ds, "cluster")
    bad = change_structure(change_structure(ds, "positions", row, onto_another), "energy", 1, np.nan)
    text = format_verdict(judged(bad))
    assert text[0].endswith("dataset.zarr: 96 structures, judged as run")
    assert text[-1] == "NO-GO: overlap, energy; warnings: splits"
    (line,) = (line for line in text if line.startswith("FAIL  overlap"))
    assert "(limit 0.5 covalent radii)" in line
    assert text[text.index(line) + 1].split() == [hex_id(ds, row)]
    assert sum(line.startswith("ok ") for line in text) == 17
    assert sum(line.startswith("- ") for line in text) == 2


def test_names_from_outside_stay_plain(ds, tmp_path):
    kinds = np.where(decode_names(ds["system_type"]) == "alloy", "al\x1b[31mloy\u202e", "cluster")
    path = tmp_path / "red\x1b[2J.zarr"
    write_dataset(ds.assign(system_type=("structure", kinds)), path, attrs=ATTRS)
    text = "\n".join(format_verdict(judge(path, outcome=Outcome(failures={"\x07bell": 1}))))
    assert all(char.isprintable() for char in text.replace("\n", ""))
    assert "red\\x1b[2J.zarr" in text
    assert "48 al\\x1b[31mloy\\u202e" in text
    assert "1 \\x07bell" in text


def test_checks_are_turned_off(clean):
    verdict = judge(clean, Quality(**dict.fromkeys(CHECKS)))
    assert verdict.go
    assert {(check.verdict, check.says) for check in verdict.checks} == {("skipped", "turned off")}


def test_settings():
    assert Quality.model_validate(Quality().model_dump()) == Quality()
    with pytest.raises(ValidationError, match="overlaps"):
        Quality.model_validate({"overlaps": 0.5})
    with pytest.raises(ValidationError, match="least=0.5 must not be larger than most=0.2"):
        Quality.model_validate({"periodic_share": {"least": 0.5, "most": 0.2}})
    with pytest.raises(ValidationError, match="min_atoms=9 must not be larger than max_atoms=3"):
        SizeLimits(min_atoms=9, max_atoms=3)
    with pytest.raises(ValidationError, match="min_volume=3 must be smaller than max_volume=2"):
        Quality.model_validate({"cell": {"min_volume": 3, "max_volume": 2}})
    with pytest.raises(ValidationError, match="finite number"):
        Quality(forces=float("inf"))


def test_errors(ds, judged, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        judge(tmp_path / "nothing.zarr")
    with pytest.raises(InputError, match="dataset.zarr holds no structure; nothing to judge"):
        judged(take(ds, []))
    write_dataset(ds, tmp_path / "odd.zarr", attrs={"dataset_key": "k2", "quarantined": "[1]"})
    with pytest.raises(InputError, match=r"odd.zarr are not those of a run .*give outcome=Outcome\(failures="):
        judge(tmp_path / "odd.zarr")
    with pytest.raises(InputError, match="'Xx' was requested and is no element; give a symbol such as Cu"):
        judge(tmp_path / "odd.zarr", outcome=Outcome(failures={}, elements=["Xx"]))
