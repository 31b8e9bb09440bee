"""Draw docstrings of an earlier commit at random and print each beside the one that the same code has now.

Run: ``python benchmarks/docstrings.py COMMIT [SEED] [N] > pairs.md`` in a checkout with its history. Functions,
methods and classes with a docstring are drawn from the package as it was at COMMIT. What became of each is the function
or class whose code, without docstrings, is most like it now: names and modules may have changed.
"""

from __future__ import annotations

import ast
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

ALIKE = 0.5
"""Least similarity of code, from 0 to 1, at which one thing counts as the other."""

type Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Documented:
    """One function, method or class with a docstring.

    Parameters
    ----------
    file, name
        Path in the repository, and the dotted name in the module.
    docstring
        Without indentation.
    words
        Words of its code without docstrings.
    """

    file: str
    name: str
    docstring: str
    words: tuple[str, ...]


def read_commit(commit: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the source of each module of the package at a commit."""
    listing = run_git("ls-tree", "-r", "--name-only", commit, "daskpipe")
    for file in listing.split():
        if file.endswith(".py"):
            yield file, run_git("show", f"{commit}:{file}")


def run_git(*words: str) -> str:
    """Return the output of a git command."""
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout


def read_folder(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the path and the source of each module of the package in a checkout."""
    for file in sorted((folder / "daskpipe").rglob("*.py")):
        yield str(file.relative_to(folder)), file.read_text()


def list_documented(files: Iterator[tuple[str, str]]) -> list[Documented]:
    """Return everything with a docstring, in the order of files and lines."""
    return [item for file, source in files for item in walk_definitions(file, ast.parse(source), ())]


def walk_definitions(file: str, node: ast.AST, outer: tuple[str, ...]) -> Iterator[Documented]:
    """Yield what has a docstring below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition.__value__):
            names = (*outer, child.name)
            if (docstring := ast.get_docstring(child)) is not None:
                yield Documented(file, ".".join(names), docstring, tuple(words_of(child)))
            yield from walk_definitions(file, child, names)
        else:
            yield from walk_definitions(file, child, outer)


def words_of(node: ast.AST) -> list[str]:
    """Return the words of a piece of code without docstrings."""
    copy = ast.parse(ast.unparse(node))
    for part in ast.walk(copy):
        if isinstance(part, Definition.__value__) and ast.get_docstring(part) is not None:
            part.body = part.body[1:] or [ast.Pass()]
    text = ast.unparse(copy)
    for sign in "()[]{},:.=":
        text = text.replace(sign, f" {sign} ")
    return text.split()


def find_counterpart(before: Documented, now: list[Documented]) -> Documented | None:
    """Return what became of a piece of code; None if nothing is like it."""
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(before.words)
    best, similarity = None, ALIKE
    for item in now:
        matcher.set_seq1(item.words)
        # A name that stayed decides between pieces of code that are equally alike.
        bonus = 0.1 if item.name.split(".")[-1] == before.name.split(".")[-1] else 0.0
        if matcher.real_quick_ratio() + bonus > similarity and matcher.quick_ratio() + bonus > similarity:
            ratio = matcher.ratio() + bonus
            if ratio > similarity:
                best, similarity = item, ratio
    return best


def main(commit: str, seed: int = 0, n: int = 20) -> None:
    """Print the pairs as markdown."""
    now = list_documented(read_folder(Path(__file__).parents[1]))
    drawn = random.Random(seed).sample(list_documented(read_commit(commit)), n)
    for number, before in enumerate(drawn, 1):
        after = find_counterpart(before, now)
        print(f"### {number}. `{before.name}` in `{before.file}`\n")
        print(f"```text\n{before.docstring}\n```\n")
        if after is None:
            print("It is no longer there.\n")
        elif after.docstring == before.docstring:
            print(f"Unchanged, as `{after.name}` in `{after.file}`.\n")
        else:
            print(f"Now `{after.name}` in `{after.file}`:\n\n```text\n{after.docstring}\n```\n")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
