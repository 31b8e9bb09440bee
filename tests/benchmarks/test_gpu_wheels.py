"""Wheels are split, carried and joined, and what changed on the way is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import gpu_wheels
import pytest

SIZE = 10
"""Bytes of a part."""


def make_wheel(folder: Path, name: str, needs: str = "") -> Path:
    """Write a wheel without content."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
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


def test_what_is_installed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, folder, installed = tmp_path / "index", tmp_path / "wheels", tmp_path / "installed.txt"
    make_wheel(index, "wanted", needs="Requires-Dist: needed\nRequires-Dist: present\n")
    for name in ("needed", "present"):
        make_wheel(index, name)
    installed.write_text("present==1.0+local\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr(gpu_wheels, "LARGEST_PART", make_wheel(index, "needed").stat().st_size)
    text = gpu_wheels.download_wheels(folder, installed, ["wanted"])
    names = [line.split()[2] for line in text.splitlines()]
    assert names == ["needed-1.0-py3-none-any.whl", "wanted-1.0-py3-none-any.whl"]
    assert (folder / gpu_wheels.LIST).read_text() == text
    assert (folder / "gpu_wheels.py").exists()
    assert len(gpu_wheels.join_files(folder)) == 2
