"""Print the import graph of the package: what lies at its top, floors, circles, upward imports, the largest modules.

Run: ``python benchmarks/import_graph.py [FOLDER]``, with the folder of the package, by default that of this checkout.
Imports inside functions count; those for type checkers alone do not. A floor is one more than the highest floor that a
part imports; the parts of a circle share one. Upward imports break the layers of ``[tool.importlinter]``.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

LONG = 450
"""Lines above which a module is listed."""

type Graph = Mapping[str, set[str]]


def read_modules(folder: Path) -> dict[str, Path]:
    """Return the files of a package by the dotted names of the modules."""
    files = {}
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


def read_imports(file: Path, modules: Iterable[str]) -> set[str]:
    """Return which modules of the package a file imports."""
    known, imported = set(modules), set()
    tree = ast.parse(file.read_text())
    for block in ast.walk(tree):
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING":
            block.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= {name if name in known else node.module for name in names}
    return imported & known


def group_modules(graph: Graph, part_of: Callable[[str], str]) -> dict[str, set[str]]:
    """Return the graph of parts of the package, without the imports inside a part."""
    parts: dict[str, set[str]] = {part_of(module): set() for module in graph}
    for module, imported in graph.items():
        parts[part_of(module)] |= {part_of(name) for name in imported} - {part_of(module)}
    return parts


def find_circles(graph: Graph) -> list[list[str]]:
    """Return the parts of a graph that import each other, one list a circle."""
    names = sorted(graph)
    edges = [(names.index(here), names.index(there)) for here in names for there in graph[here]]
    rows, columns = zip(*edges, strict=True) if edges else ((), ())
    matrix = csr_array(([1] * len(edges), (rows, columns)), shape=(len(names), len(names)))
    n_components, component = connected_components(matrix, directed=True, connection="strong")
    members = [
        [name for name, number in zip(names, component, strict=True) if number == of] for of in range(n_components)
    ]
    return [circle for circle in members if len(circle) > 1]


def count_floors(graph: Graph) -> dict[str, int]:
    """Return the floor of each part, counted from 1; the parts of a circle share one."""
    circle_of = {name: ", ".join(circle) for circle in find_circles(graph) for name in circle}
    acyclic = group_modules(graph, lambda name: circle_of.get(name, name))
    floors: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in floors:
            floors[name] = 1 + max(map(floor, acyclic[name]), default=0)
        return floors[name]

    return {name: floor(circle_of.get(name, name)) for name in graph}


def read_layers(pyproject: Path) -> list[list[str]]:
    """Return the layers of the package from the ground up, as import-linter's contract names them."""
    contracts = tomllib.loads(pyproject.read_text()).get("tool", {}).get("importlinter", {}).get("contracts", [])
    for contract in contracts:
        if contract["type"] == "layers":
            return [[name.strip() for name in layer.replace("|", ":").split(":")] for layer in contract["layers"][::-1]]
    return []


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "daskpipe").absolute()
    files = read_modules(folder)
    root = folder.name
    modules = {name: read_imports(file, files) - {root} for name, file in files.items() if name != root}
    tops = group_modules(modules, lambda name: name.split(".")[1])
    floors = count_floors(tops)
    loose = sorted(name for name in tops if (folder / f"{name}.py").exists())
    print(f"at the top: {len(tops) - len(loose)} packages, {len(loose)} modules ({', '.join(loose)})")
    print(f"imports between them: {sum(map(len, tops.values()))}; floors: {max(floors.values())}")
    for number in range(max(floors.values()), 0, -1):
        print(f"  {number:2} {' '.join(name for name in sorted(tops) if floors[name] == number)}")
    print(f"circles at the top: {len(find_circles(tops))} {find_circles(tops) or ''}")
    circles = find_circles({name: imported - {name} for name, imported in modules.items()})
    print(f"circles of modules: {len(circles)} {circles or ''}")
    height = {
        name: number for number, layer in enumerate(read_layers(folder.parent / "pyproject.toml")) for name in layer
    }
    upward = sorted(
        f"{here} -> {there}"
        for here, imported in modules.items()
        for there in imported
        if height.get(there.split(".")[1], 0) > height.get(here.split(".")[1], len(height))
    )
    print(f"imports against the layers of pyproject.toml: {len(upward) if height else 'no layers there'}")
    print("".join(f"  {line}\n" for line in upward), end="")
    lines = {name: len(file.read_text().splitlines()) for name, file in files.items()}
    longest = sorted(lines, key=lambda name: -lines[name])
    print(f"modules: {len(lines)}; median {sorted(lines.values())[len(lines) // 2]} lines; over {LONG} lines:")
    shown = [name for name in longest if lines[name] > LONG] or longest[:1]
    print("".join(f"  {lines[name]:4} {name}\n" for name in shown), end="")


if __name__ == "__main__":
    main()
