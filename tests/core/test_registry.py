import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
from pydantic import ValidationError

from daskpipe.core.errors import ConfigError, describe_unknown
from daskpipe.core.registry import Registry


def alloy(
    *, rng: np.random.Generator, elements: list[str], lattice: Literal["fcc", "bcc"] = "fcc", n: int = 4
) -> Iterator[str]:
    for _ in range(n):
        yield f"{lattice} {rng.choice(elements)}"


def registry() -> Registry:
    table = {"alloys": f"{__name__}:alloy", "missing": "daskpipe.no_such_module:f"}
    return Registry("generator", table, group="daskpipe.generators", given=("rng",))


def test_a_name_gives_its_function():
    assert registry().get("alloys") is alloy
    assert registry().known_names() == ["alloys", "missing"]


def test_nothing_is_imported_before_it_is_asked_for():
    code = textwrap.dedent(
        """
        import sys
        from daskpipe.core.registry import Registry
        table = {"gzip": "gzip:compress", "bz2": "bz2:compress"}
        before = set(sys.modules) & {"gzip", "bz2"}
        registry = Registry("codec", {name: target for name, target in table.items()}, group="g", given=())
        assert registry.known_names() == ["bz2", "gzip"]
        assert set(sys.modules) & {"gzip", "bz2"} == before
        assert registry.get("gzip").__module__ == "gzip"
        """
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown generator 'aloys'. Did you mean 'alloys'\? Known: alloys, missing"):
        registry().get("aloys")
    with pytest.raises(ConfigError, match=r"unknown generator 'zzz'. Known: alloys, missing."):
        registry().get("zzz")
    with pytest.raises(ModuleNotFoundError, match=r"daskpipe.no_such_module"):
        registry().get("missing")
    assert describe_unknown("generator", "x", []) == "unknown generator 'x'. Known: none."


def test_parameters_are_checked_against_the_signature_and_filled():
    assert registry().check_params("alloys", {"elements": ["Cu"]}) == {"elements": ["Cu"], "lattice": "fcc", "n": 4}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, r"elements\n  Field required"),
        ({"elements": ["Cu"], "latice": "fcc"}, r"latice\n  Extra inputs are not permitted"),
        ({"elements": ["Cu"], "lattice": "hcp"}, r"lattice\n  Input should be 'fcc' or 'bcc'"),
        ({"elements": ["Cu"], "n": "many"}, r"n\n  Input should be a valid integer"),
        ({"elements": ["Cu"], "rng": 0}, r"rng\n  Extra inputs are not permitted"),  # daskpipe gives it, not the user
    ],
)
def test_wrong_parameters(params, message):
    with pytest.raises(ValidationError, match=message):
        registry().check_params("alloys", params)


def test_another_package_adds_names_but_takes_none_over(tmp_path, monkeypatch):
    (tmp_path / "lego.py").write_text("def bricks(*, rng, n: int = 2):\n    yield from range(n)\n")
    metadata = tmp_path / "lego-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lego\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[daskpipe.generators]\nbricks = lego:bricks\nalloys = lego:bricks\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert registry().known_names() == ["alloys", "bricks", "missing"]
    assert list(registry().get("bricks")(rng=None)) == [0, 1]
    assert registry().check_params("bricks", {}) == {"n": 2}
    assert registry().get("alloys") is alloy
