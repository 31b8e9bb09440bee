"""Read hostile input: nothing of it runs, no terminal obeys it, and a run goes on with the good input beside it.

Pickles in structure files, YAML tags in configs, hostile names in reports and a hostile manifest have their tests
beside their code: tests/stages/generate/reading/test_files.py, tests/config/test_config.py, tests/runs/report and
tests/runs/test_fsck.py.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.db import connect
from distributed import Client
from small_runs import SMALL

import daskpipe
from daskpipe.config.load import load_config
from daskpipe.config.saved import to_yaml
from daskpipe.core.errors import ConfigError, InputError, IntegrityError, Rejection
from daskpipe.core.text import make_printable
from daskpipe.engine.commit import commit
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Payload, Unit, unit_key
from daskpipe.runs.run import Result

Command = Callable[..., Any]
ESCAPES = "\x1b]0;taken over\x07\x1b[2J\x9b31m\r\x08\u202e[red][/]<script>"
"""Sets the title of a terminal, clears it, writes backwards; rich markup; HTML."""

LIMIT_BYTES = 24 * 2**30
"""Address space in which a claim of a terabyte fails and a test with its libraries does not."""


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a file that nothing may make, in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "what was handed in was run"


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Limit memory, so that code which believes an array's size fails, and not the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def is_safe(text: str) -> bool:
    """Tell whether a terminal only prints a text."""
    return all(char.isprintable() or char == "\n" for char in text)


def object_array(canary: Path) -> np.ndarray:
    array = np.empty(1, dtype=object)
    array[0] = Bomb(canary)
    return array


def test_the_bomb_is_live(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


# --- pickle in disguise ---------------------------------------------------------------------------------


def test_an_object_array_in_a_unit_is_no_payload(canary: Path, tmp_path: Path) -> None:
    """Its manifest vouches for the bytes: who can write a run directory can do that."""
    directory = RunDirectory(tmp_path / "run")
    directory.root.mkdir()
    unit = Unit(stage="label", index=0, key=unit_key("label", 1, {}, [], 0), n_inputs=1)
    data = io.BytesIO()
    np.savez(data, allow_pickle=True, positions=object_array(canary))
    commit(directory.root, unit, Payload(arrays={}, n_out=1))
    folder = directory.unit_dir("label", unit.key)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["payload.npz"] = {
        "size": len(data.getvalue()), "sha256": hashlib.sha256(data.getvalue()).hexdigest()
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "payload.npz").write_bytes(data.getvalue())
    with pytest.raises(ValueError, match="Object arrays cannot be loaded when allow_pickle=False"):
        directory.load_arrays("label", unit.key)


def test_a_mapped_part_of_a_dataset_holds_no_objects(canary: Path, tmp_path: Path) -> None:
    from daskpipe.store.parts import map_array_file

    np.save(tmp_path / "positions.npy", object_array(canary), allow_pickle=True)
    with pytest.raises(ValueError, match="(?i)object"):
        map_array_file(tmp_path / "positions.npy")


@pytest.mark.parametrize("name", ["evil.npy", "evil.npz", "evil.pkl", "evil.pt", "evil.zip", "evil.tar", "evil.tar.gz"])
def test_arrays_and_archives_are_no_input(
    name: str, canary: Path, type_command: Command, client: Client, tmp_path: Path
) -> None:
    """Nothing is ever unpacked: not as frames, not as a dataset."""
    path = tmp_path / name
    if name.endswith("zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../canary", "x")
            archive.writestr("dataset.zarr/zarr.json", "{}")
    elif ".tar" in name:
        with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as archive:
            archive.addfile(tarfile.TarInfo("../canary"))
    elif name.endswith("npz"):
        np.savez(path, allow_pickle=True, positions=object_array(canary))
    else:
        path.write_bytes(pickle.dumps(Bomb(canary)))
    for words, complaint in (
        (["select", name, "-n", "1", "-o", "out.extxyz", "--cluster", client.scheduler.address], "in no known format"),
        (
            ["import", name, "-o", "out.zarr", "--method", "PBE", "--cluster", client.scheduler.address],
            "holds no labels that can be read",
        ),
        (["verify", name], "is not a Zarr store"),
        (["merge", name, "-o", "out.zarr"], "is not a Zarr store"),
        (["export", name, "out.extxyz"], "is not a Zarr store"),
    ):
        typed = type_command(*words)
        assert typed.code in (2, 3), (words, typed.err)
        assert complaint in typed.err, words
        assert "Traceback" not in typed.err


@pytest.fixture
def no_mace_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what importing MACE does to the process."""
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)


@pytest.mark.usefixtures("no_mace_yet")
def test_a_model_file_is_a_program_and_is_taken_for_one_only_where_it_is_named(canary: Path, tmp_path: Path) -> None:
    """What is not named as a model is loaded with weights alone; `test_mace.py` has the same after MACE's import."""
    torch.save(Bomb(canary), tmp_path / "evil.model")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(tmp_path / "evil.model")
    from daskpipe.potentials import identify_potential

    # Its hash names it in the run before anything loads it.
    assert identify_potential("mace", {"model": str(tmp_path / "evil.model")}).hash


@pytest.mark.parametrize("column", ["data", "key_value_pairs", "constraints", "calculator_parameters"])
def test_what_else_a_database_holds_is_not_built(column: str, canary: Path, tmp_path: Path) -> None:
    import sqlite3

    from daskpipe.stages.generate.reading.files import read_structures

    path = tmp_path / "a.db"
    with connect(path) as database:
        database.write(bulk("Cu"))
    evil = json.dumps({"__ase_objtype__": "os.system", "command": f"touch {canary}", "name": "system", "kwargs": {}})
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE systems SET {column} = ?", (evil if column != "constraints" else f"[{evil}]",))
    connection.close()
    (item,) = read_structures(path, name="a.db")
    assert isinstance(item, Rejection) or item.info.keys() <= {"name"}


# --- configs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    ["name=${oc.env:SECRET}", "+x=${oc.env:SECRET,none}", "explore.potential.params.model='a${oc.env:SECRET}'",
     "name=${hydra:runtime.cwd}", "select.n=${eval:64}"],
)  # fmt: skip
def test_a_config_looks_nothing_up(
    override: str, canary: Path, monkeypatch: pytest.MonkeyPatch, type_command: Command
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    typed = type_command("config", "show", "emt_alloy", override)
    assert typed.code == 2
    assert "only keys of the config may be, as ${key.path}: type the value" in typed.err
    assert "hunter2" not in typed.out + typed.err


def test_a_config_may_refer_to_its_own_keys() -> None:
    assert load_config("emt_alloy", ["seed=77", "select.n=${seed}"]).select.n == 77


@pytest.mark.parametrize(
    "text",
    [
        "explore: {potential: {name: emt, params: {_target_: os.system, command: touch canary}}}",
        "explore: {potential: {_target_: os.system, name: emt}}",
        "generate: {sources: {a: {generator: 'os:system', n: 1, command: touch canary}}}",
        "label: {potential: {name: 'os:system', params: {command: touch canary}}}",
        "describe: {descriptor: 'subprocess:run', params: {args: touch canary}}",
    ],
)
def test_a_config_names_no_code(text: str, canary: Path, type_command: Command, tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text(f"defaults: [emt_alloy, _self_]\n{text}\n")
    typed = type_command("run", "evil.yaml")
    assert typed.code == 2
    assert "nknown" in typed.err
    assert "Traceback" not in typed.err


def test_hydras_own_settings_run_nothing(canary: Path) -> None:
    callbacks = "{evil: {_target_: os.system, command: 'touch canary'}}"
    Path("evil.yaml").write_text(
        f"defaults: [emt_alloy, _self_]\nhydra: {{callbacks: {callbacks}, job: {{chdir: true}}}}\n"
    )
    before = Path.cwd()
    assert load_config("evil.yaml").name == "emt_alloy"
    assert Path.cwd() == before


def laughs() -> str:
    """Return YAML with nine levels of nine aliases: half a kilobyte for 10^9 values."""
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 10)]
    return "\n".join(["a0: &a0 [x]", *levels, ""])


@pytest.mark.parametrize("where", ["preset", "run", "site"])
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (laughs(), "stands for more than 100,000 values; write out what its aliases repeat"),
        ("a: &a [*a]\n", "stands for more than 100,000 values"),
        ("a: " + "[" * 20_000, "nests too deep to be a config"),
        ("a: !!python/object/apply:os.system ['touch canary']\n", "could not determine a constructor for the tag"),
    ],
    ids=["laughs", "endless", "deep", "tag"],
)
def test_yaml_that_is_a_bomb(
    where: str, text: str, complaint: str, canary: Path, type_command: Command, tmp_path: Path
) -> None:
    name = {"preset": "bomb.yaml", "run": "run/config.yaml", "site": "bomb.yaml"}[where]
    (tmp_path / "run").mkdir()
    (tmp_path / name).write_text(text)
    words = {
        "preset": ["run", "bomb.yaml"],
        "run": ["resume", "run"],
        "site": ["run", "emt_alloy", "--cluster", str(tmp_path / "bomb.yaml")],
    }
    typed = type_command(*words[where])
    assert typed.code == 2
    assert complaint in typed.err
    assert "Traceback" not in typed.err


# --- structures -----------------------------------------------------------------------------------------

CUBE = 'Lattice="3.6 0 0 0 3.6 0 0 0 3.6" pbc="T T T"'


@pytest.mark.parametrize(
    ("name", "text", "evidence"),
    [
        ("a.xyz", "1000000000000\n\nCu 0 0 0\n", "the file claims 1e+12 atoms, and has 24 bytes"),
        ("a.xyz", f"{10**40}\n\nCu 0 0 0\n", "the file claims 1e+40 atoms"),
        (
            "a.xyz",
            "1\nProperties=species:S:1:pos:R:3:x:R:1000000000\nCu 0 0 0\n",
            "claims 1000000004 columns",
        ),
        (
            "a.xyz",
            '1\nproperties="species:S:1:pos:R:1000000000"\nCu 0 0 0\n',
            "lacks species:S:1 (or Z:I:1) or pos:R:3",
        ),
        ("POSCAR", "x\n1\n5 0 0\n0 5 0\n0 0 5\nCu\n1000000000000\nDirect\n0 0 0\n", "the file claims 1e+12 atoms"),
    ],
)
def test_claims_without_bounds_are_met_by_the_size_of_the_file(
    name: str, text: str, evidence: str, canary: Path, little_memory: None
) -> None:
    from daskpipe.stages.generate.reading.files import read_structures

    Path(name).write_text(text)
    (item,) = read_structures(Path(name), name=name)
    assert isinstance(item, Rejection)
    assert item.reason == "unreadable"
    assert evidence in item.evidence


def test_json_without_end_is_text(canary: Path) -> None:
    """It is no label that could be read, and costs no geometry."""
    from daskpipe.stages.generate.reading.files import read_structures

    Path("a.xyz").write_text('1\na="_JSON ' + "[" * 100_000 + '"\nCu 0 0 0\n')
    (item,) = read_structures(Path("a.xyz"), name="a.xyz")
    assert not isinstance(item, Rejection)
    assert item.numbers.tolist() == [29]


def write_hostile_folder(folder: Path) -> dict[str, str]:
    """Write files with harmful content or names, and two good ones; return reasons by file."""
    folder.mkdir()
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
    atoms.rattle(0.05, seed=1)
    ase.io.write(folder / "good.extxyz", atoms)
    named = folder / "-rf; $(touch canary) `touch canary` \n && touch canary | '\"[red].extxyz"
    atoms.rattle(0.05, seed=2)
    atoms.info = {"config_type": "../../canary", "name": ESCAPES, "$(touch canary)": "; touch canary"}
    ase.io.write(named, atoms, format="extxyz")
    bad = {
        f"{ESCAPES.replace('/', '')}.xyz": ("1\n\nXq 0 0 0\n", "unknown_element"),
        "nan.xyz": ('1\nLattice="nan 0 0 0 nan 0 0 0 nan" pbc="T T T"\nCu 0 0 0\n', ""),
        "inf.xyz": ('1\nLattice="1e400 0 0 0 5 0 0 0 5" pbc="T T T"\nCu 0 0 0\n', ""),
        "flat.xyz": ('1\nLattice="1e-9 0 0 0 1e-9 0 0 0 1e-9" pbc="T T T"\nCu 0 0 0\n', ""),
        "far.xyz": ("1\n\nCu 1e300 0 nan\n", ""),
        "claims.xyz": ("1000000000000\n\nCu 0 0 0\n", "unreadable"),
        "symbol.xyz": (f"1\n\n{ESCAPES.replace(' ', '')} 0 0 0\n", "unreadable"),
    }
    for name, (text, _) in bad.items():
        (folder / name).write_text(text)
    return {name: reason for name, (_, reason) in bad.items()}


@pytest.mark.slow
def test_a_run_goes_on_where_other_input_is_good(
    canary: Path, type_command: Command, client: Client, tmp_path: Path
) -> None:
    bad = write_hostile_folder(tmp_path / "in")
    run = "run; touch canary $(touch canary) [red]\x1b[2J"
    sources = ["~generate.sources.alloys", "~generate.sources.clusters", "select.n=2", "generate.partition_size=4"]
    overrides = [word for word in SMALL if ".sources." not in word and not word.startswith(("select.n", "generate."))]
    address = client.scheduler_info()["address"]
    typed = type_command(
        "run", "emt_alloy", *overrides, *sources, f"generate.paths=['{tmp_path / 'in'}']", "--cluster", address,
        "--run-dir", run, "cluster.insecure=true",
    )  # fmt: skip
    assert typed.code == 10, typed.err[-2000:]
    assert is_safe(typed.out)
    assert is_safe(typed.err)
    directory = RunDirectory(tmp_path / run)
    rejected = {Path(item.structure).name.partition("#")[0]: item.reason for item in directory.read_quarantine()}
    assert rejected.keys() == bad.keys()
    assert all(reason in ("", rejected[name]) for name, reason in bad.items())
    assert daskpipe.open_dataset(directory.dataset).sizes["structure"] == 2
    # What it says to type next may be typed.
    for line in typed.out.partition("Next")[2].splitlines():
        if "daskpipe" in line and "\\x1b" not in line:
            subprocess.run(["sh", "-nc", line], check=True)
    for verb in ("status", "fsck", "quarantine", "quality", "verify"):
        typed = type_command(verb, run)
        assert typed.code == (verb == "quality"), (verb, typed.err)  # two structures are no good dataset
        assert is_safe(typed.out + typed.err), verb
    assert is_safe((directory.root / "daskpipe.log").read_text())
    assert type_command("report", run).code == 0
    page = (directory.root / "report.html").read_text()
    assert "&lt;script&gt;.xyz" in page
    assert "<script>.xyz" not in page


def test_errors_do_not_steer_the_terminal(canary: Path, type_command: Command) -> None:
    for words in (
        ["status", f"no{ESCAPES}"],
        ["resume", f"no{ESCAPES}"],
        ["fsck", f"no{ESCAPES}"],
        ["verify", f"no{ESCAPES}"],
        ["run", f"no{ESCAPES}"],
        ["run", f"no{ESCAPES}.yaml"],
        ["run", "emt_alloy", f"generate.paths=['no{ESCAPES}']"],
        ["select", f"no{ESCAPES}.xyz", "-n", "3", "-o", "out.extxyz"],
        ["export", f"no{ESCAPES}", "out.extxyz"],
    ):
        typed = type_command(*words)
        assert typed.code in (2, 3), words
        assert is_safe(typed.out + typed.err), words
        assert "Traceback" not in typed.err


@pytest.mark.parametrize("char", ["\x00", "\x07", "\x1b", "\x9b", "\r", "\x7f", "\u202e", "\u2028", "\ufeff", "\udcff"])
def test_what_steers_a_terminal_is_spelled_out(char: str) -> None:
    printed = make_printable(f"a{char}b\nc Å²")
    assert is_safe(printed)
    assert printed == f"a{char.encode('unicode_escape').decode()}b\nc Å²"
    printed.encode()


# --- run directories of others --------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.yaml").write_text(to_yaml(load_config("emt_alloy", SMALL)))
    return path


@pytest.mark.parametrize("text", ["[" * 200_000, "[1]", "{}", '{"event": []}', "null", '"\x1b[2J"'])
def test_a_ledger_of_another_is_read_without_harm(text: str, run_dir: Path, type_command: Command) -> None:
    (run_dir / "ledger").mkdir()
    (run_dir / "ledger" / "0001.jsonl").write_text(text + "\n")
    typed = type_command("fsck", run_dir)
    assert typed.code == 1
    assert "expected an event on each line, found none on line 1" in typed.out
    assert is_safe(typed.out)


@pytest.mark.parametrize("text", ["[" * 200_000, "[1]", "{}", '{"stage": 1}', "null"])
def test_a_quarantine_of_another_is_read_without_harm(text: str, run_dir: Path, type_command: Command) -> None:
    (run_dir / "quarantine").mkdir()
    (run_dir / "quarantine" / f"{'b' * 32}.json").write_text(text)
    with pytest.raises(IntegrityError, match="bbbb.json is not what was committed .*daskpipe fsck"):
        RunDirectory(run_dir).read_quarantine()
    typed = type_command("quarantine", run_dir)
    assert typed.code == 1
    assert "bbbb.json is no rejection. Type: daskpipe fsck" in typed.err


# --- datasets of others ---------------------------------------------------------------------------------


def harm(name: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(root: dict[str, Any]) -> None:
        root["consolidated_metadata"]["metadata"][name] |= changes

    return change


def claim_structures(root: dict[str, Any]) -> None:
    """Make all metadata say that there are 10^11 structures."""
    root["attributes"]["n_structures"] = 10**11
    for array in root["consolidated_metadata"]["metadata"].values():
        if array["dimension_names"][0] == "structure":
            array["shape"][0] = 10**11


def claim_one_chunk(root: dict[str, Any]) -> None:
    """Make the metadata also say that they are in one chunk."""
    claim_structures(root)
    for array in root["consolidated_metadata"]["metadata"].values():
        if array["dimension_names"][0] == "structure":
            array["chunk_grid"]["configuration"]["chunk_shape"][0] = 10**11


LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            harm("positions", codecs=[{"name": "evil", "configuration": {}}]),
            "positions needs the codec 'evil'; known: ",
        ),
        (
            harm("positions", codecs=[{"name": "os.system", "configuration": {"command": "touch canary"}}]),
            "codec 'os.sys",
        ),
        (
            harm("energy", codecs=[LITTLE, {"name": "numcodecs.pickle", "configuration": {}}]),
            "the codec 'numcodecs.pic",
        ),
        (harm("energy", codecs=[{"name": "vlen-bytes", "configuration": {}}]), "energy needs the codec 'vlen-bytes'"),
        (harm("energy", data_type="object"), "energy is object; the schema says float64"),
        (harm("energy", data_type="variable_length_bytes"), "energy is variable_length_bytes; the schema says float64"),
        (harm("energy", shape=[10**12]), r"energy claims the shape \[1000000000000\]"),
        (claim_structures, r"claims the shape \[100000000000.*\] in .* chunks of .*; expected"),
        (claim_one_chunk, r"has \d+ bytes, and its array claims [\d,]+"),
        (lambda root: root["consolidated_metadata"]["metadata"].update({"../../canary": {}}), "zarr.json is damaged"),
        (lambda root: root.update(consolidated_metadata=None), "zarr.json is damaged"),
        (lambda root: root["attributes"].update(checksums=[]), "zarr.json is damaged"),
    ],
)
def test_a_dataset_of_another_is_opened_for_what_it_is_or_not_at_all(
    change: Callable[[dict[str, Any]], None],
    complaint: str,
    canary: Path,
    little_memory: None,
    reference: Result,
    tmp_path: Path,
) -> None:
    evil = tmp_path / "evil.zarr"
    shutil.copytree(reference.dataset, evil)
    root = json.loads((evil / "zarr.json").read_text())
    change(root)
    (evil / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(InputError, match=complaint):
        daskpipe.open_dataset(evil)


def test_every_verb_refuses_such_a_dataset(
    canary: Path, reference: Result, tmp_path: Path, type_command: Command, client: Client
) -> None:
    evil = tmp_path / "evil.zarr"
    shutil.copytree(reference.dataset, evil)
    root = json.loads((evil / "zarr.json").read_text())
    harm("positions", codecs=[{"name": "evil", "configuration": {}}])(root)
    (evil / "zarr.json").write_text(json.dumps(root))
    ase.io.write("frames.extxyz", [bulk("Cu", cubic=True), bulk("Au", cubic=True)])
    address = ["--cluster", client.scheduler_info()["address"], "cluster.insecure=true"]
    for words in (
        ["export", evil, "out.extxyz"],
        ["report", evil, "-o", "page.html"],
        ["quality", evil],
        ["merge", evil, reference.dataset, "-o", "out.zarr", *address],
        ["select", "frames.extxyz", "-n", "1", "-o", "out.extxyz", "--against", evil, *address],
    ):
        typed = type_command(*words)
        assert typed.code == 3, (words, typed.err)
        assert "positions needs the codec 'evil'" in typed.err
        assert "Traceback" not in typed.err
    typed = type_command("verify", evil)
    assert typed.code == 1
    assert "zarr.json: differs" in typed.out
    assert not Path("out.zarr").exists()


def test_json_that_nests_too_deep_is_no_dataset(canary: Path, type_command: Command, tmp_path: Path) -> None:
    (tmp_path / "deep.zarr").mkdir()
    (tmp_path / "deep.zarr" / "zarr.json").write_text("[" * 200_000)
    for verb in (["verify"], ["quality"], ["report"]):
        typed = type_command(*verb, "deep.zarr")
        assert typed.code == 3
        assert "zarr.json is damaged" in typed.err


@pytest.mark.usefixtures("no_mace_yet")
def test_the_command_line_leaves_torchs_safe_loading_on() -> None:
    code = "import daskpipe.cli.main, os; print(os.environ.get('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


def test_a_preset_is_a_name_and_no_path() -> None:
    with pytest.raises(ConfigError, match="unknown preset"):
        load_config("../../etc/passwd")
