"""Structures of a program in another Python, and what goes wrong with such programs."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from pydantic import ValidationError
from waiting import wait_until

from daskpipe.core.errors import ConfigError, Rejection
from daskpipe.stages.generate.checks import Limits
from daskpipe.stages.generate.sources import Source
from daskpipe.stages.generate.stage import generate_partition, list_requests

OTHER = next((path for name in ("python3.11", "python3.10", "python3.13") if (path := shutil.which(name))), None)
needs_other = pytest.mark.skipif(OTHER is None, reason="needs another Python: install python3.11 or python3.10")

CHAINS = """
    import os, random, sys
    n, seed, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    draw = random.Random(seed)
    assert "PYTHONPATH" not in os.environ and "VIRTUAL_ENV" not in os.environ, os.environ
    print("python", sys.version_info[:2])
    with open(out + "/made.extxyz", "w") as file:
        for _ in range(n):
            d = draw.uniform(2.3, 2.8)
            file.write(f'3\\nProperties=species:S:1:pos:R:3 pbc="F F F"\\n')
            file.writelines(f"Cu 0 0 {d * i}\\n" for i in range(3))
"""

Made = list[Atoms | Rejection]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Made]:
    """Return a function that generates with a program, given as text, seven structures in calls of three."""

    def generate(text: str, python: str = sys.executable, **params: Any) -> Made:
        program = tmp_path / "make it.py"
        program.write_text(textwrap.dedent(text))
        settings = {"generator": "external", "n": 7, "batch": 3, **params}
        settings.setdefault("command", f"{python} '{program}' {{n}} {{seed}} {{out}}")
        requests = list_requests({"own": Source.model_validate(settings)}, [], tmp_path)
        return generate_partition(requests, seed=1, limits=Limits())

    return generate


def reasons(made: Made) -> set[str]:
    assert len(made) == 7
    return {item.reason if isinstance(item, Rejection) else "" for item in made}


@needs_other
def test_a_program_in_another_python_makes_exactly_what_is_asked(make: Callable[..., Made]) -> None:
    assert OTHER is not None
    made = make(CHAINS, OTHER)
    assert [str(item.symbols) for item in made if isinstance(item, Atoms)] == ["Cu3"] * 7
    assert all(isinstance(item, Atoms) and item.info["generator"] == "own" for item in made)
    positions = [item.positions.tolist() for item in made if isinstance(item, Atoms)]
    assert len({str(each) for each in positions}) == 7
    assert [item.positions.tolist() for item in make(CHAINS, OTHER) if isinstance(item, Atoms)] == positions


def test_a_crash_is_told_with_what_was_printed(make: Callable[..., Made]) -> None:
    made = make("import sys; print('no weights in ~/x'); sys.exit(3)")
    assert reasons(made) == {"crashed"}
    assert isinstance(made[0], Rejection)
    assert "exit code 3; it printed: no weights in ~/x" in made[0].evidence
    segfault = make("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert isinstance(segfault[0], Rejection)
    assert "signal SIGSEGV; it printed nothing" in segfault[0].evidence


def test_a_program_that_hangs_is_ended_with_all_that_it_started(make: Callable[..., Made], tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    hang = f"sh -c 'sleep 600 & echo $$ $! > {pids}; sleep 600' {{out}}"
    (item,) = make("", command=hang, n=1, silence_limit=10)
    assert isinstance(item, Rejection)
    assert item.reason == "silence"
    assert "it neither printed nor wrote anything for silence_limit = 10 s; it printed nothing" in item.evidence
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2
    wait_until(lambda: not any(map(is_running, started)))  # a signal takes its time to arrive


def test_a_program_that_goes_on_for_ever_is_ended(make: Callable[..., Made]) -> None:
    (item,) = make("", command="sh -c 'while :; do echo step; sleep 0.02; done' {out}", n=1, time_limit=2)
    assert isinstance(item, Rejection)
    assert item.reason == "time_limit"
    assert "it ran longer than time_limit = 2 s; it printed" in item.evidence


def is_running(pid: int) -> bool:
    """Return whether a process runs; one that has ended may wait for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_program_that_writes_nothing_is_told(make: Callable[..., Made]) -> None:
    made = make("pass")
    assert reasons(made) == {"no_output"}
    assert isinstance(made[0], Rejection)
    assert "no file '*.extxyz': it wrote nothing" in made[0].evidence
    other = make("import sys; open(sys.argv[3] + '/made.cif', 'w').write('x')")
    assert isinstance(other[0], Rejection)
    assert "it wrote made.cif" in other[0].evidence


def test_malformed_output_costs_what_is_malformed(make: Callable[..., Made]) -> None:
    torn = CHAINS + '\n    with open(out + "/made.extxyz", "a") as file: file.write("3\\nProperties=")\n'
    assert reasons(make(torn)) == {""}  # the calls make three whole ones each before
    garbage = make("import sys; open(sys.argv[3] + '/made.extxyz', 'wb').write(bytes(range(256)))")
    assert reasons(garbage) == {"unreadable"}
    overlapping = CHAINS.replace("uniform(2.3, 2.8)", "uniform(0.1, 0.2)")
    assert reasons(make(overlapping)) == {"overlap"}
    assert reasons(make(CHAINS.replace("Cu 0", "Qq 0"))) == {"unknown_element"}


def test_hydrogens_of_sdf_files_are_made_explicit(make: Callable[..., Made]) -> None:
    pytest.importorskip("rdkit")
    write = """
        import sys
        from rdkit import Chem
        from rdkit.Chem import AllChem
        for number, smiles in enumerate(["CCO", "C[NH3+]", "c1ccccc1"]):
            mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
            AllChem.EmbedMolecule(mol, randomSeed=int(sys.argv[2]))
            Chem.MolToMolFile(Chem.RemoveHs(mol), f"{sys.argv[3]}/{number}.sdf")
    """
    made = make(write, n=3, output="[0-9]*.sdf")
    assert [item.get_chemical_formula() for item in made if isinstance(item, Atoms)] == ["C2H6O", "CH6N", "C6H6"]
    assert [item.info["charge"] for item in made if isinstance(item, Atoms)] == [0, 1, 0]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "command is empty"),
        ("make --n {n}", "command does not name {out}"),
        ("make {out} {what}", "command names {what}; it may name {n}, {seed} and {out}"),
        ("make '{out}", "No closing quotation; literal braces are doubled"),
    ],
)
def test_commands_that_cannot_work_are_refused(command: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Source.model_validate({"generator": "external", "n": 1, "command": command})


def test_a_program_that_is_not_there_is_refused_before_anything_runs(tmp_path: Path) -> None:
    source = Source.model_validate({"generator": "external", "n": 1, "command": "mattergen-of-nowhere {out}"})
    with pytest.raises(ConfigError, match="there is no program 'mattergen-of-nowhere'; give the path of one"):
        list_requests({"own": source}, [], tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    source = Source.model_validate(
        {"generator": "external", "n": 1, "command": "true {out}", "folder": str(tmp_path / "gone")}
    )
    with pytest.raises(ConfigError, match="there is no folder '.*gone'; give the one in which the program starts"):
        list_requests({"own": source}, [], tmp_path)


def test_the_folder_of_a_program_is_taken_from_where_the_config_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = Source.model_validate({"generator": "external", "n": 1, "command": "true {out}", "folder": "."})
    assert source.params["folder"] == str(tmp_path)


def test_no_shell_reads_the_command(make: Callable[..., Made], tmp_path: Path) -> None:
    spy = tmp_path / "spied"
    made = make("import sys; print(sys.argv[1:]); sys.exit(1)")
    assert reasons(made) == {"crashed"}
    words = f"{sys.executable} '{tmp_path / 'make it.py'}' {{out}} ; touch {spy}"
    made = make("import sys; print(sys.argv[1:]); sys.exit(1)", command=words)
    assert isinstance(made[0], Rejection)
    assert "';', 'touch'" in made[0].evidence
    assert not spy.exists()


def test_the_stream_of_other_programs_is_the_requests_own() -> None:
    from daskpipe.stages.generate.external import external

    command = f"{sys.executable} -c 'import sys; print(sys.argv); sys.exit(1)' {{seed}} {{out}}"
    seeds = set()
    for key in range(3):
        (item,) = external(rng=np.random.default_rng(key), command=command)
        assert isinstance(item, Rejection)
        seeds.add(item.evidence.split("'")[3])
    assert len(seeds) == 3
    assert all(0 < int(seed) < 2**31 for seed in seeds)
    assert not [name for name in os.listdir("/tmp") if name.startswith("daskpipe-external-")]
