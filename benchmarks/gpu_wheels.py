"""Carry wheels to a machine with a GPU and without a network: download and split them, then join and install them.

Here:   python benchmarks/gpu.py --wheels FOLDER [--installed FILE]
There:  python gpu_wheels.py FOLDER

What daskpipe needs is read from the environment here, in which `NEEDED` must be installed; the
wheels are of the versions here. FILE is what ``pip freeze`` prints there: what is installed there and fits is left out,
torch and CUDA above all, which take gigabytes. Without FILE everything is downloaded. Python must have the same version
here and there, and both must run Linux on x86-64. FOLDER/wheels.txt lists SHA-256 sums, sizes and names. This file is
copied beside it; there it needs nothing but Python.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).parent.parent

MIB = 2**20

LARGEST_PART = 64 * MIB
"""Bytes of the largest file that is to be carried."""

NEEDED = ("daskpipe[cueq]", "symmetrix-xl", "pytest", "pytest-timeout", "pytest-xdist", "hypothesis")

ON_HOPPER = {
    "cuequivariance-ops-torch-cu13": "cuequivariance-torch",
    "cuequivariance-ops-cu13": "cuequivariance-torch",
    "symmetrix-xl-cuda13-sm90": "symmetrix-xl",
}
"""Packages that the extras take on a Hopper chip with CUDA 13, and those here whose versions they must have."""

LIST = "wheels.txt"


def download_wheels(folder: Path, installed: Path | None) -> str:
    """Download wheels, build those that have none, split the large ones, and list them.

    Parameters
    ----------
    folder
        Folder for the wheels; made if it is missing.
    installed
        Requirements file of what the other machine has.

    Returns
    -------
    str
        Text of the list.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = read_pinned(installed.read_text()) if installed else {}
    missing = list_missing(there)
    missing |= {name: distribution(partner).version for name, partner in ON_HOPPER.items() if name not in there}
    wanted = [str(ROOT) if name == "daskpipe" else f"{name}=={version}" for name, version in sorted(missing.items())]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    if wanted:
        subprocess.run([*pip, "--wheel-dir", str(folder), *wanted], check=True)
    text = list_wheels(folder)
    (folder / LIST).write_text(text)
    for path in sorted(folder.glob("*.whl")):
        if path.stat().st_size > LARGEST_PART:
            split_file(path, LARGEST_PART)
    shutil.copy(__file__, folder)
    return text


def list_missing(there: Mapping[str, str]) -> dict[str, str]:
    """Return versions by name of what `NEEDED` needs here, without what another machine has and what that needs.

    Parameters
    ----------
    there
        Versions by name of what the other machine has.
    """
    from packaging.requirements import Requirement  # not needed on the other machine

    missing: dict[str, str] = {}
    waiting, seen = [Requirement(text) for text in NEEDED], set()
    while waiting:
        requirement = waiting.pop()
        name = normalise(requirement.name)
        fits = name in there and requirement.specifier.contains(there[name], prereleases=True)
        if fits or (name, *sorted(requirement.extras)) in seen:
            continue
        seen.add((name, *sorted(requirement.extras)))
        own = distribution(name)
        missing[name] = own.version
        extras = requirement.extras or {""}
        waiting += [
            needed
            for needed in map(Requirement, own.requires or [])
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras)
        ]
    return missing


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


def split_file(path: Path, size: int) -> list[Path]:
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
