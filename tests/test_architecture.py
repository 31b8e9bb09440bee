"""Imports keep to the contracts of pyproject.toml, and files of a kind know what their kind may know."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import daskpipe

PACKAGE = Path(daskpipe.__file__).parent
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"

LONGEST = 450
"""Lines of a module above which it is two."""

DASK = {"dask", "distributed", "dask_jobqueue"}
STAGES = ("generate", "explore", "describe", "select", "label")
CARDS = [*(f"stages/{stage}" for stage in STAGES), "potentials", "store", "load"]
TOOLS = [
    path
    for folder in CARDS
    for path in sorted((PACKAGE / folder).rglob("*.py"))
    if path.name not in ("stage.py", "__init__.py")
]
READER = PACKAGE / "store" / "reader.py"
"""Opens datasets lazily, with Dask chunks."""

HEAVY = ("torch", "dask", "distributed", "numba", "ase", "xarray", "zarr", "sklearn", "hydra")


def imports(path: Path) -> Iterator[str]:
    """Yield the names of what a file imports, but for what it imports for type checkers alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_keep_to_the_contracts() -> None:
    # In a process of its own: import-linter configures logging anew, which silences the loggers of other tests.
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    words = [sys.executable, "-c", program, "--config", str(PYPROJECT), "--no-cache"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=PYPROJECT.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_torch_sim_is_imported_by_way_of_one_module(path: Path) -> None:
    names = [name for name in imports(path) if name.split(".")[0] == "torch_sim"]
    assert path == PACKAGE / "core" / "torch_sim.py" or not names


def test_no_module_is_too_long() -> None:
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: n for name, n in lines.items() if n > LONGEST} == {}


def test_names_of_test_files_are_their_own() -> None:
    # pytest imports them by their names alone, and refuses a second one.
    names = Counter(path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py")
    assert len(names) > 200
    assert {name for name, count in names.items() if count > 1} == set()


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_stages_know_dask(path: Path) -> None:
    names = set(imports(path))
    assert path == READER or not {name.split(".")[0] for name in names} & DASK
    assert not [name for name in names if name.endswith(".stage") or ".stage." in name]


def test_kernels_know_numpy_and_numba_only() -> None:
    allowed = {"__future__", "math", "typing", "numpy", "numba"}
    for path in PACKAGE.rglob("*_kernels.py"):
        for name in imports(path):
            module = name.rpartition(".")[0]
            ours = module.endswith(("_kernels", ".simd")) or module == "daskpipe.core.accelerate"
            assert ours or name.split(".")[0] in allowed, f"{path} imports {name}"


@pytest.mark.parametrize("folder", CARDS)
def test_packages_open_with_a_card(folder: str) -> None:
    card = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text()))
    assert card is not None
    assert len(card.splitlines()) <= 15
    for word in ("Needs", "Makes", "Entry", "Memory"):
        assert word in card, f"{folder}'s card does not say: {word}"


@pytest.mark.parametrize("module", ["daskpipe", "daskpipe.cli.main", "daskpipe.core.variables", "daskpipe.core.events"])
def test_importing_is_light(module: str) -> None:
    code = f"import {module}, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert loaded == "[]"
