"""Create, list and remove the environments of teachers: virtual environments in the cache folder.

A teacher is one file: the requirements that are installed for it, and a function that makes its calculator. Those of
daskpipe are in ``configs/teachers``.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from platformdirs import user_cache_path

from daskpipe.core.errors import ConfigError, DaskpipeError, describe_unknown
from daskpipe.core.files import package_folder

FACTS = "daskpipe.json"
"""File of an environment with its requirements and packages; written last, so that it marks a complete one."""

LIST_PACKAGES = (
    "import json, sys; from importlib.metadata import distributions; "
    "print(json.dumps([sys.version.split()[0], {d.name: d.version for d in distributions()}]))"
)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Teacher with an environment of its own.

    Parameters
    ----------
    name
        Name of the teacher, which is that of its environment.
    file
        Python file with ``REQUIREMENTS`` and ``make_calculator(device, **arguments)``.
    requirements
        Requirements as pip takes them; the first names the package that holds its formulas or weights.
    """

    name: str
    file: Path
    requirements: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Environment that is complete.

    Parameters
    ----------
    name, folder
        Name of its teacher, and where it is.
    python
        Its interpreter.
    version
        Version of that.
    requirements
        What was asked of pip.
    packages
        Versions of all its packages by name.
    """

    name: str
    folder: Path
    python: Path
    version: str
    requirements: tuple[str, ...]
    packages: dict[str, str]


def known_teachers() -> list[str]:
    """Return the names of the teachers that daskpipe has files for."""
    return sorted(file.stem for file in (package_folder("configs") / "teachers").glob("*.py"))


def read_teacher(teacher: str) -> Teacher:
    """Read a teacher by its name, or by the path of its file ``*.py``.

    Raises
    ------
    ConfigError
        For an unknown name, a file that does not exist, or one without ``REQUIREMENTS`` and ``make_calculator``.
    """
    if teacher.endswith(".py"):
        file = Path(teacher).expanduser().absolute()
        if not file.is_file():
            raise ConfigError(f"{teacher} does not exist; give a teacher's file, or one of {known_list()}")
    else:
        file = package_folder("configs").absolute() / "teachers" / f"{teacher}.py"
        if teacher not in known_teachers():
            raise ConfigError(describe_unknown("teacher", teacher, known_teachers()))
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
        values = [
            ast.literal_eval(item.value)
            for item in body
            if isinstance(item, ast.Assign) and [ast.unparse(target) for target in item.targets] == ["REQUIREMENTS"]
        ]
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{file}: {error}; REQUIREMENTS must be a plain list of strings") from error
    makes = any(isinstance(item, ast.FunctionDef) and item.name == "make_calculator" for item in body)
    if not (makes and values and all(isinstance(item, str) for item in values[-1]) and values[-1]):
        raise ConfigError(
            f"{file} is no teacher: it needs REQUIREMENTS = ['package==1.0', ...] and a function "
            "make_calculator(device, **arguments) that returns an ASE calculator"
        )
    return Teacher(name=file.stem, file=file, requirements=tuple(values[-1]))


def known_list() -> str:
    """Return the known teachers as words."""
    return ", ".join(known_teachers())


def environments_folder() -> Path:
    """Return the folder of the environments, in the user's cache folder."""
    return user_cache_path("daskpipe") / "environments"


def find_environment(name: str) -> Environment | None:
    """Return the environment of a teacher; None if there is none, or only what an interruption left."""
    folder = environments_folder() / name
    try:
        facts = json.loads((folder / FACTS).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Environment(
        name=name,
        folder=folder,
        python=_python_of(folder),
        version=facts["python"],
        requirements=tuple(facts["requirements"]),
        packages=facts["packages"],
    )


def require_environment(teacher: Teacher) -> Environment:
    """Return the environment of a teacher.

    Raises
    ------
    ConfigError
        If there is none, or it was made for other requirements; the message says what to type.
    """
    found = find_environment(teacher.name)
    source = teacher.name if teacher.name in known_teachers() else quote(str(teacher.file))
    if found is None:
        raise ConfigError(
            f"the teacher {teacher.name!r} needs an environment of its own, and there is none in "
            f"{environments_folder()}; type: daskpipe env create {source}"
        )
    if found.requirements != teacher.requirements:
        raise ConfigError(
            f"the environment of {teacher.name!r} was made for {', '.join(found.requirements)}, and the teacher needs "
            f"{', '.join(teacher.requirements)}; type: daskpipe env remove {teacher.name}, then: daskpipe env create "
            f"{source}"
        )
    return found


def list_environments() -> list[Environment]:
    """Return the complete environments, sorted by name."""
    folder = environments_folder()
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [found for name in names if (found := find_environment(name)) is not None]


def create_environment(
    teacher: Teacher, *, python: str = sys.executable, share: bool = False, say: Callable[[str], None] = lambda _: None
) -> Environment:
    """Create the environment of a teacher; what an interrupted attempt left is removed first.

    Parameters
    ----------
    teacher
        From `read_teacher`.
    python
        Interpreter that the environment gets.
    share
        Whether packages of this environment are used where they satisfy the requirements, so that torch and its CUDA
        libraries (5 GB) are not installed again. Packages that do not satisfy them are installed and come first.
    say
        Called with each step.

    Raises
    ------
    ConfigError
        If there is one already.
    DaskpipeError
        If pip fails, with the end of what it wrote.
    """
    folder = environments_folder() / teacher.name
    if find_environment(teacher.name) is not None:
        raise ConfigError(f"{folder} exists; to make it anew, type: daskpipe env remove {teacher.name}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    say(f"creating {folder}")
    _run([python, "-m", "venv", str(folder)], f"{python} -m venv")
    own = _python_of(folder)
    if share:
        # Behind its own packages, so that these win.
        (place,) = folder.glob("lib/python*/site-packages")
        (place / "daskpipe-shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    say(f"installing {', '.join(teacher.requirements)}")
    _run([str(own), "-m", "pip", "install", "--quiet", *teacher.requirements], "pip install")
    version, packages = json.loads(_run([str(own), "-I", "-c", LIST_PACKAGES], "the new interpreter"))
    facts = {"python": version, "requirements": list(teacher.requirements), "packages": packages}
    attempt = folder / f"{FACTS}.new"
    attempt.write_text(json.dumps(facts, indent=1, sort_keys=True))
    os.replace(attempt, folder / FACTS)
    found = find_environment(teacher.name)
    assert found is not None
    return found


def remove_environment(name: str) -> Path:
    """Remove an environment, complete or not; return its folder.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    folder = environments_folder() / name
    if not name or Path(name).name != name or not folder.is_dir():
        names = [found.name for found in list_environments()]
        raise ConfigError(describe_unknown("environment", name, names))
    (folder / FACTS).unlink(missing_ok=True)
    shutil.rmtree(folder)
    return folder


def describe_environment(found: Environment) -> dict[str, Any]:
    """Return the facts about an environment that a list shows, JSON types."""
    size = sum(file.stat().st_size for file in found.folder.rglob("*") if file.is_file() and not file.is_symlink())
    return {
        "name": found.name,
        "folder": str(found.folder),
        "python": found.version,
        "requirements": list(found.requirements),
        "bytes": size,
    }


def _python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def _run(command: list[str], name: str) -> str:
    """Run a command and return what it prints.

    Raises
    ------
    DaskpipeError
        If it fails, with the end of what it wrote.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"{command[0]} cannot be started: {error.strerror}; give another --python") from error
    if done.returncode:
        wrote = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise DaskpipeError(f"{name} failed with exit code {done.returncode}: {wrote}")
    return done.stdout
