import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from ase.build import bulk, molecule
from ase.io import write

from daskpipe.config.load import load_config
from daskpipe.config.proposal import KINDS, propose_config
from daskpipe.core.errors import ConfigError

CRYSTAL_KINDS = ["bulk", "alloys", "defects", "surfaces", "clusters", "reference"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def sources_of(path) -> dict:
    return yaml.safe_load(Path(path).read_text())["generate"]["sources"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("texts", "kinds", "generators", "explorer"),
    [
        (["CuAu"], None, ["formula", "alloys", "defects", "surfaces", "clusters", "reference"], "mace"),
        (["MgO"], None, ["formula", "defects", "surfaces", "reference"], "chgnet"),
        (["SiO2"], ["amorphous"], ["amorphous"], "chgnet"),
        (["MoS2"], ["2d"], ["surfaces"], "chgnet"),
        (["C"], ["2d"], ["covalent"], "chgnet"),
        (["Pt", "CO"], ["adsorbates"], ["adsorbates"], "chgnet"),
        (["Pt"], ["adsorbates"], ["adsorbates"], "chgnet"),
        (["CCO", "H2O"], None, ["molecules", "molecular_clusters"], "xtb"),
        (["CCO", "O"], ["liquid"], ["liquids"], "xtb"),
        (["MgO", "CaO"], ["bulk"], ["formula", "formula"], "chgnet"),
    ],
)
def test_a_proposal_is_a_config_with_reasons(texts, kinds, generators, explorer):
    proposal = propose_config(texts, kinds=kinds)
    assert proposal.path == Path("_".join(texts) + ".yaml")
    config = load_config(str(proposal.path))
    assert [source.generator for source in config.generate.sources.values()] == generators
    assert config.explore.potential.name == explorer
    assert sum(source.n or 0 for source in config.generate.sources.values() if source.share) in (0, config.generate.n)
    text = proposal.path.read_text()
    assert max(map(len, text.splitlines())) <= 160
    for line in proposal.lines:
        assert line.endswith(".")
    assert f"# Made by: daskpipe new {' '.join(texts)}" in text


def test_an_editor_finds_the_schema_and_agrees(folder):
    path = propose_config(["CuAu"]).path
    first, *_ = path.read_text().splitlines()
    schema = json.loads(Path(first.removeprefix("# yaml-language-server: $schema=")).read_text())
    content = yaml.safe_load(path.read_text())
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "explor": {}}, schema)


def test_temperatures_are_shares_of_the_melting_point():
    dynamics = load_config(str(propose_config(["MgO"]).path)).explore.dynamics
    assert dynamics.temperatures == [800, 1900, 3450]
    assert dynamics.temperatures_by_type == {"surface": [800, 1550]}
    assert "# 1 fs with O, the lightest element" in Path("MgO.yaml").read_text()


def test_a_file_is_taken_as_it_is_and_changed():
    write("cell.cif", bulk("NaCl", "rocksalt", a=5.64, cubic=True))
    config = load_config(str(propose_config(["cell.cif"], "mine.yaml").path))
    assert config.generate.paths == [str(Path("cell.cif").absolute())]
    assert config.name == "cell"
    assert [source.generator for source in config.generate.sources.values()] == [
        "perturb",
        "defects",
        "surfaces",
        "reference",
    ]


def test_a_file_of_molecules_is_displaced():
    write("few.xyz", [molecule("H2O"), molecule("CH4")])
    (source,) = sources_of(propose_config(["few.xyz"]).path).values()
    assert (source["generator"], source["kinds"]) == ("perturb", ["rattle"])


def test_molecules_of_crystals_and_smiles_stay_apart():
    sources = sources_of(propose_config(["Cu", "CO"]).path)
    assert sources["adsorbates"]["names"] == ["CO"]
    assert sources["bulk"]["formula"] == "Cu"


@pytest.mark.parametrize(
    ("texts", "kinds", "message"),
    [
        ([], None, "nothing to make a config for; type e.g. daskpipe new MgO"),
        (["Cu"], [], "--kinds is empty; choose of bulk"),
        (["Cu"], ["bluk"], "unknown kind 'bluk'. Did you mean 'bulk'"),
        (["Cu"], ["molecules"], "kind 'molecules' needs a molecule, e.g. CCO or H2O"),
        (["CCO"], ["surfaces"], "kind 'surfaces' needs a crystal, e.g. MgO or my.cif"),
        (
            ["Cu"],
            ["alloys"],
            r"kind 'alloys': an alloy needs two metals or more, and there is Cu; choose other --kinds",
        ),
        (["MgO"], ["clusters"], "kind 'clusters': clusters are made of metals; there is none"),
        (["NaCl"], ["2d"], "kind '2d': no likely crystal of NaCl has layers"),
        (["Mg7Al3Fe5"], None, "none of the known structure types has the stoichiometry of Mg7Al3Fe5"),
        (["AmO2"], None, "no potential here computes Am, O: mace does not know Am, O; chgnet does not know Am"),
    ],
)
def test_what_cannot_be_is_refused_before_a_file_is_written(texts, kinds, message, folder):
    with pytest.raises(ConfigError, match=message):
        propose_config(texts, kinds=kinds)
    assert not list(folder.glob("*.yaml"))


def test_a_file_is_not_replaced_unasked():
    propose_config(["CuAu"])
    with pytest.raises(ConfigError, match="CuAu.yaml exists; give another name, or --force"):
        propose_config(["CuAu"])
    propose_config(["CuAu"], kinds=["bulk"], force=True)
    assert list(sources_of("CuAu.yaml")) == ["bulk"]
    with pytest.raises(ConfigError, match="CuAu.txt is no name of a config; give -o NAME.yaml"):
        propose_config(["CuAu"], "CuAu.txt")


def test_every_kind_is_made_of_something():
    texts = {"crystals": ["CuAu"], "molecules": ["H2O"]}
    for name, kind in KINDS.items():
        if name != "2d":
            chosen = load_config(str(propose_config(texts[kind.needs], kinds=[name], force=True).path))
            assert chosen.generate.sources, name


def test_the_verb_writes_the_file_and_says_what_is_next():
    command = [sys.executable, "-m", "daskpipe", "new", "CuAu", "--kinds", "bulk, clusters", "-o", "mine.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "CuAu is a chemical formula: crystals of Cu, Au." in done.stdout
    assert done.stdout.endswith(
        "wrote mine.yaml\ndaskpipe plan mine.yaml --probe  # what it costs\ndaskpipe run mine.yaml\n"
    )
    assert list(sources_of("mine.yaml")) == ["bulk", "clusters"]
