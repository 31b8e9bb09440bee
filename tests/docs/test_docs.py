"""What the documentation shows works: the blocks of each page run in order, in a folder that holds what pages name."""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import ase.io
import numpy as np
import pytest
import typer
import yaml
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from distributed import Client
from small_runs import files_of

import daskpipe
from daskpipe.cli.main import app
from daskpipe.cluster.sites import read_site
from daskpipe.config.load import load_config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(str(file.relative_to(DOCS)) for file in DOCS.rglob("*.md"))

BLOCK = re.compile(r'^( *)```(\w+)(?: title="([^"]*)")?\n(.*?)^\1```$', re.MULTILINE | re.DOTALL)

NOT_RUN = ("installs packages", "on a cluster", "takes minutes")
"""Titles of shell blocks that the tests read and do not run: what these need is not there, or too slow."""

SLOW = (
    "generators/crystals.md",
    "generators/derived.md",
    "generators/mix.md",
    "how-to/campaigns.md",
    "how-to/label.md",
    "how-to/new.md",
    "how-to/train.md",
)
"""Pages that take longer; the README's commands train once in any case, and the tests of a topic run its commands."""

SHORTER: dict[str, tuple[str, ...]] = {
    "run": (
        "explore.device=cpu",
        "explore.dynamics.steps=10",
        "explore.dynamics.stride=5",
        "describe.dims=4",
        "describe.sample=6",
        "select.n=6",
    ),
    "train": ("--epochs", "1", "batch_size=2"),
    "quality": ("quality.diversity=null",),  # the dataset of the tests is too small for it
}
"""What the tests add to a command, by verb, so that it ends in seconds."""

ANSWERS = {"quality": (0, 1)}
"""Exit codes that a verb may end with, where 0 is not the only one."""


def read_blocks(page: str) -> Iterator[tuple[str, str, str]]:
    """Yield language, title and text of each code block of a page."""
    yield from find_blocks((DOCS / page).read_text())


def find_blocks(markdown: str) -> Iterator[tuple[str, str, str]]:
    """Yield language, title and text of each code block of a text."""
    for indent, language, title, text in BLOCK.findall(markdown):
        yield language, title, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)


def read_commands(text: str) -> Iterator[tuple[list[str], str]]:
    """Yield the words of each command of a shell block, and the file that its output goes to."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        file = ""
        if ">" in words:
            file = words[words.index(">") + 1]
            words = words[: words.index(">")]
        yield words, file


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that the words of a line name, and the rest of the words."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"daskpipe has no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def make_frames(n: int) -> list[Atoms]:
    """Return shaken cells of silver, with one atom of copper each."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(n):
        atoms = bulk("Ag", "fcc", a=4.0, cubic=True)
        atoms.symbols[index % 4] = "Cu"
        atoms.rattle(0.2, rng=rng)
        made.append(atoms)
    return made


def make_labelled_frames(n: int) -> list[Atoms]:
    """Return frames with the labels of EMT."""
    frames = make_frames(n)
    for atoms in frames:
        atoms.calc = EMT()
        atoms.get_forces()
    return frames


@pytest.fixture(scope="module")
def template(reference: daskpipe.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what pages take for granted: a run, trajectories, structures, labelled frames, a model."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(reference.run_dir, folder / "runs" / "quickstart")
    for name in ("md", "structures", "more"):
        (folder / name).mkdir()
    for name in ("md.extxyz", "md.traj", "md/part.extxyz"):
        ase.io.write(folder / name, make_frames(110))
    ase.io.write(folder / "structures" / "cells.extxyz", make_frames(6))
    ase.io.write(folder / "more" / "cell.cif", make_frames(1))
    labelled = make_labelled_frames(8)
    ase.io.write(folder / "old.extxyz", labelled)
    hartree = []
    for atoms in labelled:
        copy = atoms.copy()
        copy.info["energy"] = atoms.get_potential_energy() / units.Hartree
        copy.arrays["forces"] = atoms.get_forces() / (units.Hartree / units.Bohr)
        hartree.append(copy)
    ase.io.write(folder / "hartree.extxyz", hartree)
    (folder / "my.model").write_bytes(b"a model of MACE: plans name it by its hash and do not open it")
    return folder


def add_source(title: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the code of a file into its module, which is a new one or has it besides what it has."""
    name = title.removesuffix(".py").replace("/", ".")
    try:
        module = import_module(name)
    except ModuleNotFoundError:
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
    names = dict(vars(module))
    exec(compile(text, title, "exec"), names)
    for key in names.keys() - vars(module).keys():
        monkeypatch.setattr(module, key, names[key], raising=False)


def add_to_table(title: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a line or an entry to a table of the package: to a registry, or to a literal table of objects."""
    match = re.fullmatch(r"(?:a line|an entry) of (\w+) in ([\w/]+)\.py", title)
    assert match, title
    module = import_module(match[2].replace("/", ".").removesuffix(".__init__"))
    table = getattr(module, match[1])
    if match[1] == "VARIABLES":
        (added,) = eval(f"[{text}]", vars(module))
        monkeypatch.setitem(table, added.name, added)
    elif match[1] == "CHECKS":
        for name, entry in eval(f"{{{text}}}", vars(module)).items():
            assert callable(entry.load_function())
            monkeypatch.setitem(table, name, entry)
    else:
        for name, target in eval(f"{{{text}}}").items():
            monkeypatch.setitem(table.table, name, target)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else [])
        for page in PAGES
        if BLOCK.search((DOCS / page).read_text())
    ],
)
def test_page_works(
    page: str,
    template: Path,
    tmp_path: Path,
    client: Client,
    type_command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    typed = ""
    written = []
    for language, title, text in read_blocks(page):
        if language == "sh" and title:
            assert title in NOT_RUN
            typed += text
            for words, _ in read_commands(text):
                if words[0] == "daskpipe":
                    command, rest = find_command(words[1:])
                    command.make_context("daskpipe", rest)  # raises for what it does not know
        elif language == "sh":
            typed += text
            for words, file in read_commands(text):
                if words[0] != "daskpipe":
                    subprocess.run(["bash", "-euc", shlex.join(words)], check=True)
                    continue
                verb, *rest = [part for word in words[1:] for part in (sorted(glob.glob(word)) or [word])]
                extra = list(SHORTER.get(verb, ()))
                command, _ = find_command(words[1:])
                if verb != "plan" and any("--cluster" in parameter.opts for parameter in command.params):
                    extra += ["--cluster", str(client.scheduler.address)]
                answer = type_command(verb, *rest, *extra)
                assert answer.code in ANSWERS.get(verb, (0,)), (words, answer.out, answer.err)
                if file:
                    Path(file).write_text(answer.out)
        elif title.startswith(("a line of ", "an entry of ")):
            add_to_table(title, text, monkeypatch)
        elif language == "python" and title:
            add_source(title, text, monkeypatch)
            if "/" not in title:  # a program of the user's
                Path(title).write_text(text)
        elif language == "python":
            exec(compile(text, f"{page}, python", "exec"), names)
        elif language in ("yaml", "toml"):
            assert title, "a block of a file is titled with its name"
            (yaml.safe_load if language == "yaml" else tomllib.loads)(text)
            Path(title).write_text(text)
            written.append(title)
        else:
            assert language == "text", f"no test knows what to do with a block of {language}"
    for name in written:
        assert name in typed or name == "pyproject.toml", f"{page} shows {name} and does not use it"


@pytest.mark.slow
def test_contributing_debugs_a_run_and_a_unit(tmp_path: Path) -> None:
    """Its scripts run as they stand, in one process, and the second one computes the removed unit again."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    run, unit = (block for language, _, block in find_blocks(text) if language == "python")
    (copy,) = (block for language, _, block in find_blocks(text) if language == "sh" and block.startswith("cp "))
    (tmp_path / "debug_run.py").write_text(run)
    (tmp_path / "debug_unit.py").write_text(unit)

    def type_words(*words: str) -> None:
        subprocess.run(words, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})

    type_words(sys.executable, "debug_run.py")
    (tmp_path / "runs").mkdir()
    (tmp_path / "debug").rename(tmp_path / "runs" / "quickstart")
    type_words("bash", "-euc", copy)
    units = len(list((tmp_path / "one" / "units" / "label").glob("*/*/manifest.json")))
    type_words(sys.executable, "debug_unit.py")
    assert len(list((tmp_path / "one" / "units" / "label").glob("*/*/manifest.json"))) == units + 1
    whole = files_of(tmp_path / "runs" / "quickstart" / "dataset.zarr")
    assert files_of(tmp_path / "one" / "dataset.zarr") == whole


def test_contributing_names_files_that_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    names = re.findall(r"`?((?:tests|benchmarks|docs|daskpipe)/[\w./-]+)", text)
    assert len(names) > 10
    assert [name for name in names if not (ROOT / name).exists()] == []


def block_of(page: str, name: str, folder: Path) -> str:
    """Write the block of a page with the title `name` into a folder; return the path of the file."""
    (text,) = [text for _, title, text in read_blocks(page) if title == name]
    (folder / name).write_text(text)
    return str(folder / name)


def test_example_of_a_config_says_what_it_seems_to_say(tmp_path: Path) -> None:
    loaded = load_config(block_of("how-to/config.md", "my.yaml", tmp_path))
    assert loaded.explore.potential.params["model"] == "my.model"
    assert loaded.name == "mine"
    assert loaded.explore.dynamics is not None
    assert loaded.explore.dynamics.temperatures == [300, 900]
    assert loaded.select.n == 200


def test_example_of_exploration_says_what_it_seems_to_say(tmp_path: Path) -> None:
    explore = load_config(block_of("how-to/explore.md", "explore.yaml", tmp_path)).explore
    assert explore.dynamics is not None
    assert explore.dynamics.ensemble == "auto"
    assert explore.dynamics.ensembles == {"surface": "nvt_rescale"}
    assert explore.monte_carlo is not None
    assert explore.monte_carlo.swaps == 10
    assert explore.guards.on_stop == "retry"
    assert explore.repulsion == "zbl"


def test_example_of_a_site_says_what_it_seems_to_say(tmp_path: Path) -> None:
    site = read_site(block_of("how-to/slurm.md", "fram.yaml", tmp_path))
    assert site.name == "fram"
    assert {name: pool.n_processes for name, pool in site.pools.items()} == {"cpu": 32, "gpu": 4}


def test_pages_are_in_the_menu() -> None:
    """What mkdocs checks too, but only when it builds."""
    menu = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    assert sorted({*re.findall(r": ([\w/-]+\.md)$", menu, re.MULTILINE)} - set(generated_pages())) == PAGES


def generated_pages() -> dict[str, Callable[[], str]]:
    """Return the pages that the hooks of mkdocs write."""
    sys.path.insert(0, str(DOCS))
    try:
        import hooks
    finally:
        sys.path.remove(str(DOCS))
    return dict(hooks.PAGES)


def test_reference_names_every_command_and_option() -> None:
    page = generated_pages()["reference/commands.md"]()
    root = typer.main.get_command(app)
    assert len(root.commands) > 15
    for verb, command in root.commands.items():
        assert f"## daskpipe {verb}\n" in page
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert max(parameter.opts, key=len) in page


def test_reference_names_every_config_key() -> None:
    from daskpipe.config.models import Config

    page = generated_pages()["reference/config.md"]()

    def check(prefix: str, model: Any) -> None:
        for key, field in model.model_fields.items():
            assert f"| `{prefix}{key}` |" in page or f"\n## {key}\n" in page, f"{prefix}{key}"
            if hasattr(field.annotation, "model_fields"):
                check(f"{prefix}{key}.", field.annotation)

    check("", Config)


def test_reference_names_every_name_and_variable() -> None:
    from daskpipe.core.variables import VARIABLES
    from daskpipe.potentials import POTENTIALS
    from daskpipe.stages.generate import GENERATORS

    pages = generated_pages()
    for registry in (POTENTIALS, GENERATORS):
        for name in registry.table:
            assert f"\n### {name}\n" in pages["reference/names.md"]()
    for name in VARIABLES:
        assert f"| `{name}` |" in pages["reference/variables.md"]()


@pytest.mark.slow
def test_built_pages_load_nothing_from_the_network(tmp_path: Path) -> None:
    """Build them as `.ci/run` does: warnings are errors; then look at what each page asks for."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        text = page.read_text()
        fetched = re.findall(r"<(?:script|img|iframe)\b[^>]*\bsrc=\"?([^\"\s>]+)", text)
        fetched += re.findall(r"<link\b[^>]*\brel=\"?(?:stylesheet|preconnect|icon)\"?[^>]*\bhref=\"?([^\"\s>]+)", text)
        assert fetched
        assert not [url for url in fetched if re.match(r"(https?:)?//", url)], page
    assert "daskpipe" in (tmp_path / "site" / "search" / "search_index.js").read_text()
