"""Layers of a config: another choice replaces keys, other keys are merged, and all overrides have one grammar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from daskpipe.cluster.connect import Cluster
from daskpipe.config.compose import CHOICES, Choice, compose, merge
from daskpipe.config.load import change_config, load_config, load_quality
from daskpipe.config.models import Teacher
from daskpipe.config.overrides import parse_overrides
from daskpipe.config.saved import from_yaml, to_yaml
from daskpipe.core.errors import ConfigError
from daskpipe.stages.describe.settings import Describe
from daskpipe.stages.select.settings import Select

NI_TI = {"Ni": [0, 1], "Ti": [0, 1]}
FRACTIONS = {"Ni": (0.0, 1.0), "Ti": (0.0, 1.0)}


def write_file(folder: Path, name: str, base: str, **content: Any) -> str:
    """Write a user's file that begins with another one."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"defaults": [base, "_self_"], **content}))
    return str(file)


def test_files_are_read_again_after_a_change_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_file(tmp_path, "mine", "emt_alloy", seed=11)
    before = compose(file, ["select.n=3"])
    assert (before["seed"], before["select"]["n"]) == (11, 3)
    with monkeypatch.context() as patch:
        patch.setattr("daskpipe.config.compose._read_layer", None)
        assert compose(file, ["select.n=4"]) == before | {"select": before["select"] | {"n": 4}}
    write_file(tmp_path, "mine", "emt_alloy", seed=1234)
    assert compose(file)["seed"] == 1234
    write_file(tmp_path, "mine", "molecules", seed=1234)
    assert compose(file) == compose("molecules") | {"seed": 1234}


def test_a_file_that_appears_beside_the_config_is_read(tmp_path: Path) -> None:
    file = write_file(tmp_path, "mine", "emt_alloy")
    assert compose(file)["seed"] != 77
    (tmp_path / "emt_alloy.yaml").write_text("seed: 77\n")
    assert compose(file)["seed"] == 77
    (tmp_path / "emt_alloy.yaml").unlink()
    assert compose(file)["seed"] != 77


# --- another choice replaces, in a file and typed ------------------------------------------------------


def type_section(section: str, content: dict[str, Any]) -> list[str]:
    """Type a section of a file as one override for each key below it."""
    texts = {key: yaml.safe_dump(value, default_flow_style=True, width=1000) for key, value in content.items()}
    return [f"{section}.{key}={text.removesuffix('...\n').strip()}" for key, text in texts.items()]


@pytest.fixture(params=["file", "overrides", "overrides backwards"])
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    """Load a preset with a section changed: by the user's file, or by what is typed, in either order."""

    def loaded(section: str, content: dict[str, Any], base: str = "quickstart") -> Any:
        if request.param == "file":
            nested: dict[str, Any] = content
            for key in reversed(section.split(".")):
                nested = {key: nested}
            return load_config(write_file(tmp_path, "mine", base, **nested))
        words = type_section(section, content)
        return load_config(base, words if request.param == "overrides" else words[::-1])

    return loaded


@pytest.mark.parametrize("stage", ["explore", "label"])
def test_another_potential_has_its_own_parameters(stage: str, loaded: Callable[..., Any]) -> None:
    base = "quickstart" if stage == "explore" else "molecules"
    config = loaded(f"{stage}.potential", {"name": "lj"}, base)
    assert getattr(config, stage).potential.params == {}
    config = loaded(f"{stage}.potential", {"name": "lj", "params": {"sigma": 3.0}}, base)
    assert getattr(config, stage).potential.params == {"sigma": 3.0}


def test_the_same_potential_is_changed(loaded: Callable[..., Any], tmp_path: Path) -> None:
    config = loaded("label.potential", {"params": {"accuracy": 0.1}}, "molecules")
    assert config.label.potential.params == {"method": "GFN2-xTB", "accuracy": 0.1}
    config = loaded("label.potential", {"name": "xtb", "params": {"accuracy": 0.1}}, "molecules")
    assert config.label.potential.params == {"method": "GFN2-xTB", "accuracy": 0.1}


def test_other_elements_replace(loaded: Callable[..., Any]) -> None:
    config = loaded("generate.sources.alloys", {"elements": {"Ni": [0, 1], "Pd": [0, 1]}})
    assert config.generate.sources.keys() == {"alloys", "surfaces", "clusters"}
    assert config.generate.sources["alloys"].params["elements"].keys() == {"Ni", "Pd"}
    assert config.generate.sources["alloys"].params["lattices"] == ["fcc", "bcc", "hcp"]
    assert config.generate.sources["clusters"].params["elements"].keys() == {"Cu", "Ag", "Au"}


def test_an_element_that_is_typed_by_itself_changes_the_set() -> None:
    config = load_config(
        "quickstart", ["generate.sources.alloys.elements.Ni=[0,1]", "~generate.sources.alloys.elements.Cu"]
    )
    assert config.generate.sources["alloys"].params["elements"].keys() == {"Ni", "Ag", "Au"}


def test_own_sources_replace_and_changes_of_sources_do_not(loaded: Callable[..., Any]) -> None:
    own = {"generator": "alloys", "n": 3, "elements": {"Ni": [0, 1], "Pd": [0, 1]}, "n_atoms": 8}
    config = loaded("generate", {"sources": {"mine": own}})
    assert config.generate.sources.keys() == {"mine"}
    config = loaded("generate", {"sources": {"mine": own, "clusters": {"n": 2}}})
    assert config.generate.sources.keys() == {"mine", "clusters"}
    assert (config.generate.sources["clusters"].generator, config.generate.sources["clusters"].n) == ("clusters", 2)
    config = loaded("generate", {"sources": {"clusters": {"n": 2}}})
    assert config.generate.sources.keys() == {"alloys", "surfaces", "clusters"}
    assert config.generate.sources["clusters"].n == 2


def test_a_source_that_is_typed_by_itself_is_one_more() -> None:
    config = load_config("emt_alloy", ["generate.sources.mine={generator: molecules, elements: [H, O], n: 2}"])
    assert config.generate.sources.keys() == {"alloys", "clusters", "mine"}


def test_another_generator_has_its_own_parameters(loaded: Callable[..., Any]) -> None:
    changes = {"generator": "clusters", "n": 2, "n_atoms": 13, "elements": {"Ni": [0, 1], "Pd": [0, 1]}}
    config = loaded("generate.sources.surfaces", changes)
    assert config.generate.sources["surfaces"].generator == "clusters"
    with pytest.raises(ConfigError, match="generate.sources.surfaces: n is missing"):
        loaded("generate.sources.surfaces", {"generator": "clusters"})


def test_another_descriptor_and_another_method_have_their_own_parameters(loaded: Callable[..., Any]) -> None:
    config = loaded("describe", {"descriptor": "mbtr", "dims": 4})
    assert (config.describe.params, config.describe.dims, config.describe.sample) == ({}, 4, 384)
    config = loaded("describe", {"params": {"r_cut": 4.0}})
    assert config.describe.params == {"r_cut": 4.0, "n_max": 6, "l_max": 4, "sigma": 0.75}


def test_a_name_that_no_file_gives_is_the_default(tmp_path: Path) -> None:
    file = write_file(tmp_path, "mine", "emt_alloy", select={"params": {"n_clusters": 3}})
    assert load_config(file).select.params == {"n_clusters": 3}
    assert load_config(file, ["select.method=random"]).select.params == {}
    assert compose(write_file(tmp_path, "other", "mine", select={"method": "kmeans"}))["select"]["params"] == {
        "n_clusters": 3
    }


def test_the_defaults_of_names_are_those_of_the_models() -> None:
    models = {"describe": Describe, "select": Select, "cluster": Cluster}
    stated = {path: choice.default for path, choice in CHOICES.items() if choice.default is not None}
    assert stated == {path: model.model_fields[CHOICES[path].key].default for path, model in models.items()}
    assert all(set(CHOICES[path].parts or ()) <= model.model_fields.keys() for path, model in models.items())


def test_another_function_of_a_tensor_has_its_own_parameters() -> None:
    config = load_config("emt_alloy", ["describe=mbtr", "describe.params.weighting.function=unity"])
    assert config.describe.params["weighting"] == {"function": "unity"}
    assert config.describe.params["grid"]["n"] == 100


def test_sets_replace_from_file_to_file(tmp_path: Path) -> None:
    base = write_file(
        tmp_path,
        "base",
        "emt_alloy",
        explore={"dynamics": {"ensembles": {"surface": "nvt_rescale", "bulk": "npt_isotropic"}}},
        store={"split": {"train": 0.6, "val": 0.2, "test": 0.2}},
    )
    assert load_config(base).explore.dynamics.ensembles == {"surface": "nvt_rescale", "bulk": "npt_isotropic"}
    file = write_file(
        tmp_path,
        "mine",
        "base",
        explore={"dynamics": {"ensembles": {"cluster": "nve"}}},
        store={"split": {"train": 0.5, "val": 0.5}},
    )
    assert load_config(file).explore.dynamics.ensembles == {"cluster": "nve"}
    assert load_config(file).explore.dynamics.steps == load_config(base).explore.dynamics.steps
    assert load_config(file).store.split == {"train": 0.5, "val": 0.5}


def test_another_cluster_has_its_own_pools(tmp_path: Path) -> None:
    pools = {"gpu": {"jobs": 3}}
    file = write_file(tmp_path, "mine", "quickstart", cluster={"name": "mysite", "pools": pools, "workers": 5})
    assert load_config(file).cluster.pools == pools
    config = load_config(file, ["cluster.name=other"])
    assert (config.cluster.name, config.cluster.pools, config.cluster.workers) == ("other", {}, 5)
    config = load_config(file, ["cluster.pools.gpu.jobs=4", "cluster.pools.cpu.jobs=1"])
    assert config.cluster.pools == {"gpu": {"jobs": 4}, "cpu": {"jobs": 1}}
    resumed = change_config(load_config(file), ["cluster.name=other", "cluster.pools.cpu.jobs=2"])
    assert (resumed.cluster.name, resumed.cluster.pools) == ("other", {"cpu": {"jobs": 2}})
    joined = load_config("emt_alloy", ["cluster.address=tls://h:1", "cluster.tls=keys"])
    assert change_config(joined, ["cluster.name=other"]).cluster.address is None


def test_layers_after_the_file_win_over_it(tmp_path: Path) -> None:
    content = {"explore": {"potential": {"name": "chgnet", "params": {"version": "0.2.0"}}}}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"defaults": ["_self_", "quickstart"], **content}))
    assert load_config(str(file)).explore.potential.model_dump() == {"name": "mace", "params": {"model": "bundled"}}
    file.write_text(yaml.safe_dump({"defaults": ["quickstart", "_self_"], **content}))
    assert load_config(str(file)).explore.potential.model_dump() == content["explore"]["potential"]


def test_a_group_that_is_typed_wins_where_a_file_names_another_choice(tmp_path: Path) -> None:
    own = {"generator": "alloys", "n": 3, "elements": {"Ni": [0, 1], "Pd": [0, 1]}, "n_atoms": 8}
    file = write_file(
        tmp_path,
        "mine",
        "quickstart",
        generate={"sources": {"mine": own}, "partition_size": 2},
        select={"method": "fps", "n": 4},
        label={"potential": {"name": "mace", "params": {"model": "bundled"}}, "batch_size": 3},
        cluster={"name": "mysite", "pools": {"gpu": {"jobs": 3}}},
    )
    (tmp_path / "a.xyz").write_text("1\n\nCu 0 0 0\n")
    words = ["generate=files", f"generate.paths=[{tmp_path}/a.xyz]", "select=random", "label=xtb", "cluster=local"]
    config = load_config(file, words)
    assert (config.generate.sources, config.generate.partition_size) == ({}, 2)
    assert (config.select.method, config.select.n) == ("random", 4)
    assert config.label.potential == Teacher(name="xtb", params={"method": "GFN2-xTB"})
    assert config.label.batch_size == 3
    assert (config.cluster.name, config.cluster.pools) == ("local", {})
    # A file that changes the choice goes on changing it.
    file = write_file(tmp_path, "mine", "quickstart", generate={"sources": {"alloys": {"n": 3}}})
    assert load_config(file, ["generate=cu_ag_au"]).generate.sources["alloys"].n == 3


def test_config_show_tells_what_was_replaced(tmp_path: Path, type_command: Callable[..., Any]) -> None:
    file = write_file(
        tmp_path,
        "mine",
        "quickstart",
        explore={"potential": {"name": "chgnet"}},
        generate={"sources": {"alloys": {"elements": NI_TI}}},
    )
    answer = yaml.safe_load(type_command("config", "show", file).out)
    assert answer["explore"]["potential"] == {"name": "chgnet", "params": {}}
    assert answer["generate"]["sources"]["alloys"]["elements"].keys() == FRACTIONS.keys()
    # What is shown is a config of the same content.
    shown = tmp_path / "shown.yaml"
    shown.write_text(type_command("config", "show", file).out)
    assert load_config(str(shown)) == load_config(file)


def test_merging_changes_neither_layer() -> None:
    before, after = {"select": {"n": 1, "params": {"a": 1}}}, {"select": {"method": "fps"}}
    assert merge(before, after) == {"select": {"n": 1, "method": "fps"}}
    assert (before, after) == ({"select": {"n": 1, "params": {"a": 1}}}, {"select": {"method": "fps"}})
    assert CHOICES["select"] == Choice("method", ("params",), "kmeans")


# --- one grammar --------------------------------------------------------------------------------------

GRAMMAR = [
    "cluster.pools.gpu.jobs=8",
    "cluster.pools.cpu.walltime='04:00:00'",
    "cluster.pools={cpu: {jobs: 1, directives: ['--constraint=a100']}}",
    "+cluster.workers=3",
    "++cluster.workers=3",
    "cluster.memory=4 GB",
    "cluster.workers=null",
    "cluster.name='a b, c.yaml'",
    "cluster=slurm",
    "~cluster.workers",
    "budget.hours=1e-1",
    "budget.bytes='50GB'",
    "cluster.workers=${cluster.gpus}",
]


@pytest.mark.parametrize("override", GRAMMAR)
def test_resume_takes_what_run_takes(override: str) -> None:
    before = ["cluster.workers=2", "cluster.gpus=1"]
    begun = load_config("emt_alloy", before if override != "cluster=slurm" else [])
    fresh = load_config("emt_alloy", [*(before if override != "cluster=slurm" else []), override])
    assert change_config(begun, [override]) == fresh


REFUSED = [
    ("cluster.name=${oc.env:HOME}", r"looks \$\{oc.env:...\} up; only keys of the config may be"),
    ("cluster.pools.a.b=${oc.env:HOME}", r"looks \$\{oc.env:...\} up; only keys of the config may be"),
    ("cluster.pools=[1", "no viable alternative at input"),
    ("cluster.workers=1,2", r"gives several values; type one, a list as \[1,2\], or quote it"),
    ("cluster.workers=${nowhere}", "Interpolation key 'nowhere' not found"),
    ("~cluster.wrkers=", "deletes a key that no file sets"),
    ("cluster=nowhere", "unknown choice of cluster 'nowhere'"),
    ("cluster@budget=local", "has an @; type key.path=value"),
]


@pytest.mark.parametrize(("override", "said"), REFUSED)
def test_run_and_resume_refuse_the_same(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("emt_alloy", [override])
    with pytest.raises(ConfigError, match=said):
        change_config(load_config("emt_alloy"), [override])


def test_thresholds_have_the_same_grammar(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(load_config("emt_alloy", ["quality.forces=12"])))
    thresholds = load_quality(
        tmp_path, ["quality.cell.min_volume=3", "quality.diversity=null", "+quality.sizes.max_atoms=9"]
    )
    assert (thresholds.forces, thresholds.diversity) == (12.0, None)
    assert thresholds.cell is not None
    assert thresholds.cell.min_volume == 3.0
    with pytest.raises(ConfigError, match=r"looks \$\{oc.env:...\} up"):
        load_quality(tmp_path, ["quality.forces=${oc.env:HOME}"])
    with pytest.raises(ConfigError, match="'select.n=1' is no threshold; type e.g. quality.forces=15"):
        load_quality(tmp_path, ["select.n=1"])


@pytest.mark.parametrize("verb", ["select", "describe"])
def test_verbs_on_files_have_the_same_grammar(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type_command: Callable[..., Any]
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    (tmp_path / "a.xyz").write_text("1\n\nCu 0 0 0\n")
    out = tmp_path / ("out.xyz" if verb == "select" else "out.npz")
    words = [verb, str(tmp_path / "a.xyz"), "-o", str(out), *(["-n", "1"] if verb == "select" else [])]
    answer = type_command(*words, "cluster.name=${oc.env:SECRET}")
    assert answer.code == 2
    assert "looks ${oc.env:...} up" in answer.err
    assert "hunter2" not in answer.err + answer.out
    answer = type_command(*words, "++label.batch_size=1")
    assert answer.code == 2
    assert "cannot be used here" in answer.err


def test_a_config_on_disk_looks_nothing_up(tmp_path: Path) -> None:
    content = yaml.safe_load(to_yaml(load_config("emt_alloy")))
    content["cluster"]["name"] = "${oc.env:HOME}"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert from_yaml(tmp_path / "config.yaml").cluster.name == "${oc.env:HOME}"
    with pytest.raises(ConfigError, match="looks"):
        change_config(from_yaml(tmp_path / "config.yaml"), ["budget.hours=1"])


def test_overrides_are_parsed_by_hydra() -> None:
    (override,) = parse_overrides(["++a.b={c: [1, 'x y'], d: null}"])
    assert override.value == {"c": [1, "x y"], "d": None}
