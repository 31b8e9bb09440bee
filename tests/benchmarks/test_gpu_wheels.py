"""Wheels are split, carried and joined, and what changed on the way is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import gpu_wheels
import numpy
import pytest

SIZE = 10
"""Bytes of a part."""

FITTING = {"pluggy": "1.999", "iniconfig": "2.0", "packaging": "99.0", "Pygments": "2.999"}
"""Versions with which pytest is content."""


def make_wheel(folder: Path, name: str, version: str = "1.0") -> Path:
    """Write a wheel without content."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def carried(tmp_path: Path) -> Path:
    """Folder with a list, a wheel of 25 bytes in three parts, and a small one."""
    (tmp_path / "large.whl").write_bytes(bytes(range(25)))
    (tmp_path / "small.whl").write_bytes(b"1234")
    (tmp_path / gpu_wheels.LIST).write_text(gpu_wheels.list_wheels(tmp_path))
    gpu_wheels.split_file(tmp_path / "large.whl", SIZE)
    return tmp_path


def test_parts(carried: Path) -> None:
    assert {path.name: path.stat().st_size for path in carried.glob("large*")} == {
        "large.whl.001": SIZE,
        "large.whl.002": SIZE,
        "large.whl.003": 5,
    }


def test_joined(carried: Path) -> None:
    assert [path.name for path in gpu_wheels.join_files(carried)] == ["large.whl", "small.whl"]
    assert (carried / "large.whl").read_bytes() == bytes(range(25))
    assert not list(carried.glob("*.00?"))
    assert len(gpu_wheels.join_files(carried)) == 2  # again


@pytest.mark.parametrize(("part", "remaining"), [("large.whl.002", 2), ("large.whl.003", 2)])
def test_a_missing_part(part: str, remaining: int, carried: Path) -> None:
    (carried / part).unlink()
    with pytest.raises(ValueError, match=f"not as it was downloaded \\({remaining} parts are here\\); carry it"):
        gpu_wheels.join_files(carried)
    assert len(list(carried.glob("large.whl.00?"))) == remaining


def test_a_missing_wheel(carried: Path) -> None:
    (carried / "small.whl").unlink()
    with pytest.raises(ValueError, match="small.whl is missing"):
        gpu_wheels.join_files(carried)


def test_versions_of_pip_freeze() -> None:
    assert gpu_wheels.read_pinned("torch==2.11.0+cu130\n-e .\nx @ file:///x\nPy_YAML==6.0\n") == {
        "torch": "2.11.0",
        "py-yaml": "6.0",
    }


def test_what_is_missing() -> None:
    everything = gpu_wheels.list_missing({})
    assert {"daskpipe", "torch", "cuequivariance-torch", "symmetrix-xl", "pytest"} <= everything.keys()
    assert "pyscf" not in everything  # of another extra
    fewer = gpu_wheels.list_missing({"torch": "2.11.0", "numpy": "1.0"})
    assert {name for name in everything if name.startswith("nvidia-")} - fewer.keys()
    assert "torch" not in fewer
    assert fewer["numpy"] == numpy.__version__  # the one there is too old


def test_downloaded_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, folder, installed = tmp_path / "index", tmp_path / "wheels", tmp_path / "installed.txt"
    monkeypatch.setattr(gpu_wheels, "LARGEST_PART", make_wheel(index, "backend").stat().st_size - 1)
    make_wheel(index, "pytest", version=pytest.__version__)
    monkeypatch.setattr(gpu_wheels, "NEEDED", ("pytest",))
    monkeypatch.setattr(gpu_wheels, "ON_HOPPER", {"backend": "numpy"})
    make_wheel(index, "backend", version=numpy.__version__)
    installed.write_text("".join(f"{name}=={version}+local\n" for name, version in FITTING.items()))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    text = gpu_wheels.download_wheels(folder, installed)
    assert [line.split()[2].split("-")[0] for line in text.splitlines()] == ["backend", "pytest"]
    assert (folder / gpu_wheels.LIST).read_text() == text
    assert (folder / "gpu_wheels.py").exists()
    assert len(list(folder.glob("backend*"))) == 2
    assert len(gpu_wheels.join_files(folder)) == 2
