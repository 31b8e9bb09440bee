"""Outputs that take the place of older ones: never is the older one gone before the newer one is whole."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daskpipe.core.errors import ConfigError, DiskError
from daskpipe.core.outputs import check_output, remove_path, replace_output, resolve_output, swap_in

OLD, NEW = "the old one", "the new one"


def write(path: Path, text: str) -> None:
    """Write a file, or by the name's ending a folder with the metadata and one chunk of a store."""
    if path.suffix == ".zarr":
        (path / "c").mkdir(parents=True)
        (path / "zarr.json").write_text(text)
        (path / "c" / "0").write_text(text)
    else:
        path.write_text(text)


def read(path: Path) -> str:
    """Return what `write` has written, if it is whole."""
    if not path.is_dir():
        return path.read_text()
    texts = {path.joinpath(name).read_text() for name in ("zarr.json", "c/0")}
    assert len(texts) == 1, "half of it is another one's"
    return texts.pop()


def place(folder: Path, kind: str, suffix: str) -> tuple[Path, Path]:
    """Return an output, where something is already, and what it really is."""
    real = folder / f"real{suffix}"
    write(real, OLD)
    if kind == "itself":
        return real, real
    elsewhere = folder / "scratch"
    elsewhere.mkdir()
    os.rename(real, elsewhere / "store_v1")
    out = folder / f"link{suffix}"
    out.symlink_to(Path("scratch", "store_v1"))
    return out, elsewhere / "store_v1"


KINDS = pytest.mark.parametrize("kind", ["itself", "a link"])
SUFFIXES = pytest.mark.parametrize("suffix", [".zarr", ".extxyz"])


@KINDS
@SUFFIXES
def test_the_new_output_takes_the_place_of_the_old_one(tmp_path, kind, suffix):
    out, real = place(tmp_path, kind, suffix)
    check_output(out, force=True)
    with replace_output(out) as attempt:
        assert attempt.parent == real.parent, "on the same file system"
        assert attempt.suffix == suffix
        write(attempt, NEW)
        assert read(out) == OLD
    assert read(out) == read(real) == NEW
    assert out.is_symlink() == (kind == "a link")
    assert [path.name for path in real.parent.iterdir() if path.name.startswith(".")] == []


@KINDS
@SUFFIXES
def test_an_output_that_fails_leaves_the_old_one(tmp_path, kind, suffix):
    out, real = place(tmp_path, kind, suffix)

    def fail(error: Exception) -> None:
        with replace_output(out) as attempt:
            write(attempt, NEW)
            raise error

    with pytest.raises(DiskError, match=r"cannot write .*: No space left on device. Make room, or give another -o"):
        fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(ZeroDivisionError, match="of the work"):
        fail(ZeroDivisionError("of the work"))
    assert read(out) == read(real) == OLD
    assert [path.name for path in real.parent.iterdir() if path.name.startswith(".")] == []


@KINDS
def test_a_rename_that_fails_puts_the_old_one_back(tmp_path, monkeypatch, kind):
    out, real = place(tmp_path, kind, ".zarr")
    rename = os.rename

    def fail_into_place(source: Any, target: Any) -> None:
        if Path(target) == real and "replaced" not in Path(source).name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_into_place)
    with pytest.raises(OSError, match="Input/output error"), replace_output(out) as attempt:
        write(attempt, NEW)
    assert read(out) == OLD
    assert [path.name for path in real.parent.iterdir() if path.name.startswith(".")] == []


KILLED = """
import os, shutil, sys
from pathlib import Path
from daskpipe.core import outputs
from test_outputs import NEW, write

calls, dies_at = 0, int(sys.argv[2])

def counted(function):
    def call(*args, **options):
        global calls
        if calls == dies_at:
            os._exit(9)
        calls += 1
        return function(*args, **options)
    return call

os.rename, os.fsync, shutil.rmtree = map(counted, (os.rename, os.fsync, shutil.rmtree))
with outputs.replace_output(Path(sys.argv[1])) as attempt:
    write(attempt, NEW)
print(calls)
"""


def test_a_kill_at_any_moment_loses_nothing(tmp_path):
    """Before each change that is made to the disk: the old output is whole somewhere, or the new one is in place."""

    def replace(folder: Path, dies_at: int) -> subprocess.CompletedProcess[str]:
        folder.mkdir()
        write(folder / "out.zarr", OLD)
        paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        words = [sys.executable, "-c", KILLED, str(folder / "out.zarr"), str(dies_at)]
        return subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})

    n_changes = int(replace(tmp_path / "whole", -1).stdout)
    assert n_changes == 4 + 2 + 1, "files and folders that are synced, renames, and the removal of the old output"
    for dies_at in range(n_changes):
        folder = tmp_path / str(dies_at)
        done = replace(folder, dies_at)
        assert done.returncode == 9, done.stderr
        out = folder / "out.zarr"
        aside = list(folder.glob(".*-replaced"))
        if out.exists() and not aside:
            assert read(out) == OLD
        elif out.exists():
            assert read(out) == NEW
        else:
            assert [read(path) for path in aside] == [OLD]


def test_a_link_that_leads_nowhere_gets_what_it_leads_to(tmp_path):
    out = tmp_path / "link.zarr"
    out.symlink_to(tmp_path / "target.zarr")
    check_output(out, force=False)
    with replace_output(out) as attempt:
        write(attempt, NEW)
    assert out.is_symlink()
    assert read(tmp_path / "target.zarr") == NEW


WRONG: dict[str, tuple[type[Exception], str, bool, Callable[[Path], Path]]] = {
    "exists": (
        ConfigError,
        "out.zarr exists; give another name, or --force",
        False,
        lambda folder: folder / "out.zarr",
    ),
    "a link to what exists": (ConfigError, "link.zarr exists; give", False, lambda folder: folder / "link.zarr"),
    "a folder of others": (
        ConfigError,
        "home.zarr is a folder that holds 'thesis.tex' and is no Zarr store; give another name",
        True,
        lambda folder: folder / "home.zarr",
    ),
    "a folder for a file": (
        ConfigError,
        "x.extxyz is a folder; give the name of a file",
        True,
        lambda f: f / "x.extxyz",
    ),
    "a circle": (ConfigError, "a.zarr is a symbolic link that leads to itself; remove", True, lambda f: f / "a.zarr"),
    "no folder": (ConfigError, "nowhere is no folder; make it, or give", True, lambda f: f / "nowhere" / "out.zarr"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_may_not_be_replaced_is_refused_before_any_work(tmp_path, what):
    write(tmp_path / "out.zarr", OLD)
    (tmp_path / "link.zarr").symlink_to(tmp_path / "out.zarr")
    (tmp_path / "home.zarr").mkdir()
    (tmp_path / "home.zarr" / "thesis.tex").touch()
    (tmp_path / "x.extxyz").mkdir()
    (tmp_path / "a.zarr").symlink_to("b.zarr")
    (tmp_path / "b.zarr").symlink_to("a.zarr")
    kind, words, force, out_of = WRONG[what]
    with pytest.raises(kind, match=words):
        check_output(out_of(tmp_path), force=force)


def test_a_folder_takes_the_place_of_a_folder(tmp_path):
    """As that of a trained model does."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    swap_in(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "name").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_removing_a_link_leaves_what_it_leads_to(tmp_path):
    write(tmp_path / "out.zarr", OLD)
    (tmp_path / "link").symlink_to(tmp_path / "out.zarr")
    assert resolve_output(tmp_path / "link") == tmp_path / "out.zarr"
    remove_path(tmp_path / "link")
    assert read(tmp_path / "out.zarr") == OLD
    remove_path(tmp_path / "out.zarr")
    remove_path(tmp_path / "out.zarr")
    assert list(tmp_path.glob("out.zarr")) == []
