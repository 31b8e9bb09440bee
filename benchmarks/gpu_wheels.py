"""Carry wheels to a machine with a GPU and without a network: download and split them, then join and install them.

Here:   python benchmarks/gpu.py --wheels FOLDER [--installed FILE]
There:  python gpu_wheels.py FOLDER

FILE is what ``pip freeze`` prints there: what is installed is left out, torch and CUDA above all, which take gigabytes;
the rest is chosen to fit these versions. Without FILE everything is downloaded. Python must have the same version here
and there, and both must run Linux on x86-64. FOLDER/wheels.txt lists names, sizes and SHA-256 sums, and this file is
copied beside it, which needs nothing but Python.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent

MIB = 2**20

LARGEST_PART = 64 * MIB
"""Bytes of the largest file that is to be carried."""

REQUIREMENTS = (f"{ROOT}[cueq,fast]", "cuequivariance-ops-torch-cu13", "symmetrix-xl-cuda13-sm90", "pytest")
"""daskpipe, and what its extras take on a Hopper chip with CUDA 13, which is no dependency of daskpipe."""

LIST = "wheels.txt"


def download_wheels(folder: Path, installed: Path | None, requirements: Sequence[str] = REQUIREMENTS) -> str:
    """Download wheels with all they need, build those that have none, split the large ones, and list them.

    Parameters
    ----------
    folder
        Folder for the wheels; made if it is missing.
    installed
        Requirements file of what the other machine has; left out.
    requirements
        Requirements, or folders of projects.

    Returns
    -------
    str
        Text of the list.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as work:
        report, constraints = Path(work, "report.json"), Path(work, "constraints.txt")
        pinned = read_pinned(installed.read_text()) if installed else {}
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in pinned.items()))
        resolve = ["install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report)]
        subprocess.run([*pip, *resolve, "--constraint", str(constraints), *requirements], check=True)
        chosen = []
        for entry in json.loads(report.read_text())["install"]:
            name, version = normalise(entry["metadata"]["name"]), entry["metadata"]["version"]
            if name not in pinned:
                project = entry["download_info"].get("dir_info") is not None
                chosen.append(str(ROOT) if project else f"{name}=={version}")
        if chosen:
            subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), *chosen], check=True)
    text = list_wheels(folder)
    (folder / LIST).write_text(text)
    for path in sorted(folder.glob("*.whl")):
        if path.stat().st_size > LARGEST_PART:
            split_file(path)
    shutil.copy(__file__, folder)
    return text


def read_pinned(frozen: str) -> dict[str, str]:
    """Return the versions by name that ``pip freeze`` prints, without local parts such as ``+cu130``.

    Examples
    --------
    >>> read_pinned("torch==2.11.0+cu130\\nother @ file:///other\\nPyYAML==6.0")
    {'torch': '2.11.0', 'pyyaml': '6.0'}
    """
    pairs = re.findall(r"^([\w.-]+)==([^\s+]+)", frozen, flags=re.MULTILINE)
    return {normalise(name): version for name, version in pairs}


def normalise(name: str) -> str:
    """Return the name of a package as all its spellings are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def list_wheels(folder: Path) -> str:
    """Return a line for each wheel: SHA-256 sum, size in bytes and name."""
    return "".join(
        f"{compute_sum(path)} {path.stat().st_size:>12} {path.name}\n" for path in sorted(folder.glob("*.whl"))
    )


def compute_sum(path: Path) -> str:
    """Return the SHA-256 sum of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split_file(path: Path, size: int = LARGEST_PART) -> list[Path]:
    """Replace a file by numbered parts of at most `size` bytes, and return them."""
    parts: list[Path] = []
    with path.open("rb") as file:
        while content := file.read(size):
            parts.append(path.with_name(f"{path.name}.{len(parts) + 1:03}"))
            parts[-1].write_bytes(content)
    path.unlink()
    return parts


def join_files(folder: Path) -> list[Path]:
    """Join the parts of all wheels of a folder, check the sums, and return the wheels.

    Raises
    ------
    ValueError
        If a wheel is missing or has another sum than in the list; its parts are kept.
    """
    wheels = []
    for line in (folder / LIST).read_text().splitlines():
        expected, _, name = line.split()
        path = folder / name
        parts = sorted(folder.glob(f"{name}.[0-9]*"))
        if parts:
            with path.open("wb") as whole:
                for part in parts:
                    whole.write(part.read_bytes())
        if not path.exists() or compute_sum(path) != expected:
            raise ValueError(
                f"{path} is {'not as it was downloaded' if path.exists() else 'missing'} ({len(parts)} parts are "
                f"here); carry it, or all of its parts, again"
            )
        for part in parts:
            part.unlink()
        wheels.append(path)
    return wheels


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    joined = join_files(Path(sys.argv[1]))
    print("pip install --no-index --no-deps", *joined)
