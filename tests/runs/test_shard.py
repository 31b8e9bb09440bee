"""A campaign in shards: disjoint, together complete, and merged into one dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st
from small_runs import SMALL

import daskpipe
from daskpipe.config.load import load_config
from daskpipe.config.models import Config
from daskpipe.config.saved import list_differences
from daskpipe.core.errors import ConfigError, InputError
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.pipeline import datasets

CAMPAIGN = [*SMALL, "generate.sources.alloys.n=4", "generate.sources.clusters.n=4", "select.n=7"]
PLAIN = load_config("emt_alloy", ["select.n=100"])


def run_shard(number: int, n: int) -> Config:
    return PLAIN.model_copy(update={"shard": f"{number}/{n}"})


@given(st.binary(min_size=16, max_size=16), st.integers(1, 50))
def test_each_structure_lies_in_one_shard(structure: bytes, n: int) -> None:
    assert [run_shard(number, n).holds_seed(structure.hex()) for number in range(1, n + 1)].count(True) == 1


def test_the_ends_of_the_ids_lie_in_the_first_and_last_shard() -> None:
    assert run_shard(1, 7).holds_seed("00" * 16)
    assert run_shard(7, 7).holds_seed("ff" * 16)
    assert PLAIN.holds_seed("ab" * 16)


@given(st.integers(1, 10_000), st.integers(1, 60))
def test_shares_of_the_picks_add_up(n_picks: int, n: int) -> None:
    select = PLAIN.select.model_copy(update={"n": n_picks})
    shares = [run_shard(number, n).model_copy(update={"select": select}).selection.n for number in range(1, n + 1)]
    assert sum(shares) == n_picks
    assert max(shares) - min(shares) <= 1


def test_a_shard_is_another_run() -> None:
    assert run_shard(2, 8).run_name == "emt_alloy-2of8"
    assert PLAIN.run_name == "emt_alloy"
    assert [line.split(":")[0] for line in list_differences(run_shard(2, 8), run_shard(3, 8))] == ["select.n", "shard"]


@pytest.mark.parametrize("wrong", ["0/4", "5/4", "2", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_wrong_shard_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"shard: must be i/n with i from 1 to n, e.g. 2/8 \(received "):
        load_config("emt_alloy", [f"shard='{wrong}'"])


def test_a_shard_without_picks_is_refused() -> None:
    with pytest.raises(ConfigError, match="select.n=3 leaves shard=1/8 nothing to pick; give fewer shards"):
        load_config("emt_alloy", ["select.n=3", "shard=1/8"])


def test_a_shard_without_seeds_is_refused(client: Client, tmp_path: Path) -> None:
    words = [*SMALL, "select.n=1000", "shard=500/1000"]
    with pytest.raises(InputError, match="none of the 4 seeds lies in shard 500/1000; give fewer shards"):
        daskpipe.run("emt_alloy", words, run_dir=tmp_path / "run", client=client)


def read_parents(run_dir: Path) -> set[bytes]:
    directory = RunDirectory(run_dir)
    units = [path.parent.name for path in run_dir.glob("units/explore/*/[!.]*/manifest.json")]
    parents = [directory.load_arrays("explore", key, ["parent_id"])["parent_id"] for key in units]
    return {item.tobytes() for ids in parents for item in ids}


@pytest.mark.slow
def test_shards_are_disjoint_and_complete_and_merge(client: Client, tmp_path: Path) -> None:
    whole = daskpipe.run("emt_alloy", CAMPAIGN, run_dir=tmp_path / "whole", client=client)
    shards = []
    for number in (1, 2):
        run_dir = tmp_path / f"emt_alloy-{number}of2"
        shards.append(daskpipe.run("emt_alloy", [*CAMPAIGN, f"shard={number}/2"], run_dir=run_dir, client=client))
    seeds = [read_parents(result.run_dir) for result in shards]
    assert all(seeds)
    assert not seeds[0] & seeds[1]
    assert seeds[0] | seeds[1] == read_parents(whole.run_dir)
    assert [result.stages["store"]["out"] for result in shards] == [3, 4]
    datasets.merge(
        sorted(tmp_path.glob("emt_alloy-*of2")), tmp_path / "all.zarr",
        ["describe.params={r_cut: 4.0, n_max: 3, l_max: 2}", "describe.dims=4"], client=client,
    )  # fmt: skip
    ids = daskpipe.open_dataset(tmp_path / "all.zarr")["structure_id"].values
    assert len(ids) == len(np.unique(ids)) == 7


def test_a_frame_is_the_same_in_its_shard_and_in_the_whole(client: Client, tmp_path: Path) -> None:
    """The trajectories of a seed do not depend on which others there are."""
    ids = []
    for words in ([], ["shard=1/2"]):
        result = daskpipe.run("emt_alloy", [*CAMPAIGN, *words], run_dir=tmp_path / str(len(words)), client=client)
        keys = [path.parent.name for path in result.run_dir.glob("units/explore/*/[!.]*/manifest.json")]
        units = [
            RunDirectory(result.run_dir).load_arrays("explore", key, ["structure_id"])["structure_id"] for key in keys
        ]
        ids.append({item.tobytes() for unit in units for item in unit})
    assert ids[1]
    assert ids[1] < ids[0]


def test_shards_on_the_command_line(type_command: Callable[..., Any]) -> None:
    planned = json.loads(type_command("plan", "emt_alloy", "--shard", "2/4", "--json").out)
    assert planned["name"] == "emt_alloy-2of4"
    assert planned["doubts"][0].startswith("how many seeds lie in shard 2/4")
    assert planned["stages"]["generate"]["inputs"] == 10
    assert planned["stages"]["explore"]["inputs"] == round(10 / 4)
    assert planned["stages"]["select"]["outputs"] == 16 // 4
    typed = type_command("run", "emt_alloy", "--shard", "5/4")
    assert typed.code == 2
    assert "shard: must be i/n with i from 1 to n" in typed.err
