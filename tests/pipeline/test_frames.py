"""Select and describe frames of files: picks are copied unchanged, and no other files are left."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import xarray as xr
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from distributed import Client
from waiting import wait_until

import daskpipe
from daskpipe.core.errors import ConfigError, DiskError, InputError
from daskpipe.core.events import Event, RunStarted, StageFinished, UnitCommitted
from daskpipe.pipeline.frames import describe_files, select_files
from daskpipe.pipeline.workspace import FilesResult
from daskpipe.runs.run import Result
from daskpipe.stages.describe.reduction import unit_length
from daskpipe.stages.generate.reading.files import xyz_frames

QUICK = ["describe.params={r_cut: 4.0, n_max: 3, l_max: 2}", "describe.dims=6"]
"""A descriptor that takes no time."""

METHODS = {
    "kmeans": ["select=kmeans"],
    "fps": ["select=fps"],
    "random": ["select=random"],
    "environments": ["describe.level=atom", "select=environments"],
}

N_MD, N_MORE = 24, 11
"""Frames of the two files."""

SIGMA = 0.75
"""Of the config that names none; `daskpipe.SOAP` has dscribe's, 1.0."""

GRAM_TOLERANCE = 1e-5
"""Of products of float32 features of rows of length one."""


def make_alloys(n: int, seed: int) -> list[Atoms]:
    """Make labelled Cu-Au cells of different size and disorder, each with a note."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(n):
        atoms = bulk("Cu", cubic=True) * (1, 1, 1 + index % 2)
        atoms.symbols[rng.permutation(len(atoms))[: 1 + index % 3]] = "Au"
        atoms.rattle(0.05 + 0.02 * index, rng=rng)
        atoms.calc = EMT()
        atoms.get_forces()
        atoms.info["note"] = f"frame {index} of {seed}"
        made.append(atoms)
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two files of frames. Read only."""
    folder = tmp_path_factory.mktemp("frames")
    (folder / "more").mkdir()
    ase.io.write(folder / "md.extxyz", make_alloys(N_MD, 0))
    ase.io.write(folder / "more" / "md.extxyz", make_alloys(N_MORE, 1))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folder that is the present directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def read_texts(path: Path) -> list[bytes]:
    """Read the text of each frame of a file."""
    return [frame for _, frame in xyz_frames(path)]


def pick_frames(
    files: Path, client: Client | None, *overrides: str, n: int = 6, out: str = "picked.extxyz"
) -> FilesResult:
    """Pick frames of both files."""
    return select_files([str(files)], n, out, [*QUICK, *overrides], client=client)


# --- picks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_picks_are_frames_of_the_files_as_they_are_written(
    method: str, files: Path, client: Client, here: Path
) -> None:
    done = pick_frames(files, client, *METHODS[method])
    pool = read_texts(files / "md.extxyz") + read_texts(files / "more" / "md.extxyz")
    picked = read_texts(here / "picked.extxyz")
    assert len(pool) == len(set(pool)) == N_MD + N_MORE
    places = [pool.index(text) for text in picked]
    assert places == sorted(set(places)), "picks are in the order of the files, each once"
    assert (done.n_out, len(places)) == (6, 6)
    assert (done.out, done.n_frames, done.exit_code) == (Path("picked.extxyz"), N_MD + N_MORE, 0)
    assert (done.report["method"], done.report["n_pool"]) == (method, N_MD + N_MORE)
    assert os.listdir(here) == ["picked.extxyz"]
    copies = ase.io.read("picked.extxyz", ":")
    assert all(np.abs(atoms.get_forces()).max() > 0 for atoms in copies)


@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_a_frame_range_does_not_matter(
    method: str, files: Path, client: Client, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pick_frames(files, client, *METHODS[method], out="whole.extxyz")
    monkeypatch.setattr("daskpipe.pipeline.existing_data.FRAMES_A_UNIT", 5)
    heard: list[Event] = []
    select_files([str(files)], 6, "cut.extxyz", [*QUICK, *METHODS[method]], client=client, subscribers=[heard.append])
    n_units = {event.stage: event.n_units for event in heard if hasattr(event, "n_units")}
    assert n_units["read"] == -(-N_MD // 5) + -(-N_MORE // 5)
    assert (here / "cut.extxyz").read_bytes() == (here / "whole.extxyz").read_bytes()


@pytest.mark.slow
def test_one_worker_picks_what_two_pick(
    files: Path, client: Client, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daskpipe.pipeline.existing_data.FRAMES_A_UNIT", 5)
    heard: list[Event] = []
    for method in ("kmeans", "environments"):
        pick_frames(files, client, *METHODS[method], out=f"two-{method}.extxyz")
    alone = ["cluster.workers=1", "cluster.gpus=0"]
    for method in ("kmeans", "environments"):
        overrides = [*QUICK, *METHODS[method], *alone]
        select_files([str(files)], 6, f"one-{method}.extxyz", overrides, subscribers=[heard.append])
        assert (here / f"one-{method}.extxyz").read_bytes() == (here / f"two-{method}.extxyz").read_bytes()
    assert [len(event.workers) for event in heard if isinstance(event, RunStarted)] == [1, 1]


def test_seed_decides_random_picks(files: Path, client: Client, here: Path) -> None:
    for seed in (0, 1):
        pick_frames(files, client, "select=random", f"seed={seed}", out=f"{seed}.extxyz")
    first, second = (set(read_texts(here / f"{seed}.extxyz")) for seed in (0, 1))
    assert first != second


def test_more_than_there_are_is_all_there_are(files: Path, client: Client, here: Path) -> None:
    done = pick_frames(files, client, n=1000)
    assert done.n_out == N_MD + N_MORE
    assert (here / "picked.extxyz").read_bytes() == b"".join(
        (files / name).read_bytes() for name in ("md.extxyz", "more/md.extxyz")
    )


def test_formats_can_be_mixed(files: Path, client: Client, here: Path) -> None:
    frames = make_alloys(9, 2)
    ase.io.write("a.traj", frames[:3])
    with ase.db.connect("b.db") as database:
        for atoms in frames[3:6]:
            database.write(atoms)
    ase.io.write("POSCAR", frames[6], format="vasp")
    ase.io.write("c.cif", frames[7:])
    done = select_files(["POSCAR", "a.traj", "b.db", "c.cif"], 9, "picked.xyz", QUICK, client=client)
    assert done.n_out == 9
    copies = ase.io.read("picked.xyz", ":", format="extxyz")
    order = [frames[6], *frames[:6], *frames[7:]]
    assert [copy.numbers.tolist() for copy in copies] == [atoms.numbers.tolist() for atoms in order]
    for copy, atoms in zip(copies[1:7], frames[:6], strict=True):
        assert copy.get_potential_energy() == pytest.approx(atoms.get_potential_energy())


def test_an_input_can_be_replaced_by_its_picks(files: Path, client: Client, here: Path) -> None:
    shutil.copy(files / "md.extxyz", here)
    pool = read_texts(here / "md.extxyz")
    select_files(["md.extxyz"], 4, "md.extxyz", QUICK, client=client, force=True)
    picked = read_texts(here / "md.extxyz")
    assert len(picked) == 4
    assert set(picked) < set(pool)


# --- frames that cannot be described ------------------------------------------------------------------------

BROKEN = "1\n\nXx 0 0 0\n"


def test_rejected_frames_are_counted_with_examples(files: Path, client: Client, here: Path) -> None:
    good = "".join(text.decode() for text in read_texts(files / "md.extxyz"))
    for folder in ("a", "b"):  # files of one name in several folders are the rule
        (here / folder).mkdir()
        (here / folder / "md.xyz").write_text(BROKEN + good + "3\n\nCu 0 0 0\n")
    (here / "empty.cif").touch()
    done = select_files(["."], 5, "picked.extxyz", QUICK, client=client)
    assert done.exit_code == 10
    assert done.rejected == {"read/empty": 1, "read/unknown_element": 2, "read/unreadable": 2}
    assert done.n_frames == 2 * N_MD
    assert "md.xyz#0: 'Xx' is no chemical symbol" in done.examples["read/unknown_element"]
    assert f"md.xyz#{N_MD + 1}: ValueError: the file ends after 1 of 3" in done.examples["read/unreadable"]
    assert done.examples["read/empty"] == f"{here / 'empty.cif'}: the file has no bytes"
    # A frame's number counts the broken ones before it: what is copied is what was picked.
    assert set(read_texts(here / "picked.extxyz")) < set(read_texts(files / "md.extxyz"))


def test_nothing_to_describe_is_an_error_with_the_reason(client: Client, here: Path) -> None:
    (here / "a.xyz").write_text(BROKEN)
    message = r"no frame can be described: 1 read/unknown_element; e.g. 'Xx' is no chemical symbol"
    with pytest.raises(InputError, match=message):
        select_files(["a.xyz"], 1, "out.xyz", QUICK, client=client)
    assert os.listdir(here) == ["a.xyz"]


# --- against -------------------------------------------------------------------------------------------


def test_frames_of_a_dataset_are_not_picked(
    reference: Result, files: Path, client: Client, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daskpipe.pipeline.steps.AGAINST_SIZE", 4)  # two units of the dataset
    daskpipe.export(reference.dataset, "extxyz", "old.extxyz")
    old = read_texts(here / "old.extxyz")
    (here / "pool.extxyz").write_bytes(b"".join(old) + (files / "md.extxyz").read_bytes())
    heard: list[Event] = []
    overrides = [*QUICK, f"select.against={reference.dataset}"]
    done = select_files(["pool.extxyz"], 100, "new.extxyz", overrides, client=client, subscribers=[heard.append])
    assert read_texts(here / "new.extxyz") == read_texts(files / "md.extxyz")
    assert done.report["duplicates"]["against_dataset"] == len(old) == 6
    assert done.report["duplicates"]["against_pool"] == 0
    assert [event.n_out for event in heard if isinstance(event, StageFinished) and "against" in event.stage] == [6]


def test_frames_of_a_file_are_not_picked_whatever_else_it_holds(files: Path, client: Client, here: Path) -> None:
    strangers = [bulk("NaCl", "rocksalt", a=5.64), molecule("H2O"), bulk("Ag")]
    ase.io.write("strangers.extxyz", strangers)
    old = read_texts(files / "md.extxyz")[3:9]
    foreign = read_texts(here / "strangers.extxyz")
    (here / "old.xyz").write_bytes(b"".join([foreign[0], *old[:3], foreign[1], BROKEN.encode(), *old[3:], foreign[2]]))
    done = pick_frames(files, client, "select.against=old.xyz", n=100)
    picked = read_texts(here / "picked.extxyz")
    assert not set(picked) & set(old)
    assert len(picked) == N_MD + N_MORE - len(old)
    assert done.report["duplicates"]["against_dataset"] == len(old)
    assert done.exit_code == 0  # what cannot be read of the old frames is no frame lost


@pytest.mark.parametrize("content", ["strangers", "nothing"])
def test_old_frames_that_share_no_element_are_no_obstacle(
    content: str, files: Path, client: Client, here: Path
) -> None:
    if content == "strangers":
        ase.io.write("old.xyz", [molecule("H2O"), molecule("CH4")], format="extxyz")
    else:
        (here / "old.xyz").touch()
    done = pick_frames(files, client, "select.against=old.xyz", n=7)
    assert done.n_out == 7
    assert done.report["duplicates"]["against_dataset"] == 0


def test_nothing_new_is_an_error(files: Path, client: Client, here: Path) -> None:
    (here / "all.xyz").write_bytes(b"".join(read_texts(files / "md.extxyz") + read_texts(files / "more" / "md.extxyz")))
    with pytest.raises(ConfigError, match="all 35 frames lie within .* of the existing dataset"):
        pick_frames(files, client, "select.against=all.xyz")
    assert os.listdir(here) == ["all.xyz"]


# --- description -----------------------------------------------------------------------------------------

ALL_AXES = ["describe.params={r_cut: 4.0, n_max: 3, l_max: 2, dtype: float64}", "describe.dims=300"]
"""More axes than rows: the features hold all that the descriptors hold, but for their mean."""


def multiply_rows(rows: np.ndarray) -> np.ndarray:
    """Multiply all pairs of rows, less their mean."""
    centred = rows.astype(float) - rows.astype(float).mean(axis=0)
    return centred @ centred.T


@pytest.mark.parametrize("out", ["features.zarr", "features.npz"])
def test_features_are_those_of_the_descriptor(
    out: str, files: Path, client: Client, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daskpipe.pipeline.existing_data.FRAMES_A_UNIT", 7)
    done = describe_files([str(files)], out, [*ALL_AXES, "describe.level=atom"], client=client)
    assert os.listdir(here) == [out]
    features: Any = xr.open_zarr(out, consolidated=False).load() if out.endswith(".zarr") else np.load(out)
    frames = make_alloys(N_MD, 0) + make_alloys(N_MORE, 1)
    assert (done.n_frames, done.n_out, done.exit_code) == (len(frames), len(frames), 0)
    soap = daskpipe.SOAP(species=["Cu", "Au"], r_cut=4.0, n_max=3, l_max=2, sigma=SIGMA, dtype="float64")
    rows = soap.compute(frames)
    ends = np.cumsum([len(atoms) for atoms in frames])
    means = np.array([part.mean(axis=0) for part in np.split(rows, ends[:-1])])
    for name, expected in (("features", means), ("environments", rows)):
        values = np.asarray(features[name])
        assert values.dtype == np.float32
        wanted = multiply_rows(unit_length(expected))
        assert np.diag(wanted).max() > 100 * GRAM_TOLERANCE
        np.testing.assert_allclose(multiply_rows(values), wanted, atol=GRAM_TOLERANCE)


@pytest.mark.parametrize("out", ["features.zarr", "features.npz"])
def test_rows_are_in_the_order_of_the_files_and_say_where_they_are_from(
    out: str, files: Path, client: Client, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "broken.xyz").write_bytes(BROKEN.encode() + b"".join(read_texts(files / "md.extxyz")[:4]))
    monkeypatch.setattr("daskpipe.pipeline.existing_data.FRAMES_A_UNIT", 7)
    paths = [str(files / "more"), str(files / "md.extxyz"), "broken.xyz"]
    done = describe_files(paths, out, QUICK, client=client)
    assert done.exit_code == 10
    features: Any = xr.open_zarr(out, consolidated=False) if out.endswith(".zarr") else np.load(out)
    assert "environments" not in features
    numbers = [*range(N_MORE), *range(N_MD), *range(1, 5)]
    assert np.asarray(features["frame"]).tolist() == numbers
    names = [files / "more" / "md.extxyz"] * N_MORE + [files / "md.extxyz"] * N_MD + [here / "broken.xyz"] * 4
    assert np.asarray(features["path"]).tolist() == [str(name) for name in names]
    frames = [ase.io.read(name, number) for name, number in zip(names, numbers, strict=True) if name.parent != here]
    assert np.asarray(features["n_atoms"]).tolist() == [len(atoms) for atoms in frames] + [
        len(atoms) for atoms in make_alloys(4, 0)
    ]
    ids = np.asarray(features["structure_id"]).tolist()
    assert ids[N_MORE : N_MORE + 4] == ids[-4:]
    assert len(set(ids)) == N_MORE + N_MD
    features = np.asarray(features["features"])
    np.testing.assert_array_equal(features[N_MORE : N_MORE + 4], features[-4:])


def test_settings_and_versions_are_stored_with_the_features(files: Path, client: Client, here: Path) -> None:
    done = describe_files([str(files)], "features.zarr", QUICK, client=client)
    attrs = xr.open_zarr("features.zarr", consolidated=False).attrs
    assert {name: json.loads(text) for name, text in attrs.items()} == done.report
    assert done.report["describe"]["params"] == {"r_cut": 4.0, "n_max": 3, "l_max": 2, "sigma": 0.75}
    assert done.report["versions"]["daskpipe"] == daskpipe.__version__


def test_size_of_frame_ranges_and_chunks_do_not_change_features(
    files: Path, client: Client, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*QUICK, "describe.level=atom"]
    describe_files([str(files)], "whole.zarr", overrides, client=client)
    monkeypatch.setattr("daskpipe.pipeline.existing_data.FRAMES_A_UNIT", 5)
    monkeypatch.setattr("daskpipe.pipeline.frames.CHUNK_ROWS", 8)
    describe_files([str(files)], "cut.zarr", overrides, client=client)
    whole, cut = (xr.open_zarr(name, consolidated=False) for name in ("whole.zarr", "cut.zarr"))
    assert cut["features"].chunksizes["structure"] == (8, 8, 8, 8, 3)
    assert cut["environments"].chunksizes["atom"][:2] == (8, 8)
    xr.testing.assert_identical(cut.load(), whole.load())


def test_a_store_is_replaced_whole(files: Path, client: Client, here: Path) -> None:
    describe_files([str(files)], "features.zarr", [*QUICK, "describe.level=atom"], client=client)
    describe_files([str(files / "more")], "features.zarr", QUICK, client=client, force=True)
    ds = xr.open_zarr("features.zarr", consolidated=False)
    assert ds.sizes == {"structure": N_MORE, "feature": 6}
    assert os.listdir(here) == ["features.zarr"]


# --- nothing stays behind ----------------------------------------------------------------------------------


def raise_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_half(picked: Iterable[tuple[str, Sequence[int]]], out: Path) -> None:
    """Write a part, then fail as on a full disk."""
    out.write_text("half a frame")
    raise_full()


def test_a_full_disk_leaves_the_old_file(
    files: Path, client: Client, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "picked.extxyz").write_text("old")
    monkeypatch.setattr("daskpipe.pipeline.frames.copy_frames", write_half)
    message = "cannot write picked.extxyz: No space left on device. Make room, or give another -o"
    with pytest.raises(DiskError, match=message):
        select_files([str(files)], 5, "picked.extxyz", QUICK, client=client, force=True)
    assert os.listdir(here) == ["picked.extxyz"]
    assert (here / "picked.extxyz").read_text() == "old"


def test_a_description_that_fails_leaves_the_old_store(
    files: Path, client: Client, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe_files([str(files)], "features.zarr", QUICK, client=client)

    def to_zarr(ds: xr.Dataset, path: Path, **_: object) -> None:
        path.mkdir()
        write_half([], path / "zarr.json")

    monkeypatch.setattr(xr.Dataset, "to_zarr", to_zarr)
    with pytest.raises(DiskError, match="cannot write features.zarr: No space left"):
        describe_files([str(files)], "features.zarr", QUICK, client=client, force=True)
    assert os.listdir(here) == ["features.zarr"]
    assert xr.open_zarr("features.zarr", consolidated=False).sizes["structure"] == N_MD + N_MORE


@pytest.mark.parametrize("moment", [UnitCommitted, StageFinished])
def test_an_interruption_leaves_nothing(
    moment: type[Event], files: Path, client: Client, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "daskpipe.pipeline.existing_data.FRAMES_A_UNIT", 1
    )  # many units: some are under way on the workers, which live on

    def stop(event: Event) -> None:
        if isinstance(event, moment) and event.stage == "describe":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        select_files([str(files)], 5, "picked.extxyz", QUICK, client=client, subscribers=[stop])
    wait_until(lambda: not any(client.processing().values()))
    time.sleep(0.2)
    assert os.listdir(here) == []


def test_a_folder_that_takes_no_files(files: Path, client: Client, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: raise_full())
    with pytest.raises(DiskError, match="cannot write beside picked.xyz: No space left on device; give another -o"):
        select_files([str(files)], 5, "picked.xyz", QUICK, client=client)


# --- wrong input -----------------------------------------------------------------------------------------

WRONG: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "suffix": (
        ConfigError,
        r"picked.traj must end in .extxyz or .xyz; type e.g. -o picked.extxyz",
        {"out": "picked.traj"},
    ),
    "out exists": (ConfigError, r"old.xyz exists; give another name, or --force to replace it", {"out": "old.xyz"}),
    "no folder": (ConfigError, r"lost is no folder; make it, or give another -o", {"out": "lost/picked.xyz"}),
    "a file for a folder": (ConfigError, r"old.xyz is no folder", {"out": "old.xyz/picked.xyz"}),
    "path": (InputError, r"'lost.xyz' does not exist in .*; give a file, a folder or a glob", {"paths": ["lost.xyz"]}),
    "glob": (InputError, r"'\*.traj' matches no file in", {"paths": ["*.traj"]}),
    "override": (
        ConfigError,
        r"'label=emt' cannot be used here: overrides begin with describe, select, cluster, seed",
        {"overrides": ["label=emt"]},
    ),
    "override of a key": (
        ConfigError,
        r"'~explore.dynamics' cannot be used here",
        {"overrides": ["~explore.dynamics"]},
    ),
    "parameter": (ConfigError, r"Did you mean 'r_cut'\?", {"overrides": ["describe.params.rcut=3"]}),
    "method": (
        ConfigError,
        r"unknown choice of select 'kmean'. Did you mean 'kmeans'\? Known: direct, environments, fps",
        {"overrides": ["select=kmean"]},
    ),
    "level": (ConfigError, r"type describe.level=atom", {"overrides": ["select=environments"]}),
    "against missing": (
        InputError,
        r"lost.zarr does not exist; select.against takes a dataset.zarr or a file of frames",
        {"overrides": ["select.against=lost.zarr"]},
    ),
    "against of an unknown format": (
        InputError,
        r"notes.txt is in no known format; select.against takes a dataset.zarr or one of POSCAR\*",
        {"overrides": ["select.against=notes.txt"]},
    ),
    "against a folder": (
        InputError,
        r"folder is not a Zarr store .* give the path of a dataset.zarr",
        {"overrides": ["select.against=folder"]},
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_told_before_anything_runs(
    case: str, files: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, message, given = WRONG[case]
    (here / "old.xyz").write_text("old")
    (here / "notes.txt").write_text("notes")
    (here / "folder").mkdir()
    monkeypatch.setattr("daskpipe.pipeline.workspace.connect", raise_full)
    with pytest.raises(error, match=message):
        select_files(
            given.get("paths", [str(files)]), 5, given.get("out", "picked.xyz"), [*QUICK, *given.get("overrides", [])]
        )
    assert sorted(os.listdir(here)) == ["folder", "notes.txt", "old.xyz"]
    assert (here / "old.xyz").read_text() == "old"


def test_a_run_is_not_its_dataset(files: Path, reference: Result, client: Client, here: Path) -> None:
    with pytest.raises(InputError, match=r"is a run and not a dataset; type .*dataset.zarr"):
        pick_frames(files, client, f"select.against={reference.run_dir}")
    assert os.listdir(here) == []


def test_features_go_to_zarr_or_npz(files: Path, here: Path) -> None:
    with pytest.raises(ConfigError, match=r"features.csv must end in .zarr or .npz; type e.g. -o features.zarr"):
        describe_files([str(files)], "features.csv", QUICK)
    (here / "features.zarr").mkdir()
    with pytest.raises(ConfigError, match=r"features.zarr exists; give another name, or --force"):
        describe_files([str(files)], "features.zarr", QUICK)
