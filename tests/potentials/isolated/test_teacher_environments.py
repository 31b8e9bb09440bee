"""Environments of teachers: created, listed, used and removed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from typer.testing import CliRunner

from daskpipe.cli.main import app
from daskpipe.core.errors import ConfigError, DaskpipeError
from daskpipe.potentials import Results, build_potential, evaluate, identify_potential
from daskpipe.potentials.isolated import environments

HOSTILE = Path(__file__).parent / "hostile.py"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def teacher_file(folder: Path, text: str) -> str:
    file = folder / "mine.py"
    file.write_text(text)
    return str(file)


def test_all_teachers_of_daskpipe_can_be_read():
    names = environments.known_teachers()
    assert {"sevennet", "orb", "fennol", "mattersim", "fairchem"} <= set(names)
    for name in names:
        teacher = environments.read_teacher(name)
        assert re.fullmatch(r"[\w-]+==[\w.]+", teacher.requirements[0]), "the version of the weights is pinned"


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("sevenet", "unknown teacher 'sevenet'. Did you mean 'sevennet'"),
        ("no/such/file.py", "no/such/file.py does not exist; give a teacher's file, or one of"),
    ],
)
def test_unknown_teachers_are_named(teacher, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        environments.read_teacher(teacher)


@pytest.mark.parametrize(
    "text",
    ["", "REQUIREMENTS = ['ase']", "def make_calculator(device): ...", "REQUIREMENTS = []\ndef make_calculator(): ..."],
)
def test_a_file_that_is_no_teacher_says_what_it_needs(tmp_path, text):
    with pytest.raises(ConfigError, match=r"is no teacher: it needs REQUIREMENTS = \[.*make_calculator"):
        environments.read_teacher(teacher_file(tmp_path, text))


def test_requirements_are_read_and_never_run(tmp_path):
    text = "REQUIREMENTS = [print('run')]\ndef make_calculator(device): ..."
    with pytest.raises(ConfigError, match="REQUIREMENTS must be a plain list of strings"):
        environments.read_teacher(teacher_file(tmp_path, text))


@pytest.mark.parametrize("name", ["sevennet", "isolated"])
def test_a_teacher_without_an_environment_says_what_to_type(name):
    params = {"teacher": str(HOSTILE)} if name == "isolated" else {}
    with pytest.raises(ConfigError, match=r"needs an environment of its own.*type: daskpipe env create"):
        identify_potential(name, params)


@pytest.mark.slow
def test_an_environment_is_made_used_listed_and_removed(tmp_path):
    typed = CliRunner().invoke(app, ["env", "create", str(HOSTILE), "--share", "--json"])
    assert typed.exit_code == 0, typed.output
    made = json.loads(typed.stdout)
    assert made["requirements"] == ["ase"]
    (found,) = environments.list_environments()
    assert found.name == "hostile"
    assert str(found.python).startswith(made["folder"])
    prefix = subprocess.run([found.python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True)
    assert prefix.stdout.strip() == made["folder"] != sys.prefix

    params = {"teacher": str(HOSTILE), "arguments": {"log": str(tmp_path / "log")}}
    atoms = bulk("Au", cubic=True)
    (results,) = evaluate(build_potential("isolated", params, "cpu"), [atoms])
    atoms.calc = EMT()
    assert isinstance(results, Results)
    assert results.energy == atoms.get_potential_energy()
    assert (tmp_path / "log").read_text() == "Au4\n"
    identity = identify_potential("isolated", params)
    assert identity.packages["ase"]
    assert identity.hash != identify_potential("isolated", {"teacher": str(HOSTILE)}).hash

    with pytest.raises(ConfigError, match="exists; to make it anew, type: daskpipe env remove hostile"):
        environments.create_environment(environments.read_teacher(str(HOSTILE)))
    listed = CliRunner().invoke(app, ["env", "list"]).output
    assert "hostile: Python 3." in listed
    assert "without an environment: fairchem, fennol, mattersim, orb, sevennet" in listed
    removed = CliRunner().invoke(app, ["env", "remove", "hostile"])
    assert removed.output.startswith("removed ")
    assert environments.list_environments() == []
    with pytest.raises(ConfigError, match="unknown environment 'hostile'"):
        environments.remove_environment("hostile")


@pytest.mark.slow
def test_an_environment_for_other_requirements_is_refused(tmp_path):
    first = environments.read_teacher(
        teacher_file(tmp_path, "REQUIREMENTS = ['ase']\ndef make_calculator(device): ...")
    )
    environments.create_environment(first, share=True)
    second = environments.read_teacher(
        teacher_file(tmp_path, "REQUIREMENTS = ['ase', 'numpy']\ndef make_calculator(device): ...")
    )
    with pytest.raises(
        ConfigError, match=r"was made for ase, and the teacher needs ase, numpy; type: daskpipe env remove"
    ):
        environments.require_environment(second)


@pytest.mark.slow
def test_what_an_interruption_left_is_no_environment(cache):
    folder = environments.environments_folder() / "hostile"
    folder.mkdir(parents=True)
    (folder / "rubbish").touch()
    assert environments.find_environment("hostile") is None
    environments.create_environment(environments.read_teacher(str(HOSTILE)), share=True)
    assert not (folder / "rubbish").exists()


@pytest.mark.slow
def test_what_pip_cannot_install_is_told(tmp_path):
    text = "REQUIREMENTS = ['no-such-package-anywhere==9']\ndef make_calculator(device): ..."
    with pytest.raises(DaskpipeError, match=r"pip install failed with exit code 1:.*no-such-package-anywhere"):
        environments.create_environment(environments.read_teacher(teacher_file(tmp_path, text)))
    with pytest.raises(ConfigError, match=r"/no/such/python cannot be started: No such file.*give another --python"):
        environments.create_environment(environments.read_teacher(str(HOSTILE)), python="/no/such/python")


@pytest.mark.parametrize("name", ["../x", "", "a/b"])
def test_names_of_environments_never_leave_the_folder(name):
    with pytest.raises(ConfigError, match="unknown environment"):
        environments.remove_environment(name)
