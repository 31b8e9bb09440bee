"""Rejected structures are listed, shown, and released so that a run tries them again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from small_runs import SMALL, committed, files_of, manifests

import daskpipe
from daskpipe.core.errors import ConfigError, IntegrityError, Rejection
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.runs import lease
from daskpipe.runs.fsck import check_run
from daskpipe.runs.quarantine import find_dependents, find_ids, list_rejections, release_rejections
from daskpipe.runs.run import Result


@pytest.fixture(scope="module")
def rejecting(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run some of whose seeds and trajectories are rejected. Read only."""
    folder = tmp_path_factory.mktemp("rejecting")
    (folder / "overlap.xyz").write_text("2\n\nCu 0 0 0\nAu 0 0 0.3\n")
    (folder / "[red]\x1b[2J.xyz").write_text("1\n\nXq 0 0 0\n")
    return daskpipe.run("emt_alloy", [*SMALL, f"generate.paths=['{folder}']"], run_dir=folder / "run", client=client)


@pytest.fixture
def run_dir(rejecting: Result, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    copy = tmp_path / "a run"
    subprocess.run(["cp", "-a", rejecting.run_dir, copy], check=True)
    return copy


def list_ids(run_dir: Path) -> dict[str, str]:
    """Ids of the rejections by what was rejected."""
    return {Path(rejection.structure).name: name for name, rejection in list_rejections(run_dir)}


def test_a_list_has_all_and_an_example_of_each_kind(type_command: Callable[..., Any], run_dir: Path) -> None:
    assert {rejection.kind for _, rejection in list_rejections(run_dir)} == {
        "generate/overlap",
        "generate/unknown_element",
    }
    typed = type_command("quarantine", run_dir)
    assert typed.code == 0
    first, second, how = typed.out.splitlines()
    assert first.startswith(f"generate/overlap: 1, e.g. {list_ids(run_dir)['overlap.xyz#0'][:8]} ")
    assert "generate/unknown_element: 1" in second
    assert "[red]\\x1b[2J.xyz#0" in second  # as it is typed; nothing that a terminal heeds
    assert "\x1b" not in typed.out
    assert type_command("quarantine", run_dir, "list").out == typed.out
    again = how.partition(": ")[2]
    assert again.startswith(f"daskpipe quarantine '{run_dir}' show ")
    answer = json.loads(type_command("quarantine", run_dir, "--json").out)
    assert answer == json.loads(type_command("quarantine", run_dir, "list", "--json").out)
    assert [row["id"] for row in answer["rejections"]] == sorted(list_ids(run_dir).values())
    assert {Path(row["structure"]).name for row in answer["rejections"]} == {"overlap.xyz#0", "[red]\x1b[2J.xyz#0"}


def test_a_run_without_rejections_says_so(type_command: Callable[..., Any], reference: Result) -> None:
    assert type_command("quarantine", reference.run_dir).out == "nothing was rejected\n"


def test_one_is_shown_with_all_that_was_kept(type_command: Callable[..., Any], run_dir: Path) -> None:
    directory = RunDirectory(run_dir)
    details = {"step": 4, "note\x07": "\x1b]0;taken over\x07 [bold]x[/bold] \u202e", "crashed": {"numbers": [29]}}
    hostile = Rejection(
        stage="explore", structure="a\x1b[31m\r", reason="force", evidence="9 eV/Å\n\x9b5m", details=details
    )
    directory.write_quarantine([hostile])
    name = directory.quarantine_file(hostile).stem
    typed = type_command("quarantine", run_dir, "show", name[:8])
    assert typed.code == 0
    for shown in (name, "a\\x1b[31m\\r", "9 eV/Å", "\\x9b5m", "[bold]x[/bold]", "taken over", '"step": 4'):
        assert shown in typed.out
    assert all(char.isprintable() or char == "\n" for char in typed.out)
    answer = json.loads(type_command("quarantine", run_dir, "show", name, "--json").out)
    assert answer == {"id": name, **hostile.as_json()}


def test_ids_may_be_cut_short_unless_they_are_the_beginning_of_several(run_dir: Path) -> None:
    known = sorted(list_ids(run_dir).values())
    assert find_ids(run_dir, [known[0][:6], known[0], known[1]]) == known
    with pytest.raises(
        ConfigError, match=rf"unknown id 'xyz'. Known: {known[0][:8]}, {known[1][:8]}. Or see: daskpipe"
    ):
        find_ids(run_dir, ["xyz"])
    with pytest.raises(ConfigError, match="unknown id ''"):
        find_ids(run_dir, [""])
    twin = run_dir / "quarantine" / f"{known[0][:31]}{'1' if known[0][31] == '0' else '0'}.json"
    twin.write_bytes((run_dir / "quarantine" / f"{known[0]}.json").read_bytes())
    with pytest.raises(ConfigError, match=f"id '{known[0][:31]}' is the beginning of 2: {known[0][:31]}.*; give more"):
        find_ids(run_dir, [known[0][:31]])


def test_what_is_no_rejection_is_named(run_dir: Path) -> None:
    (run_dir / "quarantine" / f"{'b' * 32}.json").write_text("[" * 200_000)
    with pytest.raises(IntegrityError, match="bbbb.json is no rejection. Type: daskpipe fsck '.*a run' --mend"):
        list(list_rejections(run_dir))
    check_run(run_dir, mend=True)
    assert len(list(list_rejections(run_dir))) == 2


def test_a_file_that_was_mended_is_taken_in_after_its_release(
    run_dir: Path, rejecting: Result, client: Client, type_command: Callable[..., Any]
) -> None:
    """The key of a unit of files holds their checksums: the same bytes give the same rejection, and all else anew."""
    before, states = files_of(run_dir / "dataset.zarr"), committed(run_dir)
    typed = type_command("quarantine", run_dir, "release", list_ids(run_dir)["overlap.xyz#0"][:10])
    assert typed.code == 2
    assert "units to be made again: 1 of generate, " in typed.out
    assert "the same with --yes; nothing was released" in typed.out
    assert committed(run_dir) == states
    typed = type_command("quarantine", run_dir, "release", list_ids(run_dir)["overlap.xyz#0"][:10], "--yes")
    assert typed.code == 0
    assert "released 1\nunits to be made again: 1 of generate, 1 of describe-fit, " in typed.out
    assert f"type: daskpipe resume '{run_dir}'" in typed.out
    assert set(list_ids(run_dir)) == {"[red]\x1b[2J.xyz#0"}
    assert not (run_dir / "dataset.zarr").exists()
    assert check_run(run_dir, rehash=True).findings == []
    daskpipe.resume(run_dir, client=client)
    after = committed(run_dir)
    assert after.keys() == states.keys()
    stages = {path.parent.name: path.parts[-4] for path in manifests(run_dir)}
    # The seeds of the generators stand before the files: their explorations stay.
    assert [stages[key] for key in after if after[key] == states[key]].count("explore") == 4
    assert {stages[key] for key in after if after[key] == states[key]} == {"generate", "explore"}
    assert files_of(run_dir / "dataset.zarr") == before
    assert list_ids(run_dir) == list_ids(rejecting.run_dir)
    assert check_run(run_dir, rehash=True).findings == []


def test_a_label_that_failed_once_is_made_after_its_release(run_dir: Path, client: Client) -> None:
    """As if the teacher had failed for a while: a unit of labels holds a rejection in place of its frame."""
    directory = RunDirectory(run_dir)
    whole = files_of(run_dir / "dataset.zarr")
    folder, before = _fail_a_label(directory)
    assert check_run(run_dir, rehash=True).findings == []
    (name,) = [name for name, rejection in list_rejections(run_dir) if rejection.stage == "label"]
    done = release_rejections(run_dir, [name])
    assert done.units == {"label": 1}
    assert not folder.exists()
    daskpipe.resume(run_dir, client=client)
    assert (folder / "payload.npz").read_bytes() == before
    assert files_of(run_dir / "dataset.zarr") == whole
    assert check_run(run_dir, rehash=True).findings == []


def _fail_a_label(directory: RunDirectory) -> tuple[Path, bytes]:
    """Put a rejection in the place of a committed label; return the unit's folder and the payload that it had."""
    from daskpipe.engine.commit import commit
    from daskpipe.engine.manifests import read_units
    from daskpipe.engine.units import Payload
    from daskpipe.runs.quarantine import forget_units

    folder, manifest = next(read_units(directory, "label"))
    before = (folder / "payload.npz").read_bytes()
    forget_units(
        directory,
        [("label", folder.name), *find_dependents(directory, [manifest.unit])],
        lambda event: None,
        reason="a test",
    )
    failed = Rejection(stage="label", structure="00ff", reason="not_converged", evidence="the disk was full")
    commit(directory.root, manifest.unit, Payload(arrays={}, n_out=0, rejected=[failed]))
    directory.write_quarantine([failed])
    shutil.rmtree(directory.root / "ledger")  # it says what the unit was
    return folder, before


def test_all_or_all_of_a_reason(type_command: Callable[..., Any], run_dir: Path) -> None:
    def released(*words: str) -> list[str]:
        typed = type_command("quarantine", run_dir, "release", *words, "--json")
        assert typed.code == 2, typed.err
        answer = json.loads(typed.out)
        assert answer["released"] == []
        return answer["made_again"]["generate"]

    assert released("--reason", "overlap") == released("--reason", "generate/overlap") == 1
    assert released("--all") == 2
    for words, said in (
        ([], "give ids, or --reason R, or --all"),
        (["--all", "--reason", "overlap"], "give ids, or --reason R, or --all"),
        (["--reason", "overlop"], "unknown reason 'overlop'. Known: generate/overlap, "),
    ):
        typed = type_command("quarantine", run_dir, "release", *words)
        assert typed.code == 2
        assert said in typed.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["relase"], "unknown action 'relase'. Did you mean 'release'? Known: list, show, release."),
        (["show"], "show takes one id, received 0; see: daskpipe quarantine '"),
        (["list", "--all"], "--reason, --all and --yes belong to release"),
    ],
)
def test_wrong_words(words: list[str], said: str, type_command: Callable[..., Any], run_dir: Path) -> None:
    typed = type_command("quarantine", run_dir, *words)
    assert typed.code == 2
    assert said in typed.err


def test_nothing_is_released_while_a_driver_works(run_dir: Path) -> None:
    states = committed(run_dir)
    with lease.hold_lease(run_dir), pytest.raises(ConfigError, match="another daskpipe works in"):
        release_rejections(run_dir, list(list_ids(run_dir).values()))
    assert committed(run_dir) == states


def test_a_duplicate_is_left_where_it_is(type_command: Callable[..., Any], run_dir: Path) -> None:
    directory = RunDirectory(run_dir)
    twin = Rejection(stage="generate", structure="ff/0", reason="duplicate", evidence="Cu equals the seed Cu")
    directory.write_quarantine([twin])
    with pytest.raises(ConfigError, match="equals another seed .Cu equals the seed Cu., and would do so again"):
        release_rejections(run_dir, [directory.quarantine_file(twin).stem])
    for path in (run_dir / "quarantine").glob("*.json"):
        if path != directory.quarantine_file(twin):
            os.unlink(path)
    typed = type_command("quarantine", run_dir, "release", "--all", "--yes")
    assert typed.code == 2
    assert "holds nothing that can be tried again" in typed.err


def test_explorations_of_seeds_that_follow_are_made_again(run_dir: Path) -> None:
    """A seed that is added moves those that follow to other batches."""
    from daskpipe.engine.manifests import read_units

    directory = RunDirectory(run_dir)
    seeds = {manifest.unit.index: manifest.unit for _, manifest in read_units(directory, "generate")}
    explorations = {key.unit.upstream[0]: folder.name for folder, key in read_units(directory, "explore")}
    for first in (0, 2):
        kept = {explorations[seeds[index].key] for index in range(first)}
        gone = {key for stage, key in find_dependents(directory, [seeds[first]]) if stage == "explore"}
        assert gone == set(explorations.values()) - kept
