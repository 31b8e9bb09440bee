from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from daskpipe.core.errors import ConfigError
from daskpipe.potentials import (
    POTENTIALS,
    Failure,
    Traits,
    build_potential,
    describe_potential,
    evaluate,
    identify_potential,
    list_packages,
    traits_of,
)
from daskpipe.potentials import emt as emt_module
from daskpipe.potentials.catalogue import make_paths_absolute

SHA256_HEX = 64


def test_names() -> None:
    assert POTENTIALS.known_names() == sorted(POTENTIALS.table)
    assert {"ase", "chgnet", "committee", "cp2k", "diep", "emt", "lj", "mace", "pyscf", "xtb"} < set(POTENTIALS.table)


def test_importing_the_package_imports_no_library() -> None:
    code = "import sys, daskpipe.potentials; print({'torch', 'ase', 'mace', 'torch_sim', 'chgnet'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["chgnet", "emt", "lj", "mace", "xtb"])
def test_identity_is_light_and_stable(name: str) -> None:
    code = (
        "import sys; from daskpipe.potentials import identify_potential;"
        f"print(identify_potential({name!r}, {{}}).hash);"
        "print({'torch', 'mace', 'torch_sim'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = identify_potential(name, {})
    assert done.stdout.split() == [found.hash, "set()"]
    assert len(found.hash) == SHA256_HEX
    assert found.name
    assert found.elements is None or "Cu" in found.elements


def test_identity_depends_on_parameters() -> None:
    assert identify_potential("lj", {}) == identify_potential("lj", {"sigma": 3.4})
    assert identify_potential("lj", {}).hash != identify_potential("lj", {"sigma": 3.5}).hash
    assert identify_potential("xtb", {"method": "GFN1-xTB"}).hash != identify_potential("xtb", {}).hash
    assert identify_potential("chgnet", {"version": "0.2.0"}).hash != identify_potential("chgnet", {}).hash
    assert identify_potential("chgnet", {}).name == "CHGNet 0.3.0"


def test_built_once() -> None:
    first = build_potential("emt", {}, "cpu", "float64")
    assert build_potential("emt", {}, "cpu", "float64") is first
    assert build_potential("lj", {}, "cpu", "float64") is build_potential("lj", {"sigma": 3.4}, "cpu", "float64")
    assert build_potential("lj", {}, "cpu", "float32") is not build_potential("lj", {}, "cpu", "float64")


def test_a_potential_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="never pickled: send its name and parameters"):
        pickle.dumps(build_potential("emt", {}, "cpu", "float64"))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        (
            "mcae",
            {},
            r"unknown potential 'mcae'\. Did you mean 'mace'\? Known: ase, chgnet, committee, cp2k",
        ),
        ("lj", {"sigmma": 1.0}, r"potential 'lj': unknown parameter 'sigmma'\. Did you mean 'sigma'\? Known: epsilon"),
        ("lj", {"sigma": -1.0}, r"potential 'lj': sigma: Input should be greater than 0, received -1\.0"),
        ("xtb", {"method": "GFN3"}, r"method: Input should be 'GFN1-xTB' or 'GFN2-xTB', received 'GFN3'"),
    ],
)
def test_wrong_config(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        identify_potential(name, params)
    with pytest.raises(ConfigError, match=message):
        build_potential(name, params, "cpu")


def test_wrong_device_and_dtype() -> None:
    with pytest.raises(ConfigError, match=r"unknown device 'gpu'\. Did you mean 'cpu'\? Known: auto, cpu, cuda"):
        build_potential("emt", {}, "gpu")
    with pytest.raises(ConfigError, match=r"unknown dtype 'float16'\. .*Known: float32, float64"):
        build_potential("emt", {}, "cpu", "float16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="torch sees no CUDA device in this process; give device=auto or device=cpu"):
        build_potential("emt", {}, "cuda")
    assert build_potential("lj", {}, "auto", "float64") is build_potential("lj", {}, "cpu", "float64")


def test_unknown_element_is_the_structures_failure(make) -> None:
    strange = make("alloy")
    strange.symbols[0] = "Fe"
    good, bad = evaluate(build_potential("emt", {}, "cpu", "float64"), [make("alloy"), strange])
    assert not isinstance(good, Failure)
    assert bad == Failure(reason="unknown_element", evidence="Fe not among Ag Al Au Cu Ni Pd Pt")


def test_a_plugin_is_found_built_and_identified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dq_plugin.py").write_text(
        "from daskpipe.potentials import Potential\n"
        "def zero(*, device: str, dtype: str, shift: float = 0.0) -> Potential:\n"
        "    from ase.calculators.lj import LennardJones\n"
        "    return Potential(calculator=LennardJones())\n"
    )
    info = tmp_path / "dq_plugin-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dq-plugin\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text("[daskpipe.potentials]\nzero = dq_plugin:zero\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "zero" in POTENTIALS.known_names()
    assert build_potential("zero", {}, "cpu") is build_potential("zero", {"shift": 0.0}, "cpu")
    assert identify_potential("zero", {}).name == "zero"
    assert identify_potential("zero", {}).hash != identify_potential("zero", {"shift": 1.0}).hash
    with pytest.raises(ConfigError, match=r"unknown parameter 'shfit'\. Did you mean 'shift'"):
        identify_potential("zero", {"shfit": 1.0})


# --- facts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(POTENTIALS.table))
def test_each_potential_has_a_sentence_for_people(name: str) -> None:
    sentence = describe_potential(name)
    assert sentence.endswith(".")
    assert "doi" not in sentence


def test_packages_are_those_that_the_potentials_state() -> None:
    assert list_packages() == ["ase", "torch-sim-atomistic", "mace-torch", "chgnet", "tblite", "diep", "pyscf"]
    assert traits_of("committee") == Traits(members="members", measures_disagreement=True)


@pytest.mark.parametrize(("extra", "typed"), [(None, "no-such-package"), ("heavy", r"'daskpipe\[heavy\]'")])
def test_a_missing_package_is_named_with_what_to_type(
    extra: str | None, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emt_module, "TRAITS", Traits(packages=("ase", "no-such-package"), extra=extra))
    with pytest.raises(ConfigError, match=rf"'emt' needs the package no-such-package; pip install {typed}$"):
        identify_potential("emt", {})


def test_paths_of_model_files_become_absolute_in_members_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.model").touch()
    params = {"model": "own.model", "head": "pbe"}
    absolute = {"model": str(tmp_path / "own.model"), "head": "pbe"}
    assert make_paths_absolute("mace", params) == absolute
    assert make_paths_absolute("mace", {"model": "bundled"}) == {"model": "bundled"}, "which is no file"
    members = [{"name": "mace", "params": params}, {"name": "emt"}]
    assert make_paths_absolute("committee", {"members": members}) == {
        "members": [{"name": "mace", "params": absolute}, {"name": "emt"}]
    }
    assert params["model"] == "own.model", "what was given is left alone"
