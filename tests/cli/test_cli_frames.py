"""The verbs select and describe."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import xarray as xr
from ase.build import bulk
from cli.conftest import list_states

from daskpipe.runs.run import Result

Command = Callable[..., Any]


QUICK = ["describe.params={r_cut: 4.0, n_max: 3, l_max: 2}", "describe.dims=4"]
"""A descriptor that takes no time."""


def write_frames(path: Path, n: int = 12) -> None:
    """A trajectory of an alloy that heats up."""
    rng = np.random.default_rng(0)
    frames = []
    for index in range(n):
        atoms = bulk("Cu", "fcc", a=3.7, cubic=True)
        atoms.symbols[index % 4] = "Au"
        atoms.rattle(0.02 * (index + 1), rng=rng)
        frames.append(atoms)
    path.parent.mkdir(parents=True, exist_ok=True)
    ase.io.write(path, frames)


def test_select_prints_what_it_did(type_command: Command, address: str, here: Path) -> None:
    write_frames(here / "md.extxyz")
    words = ["select", "md.extxyz", "-n", "5", "-o", "picked [5].extxyz", "--cluster", address, *QUICK]
    typed = type_command(*words)
    assert typed.code == 0, typed.err
    assert "daskpipe select 5 in picked [5].extxyz" in typed.err
    assert "2 workers" in typed.err
    lines = typed.out.splitlines()
    assert any(line.startswith("12 frames described in ") for line in lines)
    assert "near-duplicates left out: 0 of an earlier frame (closer than 0.001 of the pool's spread)" in lines
    assert any(line.startswith("5 of 12 frames picked by kmeans: they hit ") for line in lines)
    assert lines[-1] == "Wrote picked [5].extxyz: 5 frames"
    assert len(ase.io.read(here / "picked [5].extxyz", ":")) == 5
    before = list_states(here)
    again = type_command(*words)
    assert again.code == 2
    assert "picked [5].extxyz exists; give another name, or --force to replace it" in again.err
    assert list_states(here) == before
    assert type_command(*words, "--force", "seed=3").code == 0
    assert sorted(os.listdir(here)) == ["md.extxyz", "picked [5].extxyz"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kmeans", "direct", "fps", "environments", "random", "stride"])
def test_select_by_each_method_for_machines(method: str, type_command: Command, address: str, here: Path) -> None:
    write_frames(here / "md.extxyz")
    words = ["md.extxyz", "-n", "5", "-o", "picked.xyz", "--method", method, "--cluster", address, *QUICK]
    typed = type_command("select", *words, "--json")
    assert (typed.code, typed.err) == (0, "")
    answer = json.loads(typed.out)
    report = answer.pop("report")
    assert answer.pop("seconds") > 0
    assert answer == {
        "out": "picked.xyz", "n_frames": 12, "n_out": 5, "rejected": {}, "examples": {}, "exit_code": 0,
    }  # fmt: skip
    assert (report["method"], report["n_picked"]) == (method, 5)
    assert report["coverage"]["n_pool"] == 12


def test_select_tells_what_it_could_not_read(type_command: Command, address: str, here: Path) -> None:
    write_frames(here / "md.xyz")
    with open(here / "md.xyz", "a") as file:
        file.write("1\n\nXq 0 0 0\n1\n\nXr 0 0 0\n3\n\nCu 0 0 0\n")
    words = ["select", "md.xyz", "-n", "5", "-o", "picked.xyz", "--cluster", address, *QUICK, "--force"]
    typed = type_command(*words)
    assert typed.code == 10
    assert "12 frames described, 3 rejected in " in typed.out
    assert "  read/unknown_element: 2, e.g. " in typed.out
    assert f"  read/unreadable: 1, e.g. {here / 'md.xyz'}#14: ValueError: the file ends after 1 of 3" in typed.out
    answer = json.loads(type_command(*words, "--json").out)
    assert answer["exit_code"] == 10
    assert answer["rejected"] == {"read/unknown_element": 2, "read/unreadable": 1}
    assert answer["examples"].keys() == answer["rejected"].keys()


def test_select_against_what_there_is(type_command: Command, reference: Result, address: str, here: Path) -> None:
    write_frames(here / "md.extxyz")
    (here / "it's old").mkdir()
    shutil.copytree(reference.dataset, here / "it's old" / "dataset.zarr")
    type_command("export", "it's old/dataset.zarr", "old.extxyz")
    words = ["select", "md.extxyz", "old.extxyz", "-n", "50", "--cluster", address, "--json", *QUICK]
    words.append("select.duplicate_distance=1e-6")  # what is in the dataset itself, and not what is near
    for number, against in enumerate(("it's old/dataset.zarr", "old.extxyz")):
        typed = type_command(*words, "-o", f"{number}.xyz", "--against", against)
        assert typed.code == 0, typed.out
        answer = json.loads(typed.out)
        assert answer["report"]["duplicates"]["against_dataset"] == 6
        assert answer["n_out"] == 12
    typed = type_command(*words, "-o", "run.xyz", "--against", str(reference.run_dir))
    assert typed.code == 3
    assert "is a run and not a dataset; type " in json.loads(typed.out)["error"]


def test_names_of_files_may_hold_signs_of_overrides(type_command: Command, address: str, here: Path) -> None:
    write_frames(here / "T=300 K" / "md=1.extxyz", 3)
    write_frames(here / "T=600 K" / "md=1.extxyz", 4)
    write_frames(here / "select.n=3.xyz", 5)
    for paths, n_frames in (
        (["T=300 K/md=1.extxyz"], 3),
        (["T=300 K"], 3),
        (["T=*/*.extxyz"], 7),
        (["T=600 K", "select.n=3.xyz"], 9),
    ):
        words = [*paths, "describe.dims=2", QUICK[0], "-o", "features.npz", "--force", "--cluster", address, "--json"]
        typed = type_command("describe", *words)
        assert typed.code == 0, typed.out
        assert json.loads(typed.out)["n_frames"] == n_frames
        assert np.load(here / "features.npz")["features"].shape == (n_frames, 2)


def test_overrides_may_be_longer_than_a_name_of_a_file(type_command: Command, address: str, here: Path) -> None:
    write_frames(here / "md.xyz", 3)
    words = [
        "md.xyz",
        "-o",
        "features.npz",
        "--cluster",
        address,
        f"describe.params={{r_cut: 4.{'0' * 300}, n_max: 3}}",
    ]
    typed = type_command("describe", *words)
    assert typed.code == 0, typed.err


def test_describe_writes_what_xarray_opens(type_command: Command, address: str, here: Path) -> None:
    write_frames(here / "md.extxyz")
    words = ["describe", "md.extxyz", "-o", "features.zarr", "describe.level=atom", *QUICK, "--cluster", address]
    typed = type_command(*words)
    assert typed.code == 0, typed.err
    assert "Wrote features.zarr: 12 frames" in typed.out
    ds = xr.open_zarr("features.zarr", consolidated=False)
    assert ds.sizes == {"structure": 12, "feature": 4, "atom": 48}
    assert type_command(*words).code == 2
    answer = json.loads(type_command(*words, "--force", "--json").out)
    assert answer["report"]["describe"]["level"] == "atom"
    assert sorted(os.listdir(here)) == ["features.zarr", "md.extxyz"]


MIX = """
defaults: [emt_alloy, _self_]
name: mix
generate:
  n: 30
  sources:
    bulk: {generator: alloys, share: 2, elements: {Cu: [0, 1], Au: [0, 1]}, n_atoms: [8, 32], rattle: 0.3}
    drops: {generator: clusters, share: 1, elements: {Cu: [0, 1], Au: [0, 1]}, n_atoms: [13, 30]}
"""


def test_generate_writes_seeds_and_tells_how_diverse_they_are(type_command: Command, address: str, here: Path) -> None:
    (here / "mix.yaml").write_text(MIX)
    words = ["generate", "mix.yaml", "-o", "seeds.extxyz", "--cluster", address]
    typed = type_command(*words)
    assert typed.code == 0, typed.err
    lines = typed.out.splitlines()
    assert any(line.startswith("30 structures generated in ") for line in lines)
    replaced = "structures that failed a check and were replaced (source/reason): bulk/overlap "
    assert any(line.startswith(replaced) for line in lines)
    assert any(line.startswith("30 structures of ") for line in lines)
    assert "types: alloy 20, cluster 10" in lines
    assert any(re.fullmatch(r"features \(soap\): [\d.]+ effectively different among 30 .*", line) for line in lines)
    assert lines[-1] == "Wrote seeds.extxyz: 30 structures"
    seeds = ase.io.read(here / "seeds.extxyz", ":")
    assert [atoms.info["generator"] for atoms in seeds] == ["bulk"] * 20 + ["drops"] * 10
    assert sorted(os.listdir(here)) == ["mix.yaml", "seeds.extxyz"]

    # A source more changes none of the others' structures; neither does the size of the partitions.
    more = "generate.sources.more={generator: molecules, names: [H2O, CH4], share: 0.1}"
    words = ["generate", "mix.yaml", more, "generate.n=31", "generate.partition_size=4", "-o", "more.extxyz"]
    done = json.loads(type_command(*words, "--json", "--cluster", address).out)
    assert done["report"]["diversity"]["sources"] == {"bulk": 20, "drops": 10, "more": 1}
    assert done["report"]["config"]["generate"]["sources"]["more"]["n"] == 1
    features = done["report"]["diversity"]["features"]
    assert (features["descriptor"], features["sampled"]) == ("soap", 31)
    assert 2 < features["effective"] < 31
    blocks = (here / "seeds.extxyz").read_text()
    assert (here / "more.extxyz").read_text().startswith(blocks)


def test_generate_refuses_what_is_wrong_before_it_starts(type_command: Command, here: Path) -> None:
    (here / "mix.yaml").write_text(MIX)
    typed = type_command("generate", "mix.yaml", "-o", "seeds.cif")
    assert typed.code == 2
    assert "seeds.cif must end in .extxyz or .xyz" in typed.err
    typed = type_command("generate", "mix.yaml", "generate.n=1", "-o", "seeds.extxyz")
    assert typed.code == 2
    assert "generate.n: of 1 structures none is left for drops; raise n or the share" in typed.err
    assert sorted(os.listdir(here)) == ["mix.yaml"]
