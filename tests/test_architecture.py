"""Imports run edges -> roof -> stages -> tools -> kernels -> words, and rooms never import each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import daskpipe

PACKAGE = Path(daskpipe.__file__).parent

WORDS = {
    "variables", "structures", "connectivity", "geometry", "seeds", "units", "errors", "registry", "events",
    "placement", "work",
    "accelerate", "checksums", "foreign", "checkpoints", "window", "ledger", "lease", "attempts",
    "manifests", "addresses", "outputs", "shared_disk", "constraints", "isolated",
}  # fmt: skip
ROOMS = {"generate", "potentials", "explore", "describe", "select", "label", "store", "load"}
ROOF = {"completed", "composition", "config", "alone", "driving", "packing", "pipeline", "testing"}
EDGES = {
    "budget", "cli_plan", "cluster", "probe", "runs", "cli", "cli_dataset", "cli_options", "cli_status", "cancel",
    "detach", "progress", "status", "plan", "doctor", "standalone", "jobs", "keeper", "submissions", "queues", "sites",
    "gpus", "job_commands", "listings", "worker_jobs", "worker", "report", "train", "cli_care", "fsck", "inspection",
    "joining", "quarantine", "outcome_lines", "__main__",
}  # fmt: skip
FLOORS = [WORDS, ROOMS, ROOF, EDGES]
# A potential serves three rooms, so it stands below them.
ALLOWED_BETWEEN_ROOMS = {("explore", "potentials"), ("label", "potentials"), ("describe", "potentials")}
DASK = {"dask", "distributed", "dask_jobqueue"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imports(path: Path, *, at_import_time: bool = False) -> Iterator[str]:
    """Names of the modules that a file imports; type-checking blocks left out."""
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            skipped |= set(ast.walk(node))
        if at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            skipped |= set(ast.walk(node)) - {node}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def place(module: str) -> str:
    """Word, room, or module of the roof or the edges that a dotted name lies in."""
    return module.split(".")[1] if "." in module else ""


def floor(name: str) -> int:
    """Number of the floor, counted from the ground."""
    return next(number for number, names in enumerate(FLOORS) if name in names)


def owner(path: Path) -> str:
    """Word, room or module that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_module_has_a_floor() -> None:
    assert {owner(path) for path in MODULES} == WORDS | ROOMS | ROOF | EDGES


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    here = owner(path)
    ours = {place(name) for name in imports(path) if name.startswith("daskpipe.")} - {here}
    for there in ours & (WORDS | ROOMS | ROOF | EDGES):
        assert floor(there) <= floor(here), f"{path.name} imports {there}, which stands above it"
        if here in ROOMS and there in ROOMS:
            assert (here, there) in ALLOWED_BETWEEN_ROOMS, f"room {here} imports room {there}"


@pytest.mark.parametrize("path", [p for p in MODULES if owner(p) in ROOMS], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_stages_import_dask(path: Path) -> None:
    if path.name == "stage.py" or path == PACKAGE / "store" / "reader.py":  # the reader opens lazily, with Dask chunks
        return
    assert not {name.split(".")[0] for name in imports(path)} & DASK


@pytest.mark.parametrize("path", [p for p in MODULES if owner(p) in ROOMS], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_tools_do_not_import_stages(path: Path) -> None:
    if path.name in ("stage.py", "__init__.py"):
        return
    assert not [name for name in imports(path) if f"daskpipe.{owner(path)}.stage" in name]


@pytest.mark.parametrize("path", [p for p in MODULES if owner(p) in WORDS], ids=lambda p: p.name)
def test_words_need_neither_dask_nor_torch_to_be_imported(path: Path) -> None:
    heavy = DASK | {"torch", "torch_sim", "mace", "ase", "xarray", "zarr"}
    assert not {name.split(".")[0] for name in imports(path, at_import_time=True)} & heavy


def test_kernels_know_numpy_and_numba_only() -> None:
    allowed = {"__future__", "math", "typing", "numpy", "numba"}
    for path in PACKAGE.rglob("*_kernels.py"):
        for name in imports(path):
            module = name.rpartition(".")[0]
            ours = module.endswith(("_kernels", ".lanes")) or module == "daskpipe.accelerate"
            assert ours or name.split(".")[0] in allowed, f"{path} imports {name}"


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_each_room_opens_with_a_card(room: str) -> None:
    card = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
    assert card is not None
    assert len(card.splitlines()) <= 15
    for word in ("Needs", "Makes", "Entry", "Memory"):
        assert word in card, f"{room}'s card does not say: {word}"


@pytest.mark.parametrize("statement", ["import daskpipe", "import daskpipe.cli"])
def test_importing_is_light(statement: str) -> None:
    heavy = ("torch", "dask", "distributed", "numba", "ase", "xarray", "zarr", "sklearn", "hydra")
    code = f"{statement}; import sys; print([name for name in {heavy!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert loaded == "[]"
