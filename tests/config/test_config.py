"""Config: composition by Hydra, validation, messages, paths, schema."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from daskpipe.config.compose import compose, list_presets
from daskpipe.config.load import load_cluster, load_config
from daskpipe.config.saved import build_schema, from_yaml, list_differences, to_yaml
from daskpipe.core.errors import ConfigError
from daskpipe.core.files import package_folder
from daskpipe.runs.plan import plan_run

CONFIGS = package_folder("configs")
GROUP_FILES = sorted(f"{path.parent.name}/{path.stem}" for path in CONFIGS.glob("*/*.yaml"))
NEEDED = {
    "generate=files": ["generate.paths=[seeds.xyz]"],
    "generate=mattergen": ["generate.sources.mattergen.command='true {out}'"],  # the programs are not installed here
    "generate=moldiff": ["generate.sources.moldiff.command='true {out}'", "generate.sources.moldiff.folder=."],
    "select=environments": ["describe=environments"],
}
"""What a choice cannot do without."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of the user's, with a name that grammars and shells stumble over."""
    folder = tmp_path / "it's a [dir], x"
    folder.mkdir()
    (folder / "seeds.xyz").write_text("1\n\nCu 0 0 0\n")
    monkeypatch.chdir(folder)
    return folder


# --- what comes with the package ----------------------------------------------------------------------


def test_presets_are_the_files_of_configs() -> None:
    assert {"emt_alloy", "molecules", "quickstart"} <= set(list_presets())


@pytest.mark.slow
@pytest.mark.parametrize("preset", list_presets())
def test_every_preset_composes_and_is_planned(preset: str) -> None:
    config = load_config(preset)
    assert config.name == preset
    stages = plan_run(config)["stages"]
    assert min(row["units"] for row in stages.values()) >= 1
    assert stages["store"]["outputs"] == min(config.select.n, stages["explore"]["outputs"])


@pytest.mark.slow
@pytest.mark.parametrize("choice", GROUP_FILES)
def test_every_group_file_is_chosen_and_planned(choice: str, folder: Path) -> None:
    override = choice.replace("/", "=")
    group, _, _ = choice.partition("/")
    config = load_config("emt_alloy", [override, *NEEDED.get(override, [])])
    written = yaml.safe_load((CONFIGS / f"{choice}.yaml").read_text())
    composed = compose("emt_alloy", [override])[group]
    # The preset itself sets how many frames it selects.
    own = {"select": {"n"}}.get(group, set())
    assert all(composed[key] == value for key, value in written.items() if key not in own)
    assert plan_run(config)["stages"]["select"]["outputs"] > 0


@pytest.mark.parametrize("preset", list_presets())
def test_what_config_show_prints_loads_to_the_same_config(preset: str, tmp_path: Path) -> None:
    config = load_config(preset, ["select=random", "seed=3"])
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert from_yaml(file) == config
    assert load_config(str(file)) == config  # and as a user's own file
    assert list_differences(config, from_yaml(file)) == []


def test_groups_are_switched() -> None:
    assert load_config("emt_alloy").select.method == "kmeans"
    assert load_config("emt_alloy", ["select=random"]).select.method == "random"
    assert load_config("emt_alloy", ["explore=mace"]).explore.potential.name == "mace"
    assert load_config("quickstart", ["label=xtb"]).label.potential.params["method"] == "GFN2-xTB"
    assert load_cluster(["cluster=slurm"]).name == "slurm"
    assert load_cluster(["cluster.address=tcp://127.0.0.1:8786"]).address == "tcp://127.0.0.1:8786"


def test_overrides_reach_keys_that_no_file_sets() -> None:
    config = load_config(
        "emt_alloy", ["explore.guards.max_force=7", "generate.limits.max_atoms=9", "explore.dynamics.replicas=2"]
    )
    assert (config.explore.guards.max_force, config.generate.limits.max_atoms) == (7, 9)
    assert config.explore.dynamics.replicas == 2


# --- the user's own file ------------------------------------------------------------------------------

WITH_DEFAULTS = """
defaults:
  - emt_alloy
  - _self_
seed: 5
generate:
  partition_size: 2
select:
  n: 4
"""

WITHOUT_DEFAULTS = """
seed: 5
generate:
  partition_size: 2
explore:
  potential: {name: emt}
  dynamics: {temperatures: [300], steps: 10, stride: 5}
select: {n: 4}
label:
  potential: {name: emt}
"""


@pytest.mark.parametrize("content", [WITH_DEFAULTS, WITHOUT_DEFAULTS], ids=["defaults", "no defaults"])
def test_groups_and_values_go_with_a_file_anywhere(content: str, folder: Path) -> None:
    (folder / "mine.yaml").write_text(content)
    config = load_config("mine.yaml", ["generate=files", "generate.paths=[seeds.xyz]", "select=random"])
    assert config.generate.sources == {}
    assert config.generate.paths == [str(folder / "seeds.xyz")]
    assert config.select.method == "random"
    # What the file says wins over the group, and the command line over both.
    assert (config.seed, config.generate.partition_size, config.select.n) == (5, 2, 4)
    overrides = ["generate=emt_alloy", "select=random", "select.n=7", "generate.partition_size=3"]
    config = load_config(str(folder / "mine.yaml"), overrides)
    assert (config.select.n, config.generate.partition_size) == (7, 3)
    assert config.generate.sources.keys() == {"alloys", "clusters"}


def test_a_file_is_named_after_itself(folder: Path) -> None:
    (folder / "mine.yaml").write_text(WITHOUT_DEFAULTS)
    assert load_config("mine.yaml", ["generate=emt_alloy"]).name == "mine"


def test_package_folder_may_hold_any_character(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from daskpipe.core import files

    shutil.copytree(CONFIGS, folder / "configs")
    monkeypatch.setattr(files, "__file__", str(folder / "core" / "files.py"))  # as if installed there
    assert package_folder("configs") == folder / "configs"
    assert load_config("emt_alloy", ["select=random"]).select.method == "random"


def test_paths_become_absolute(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"")
    overrides = [
        "generate.paths=[seeds.xyz,'se*.xyz']",
        "generate.sources.own={generator: files, paths: [a.xyz]}",
        "explore=mace",
        "explore.potential.params.model=model.bin",
        "describe=mace",
        "describe.params.model=model.bin",
    ]
    config = load_config("emt_alloy", overrides)
    assert config.generate.paths == [str(folder / "seeds.xyz"), f"{glob.escape(str(folder))}/se*.xyz"]
    assert config.generate.sources["own"].params["base_dir"] == str(folder)
    assert config.explore.potential.params["model"] == str(folder / "model.bin")
    assert config.describe.params["model"] == str(folder / "model.bin")
    overrides = ["generate=files", "generate.paths=['se*.xyz']"]
    assert plan_run(load_config("emt_alloy", overrides))["stages"]["generate"]["inputs"] == 1


@pytest.mark.parametrize(
    ("paths", "base_dir"),
    [
        (["/a/b/c.xyz"], "/a/b"),
        (["/a/b/c.xyz", "/a/d"], "/a"),
        (["/a/b/*.xyz"], "/a/b"),
        (["/a/b/**/c?.xyz", "/a/b/d/e.cif"], "/a/b"),
        (["/a/b[12]/x.xyz"], "/a"),
    ],
)
def test_files_are_named_from_the_folder_that_all_lie_below(paths: list[str], base_dir: str) -> None:
    config = load_config("emt_alloy", ["generate=files", f"generate.paths={json.dumps(paths)}"])
    assert config.generate.base_dir == Path(base_dir)


def test_a_hydra_application_of_the_caller_is_left_alone() -> None:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(config_dir=str(CONFIGS.absolute()), version_base="1.3"):
        theirs = GlobalHydra.instance().hydra
        load_config("emt_alloy")
        assert GlobalHydra.instance().hydra is theirs


# --- what decides the dataset -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "cluster.workers=3",
        "name=other",
        "explore.device=cpu",
        "describe.device=auto",
        "label.device=auto",
        "cluster=slurm",
    ],
)
def test_where_it_runs_decides_nothing(override: str) -> None:
    assert list_differences(load_config("emt_alloy", [override]), load_config("emt_alloy")) == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=1", "seed: 1 here, 0 there"),
        ("explore.dtype=float32", "explore.dtype: float32 here, float64 there"),
        ("generate.partition_size=9", "generate.partition_size: 9 here, 5 there"),
        ("select.params.n_clusters=2", "select.params.n_clusters: 2 here, not set there"),
    ],
)
def test_differences_are_named(override: str, said: str) -> None:
    assert said in list_differences(load_config("emt_alloy", [override]), load_config("emt_alloy"))


# --- messages -----------------------------------------------------------------------------------------

UNKNOWN_KEYS = [
    ("sed=1", r"unknown key 'sed'. Did you mean 'seed'\? Known: .*cluster, .*store"),
    ("generate.patition_size=1", r"unknown key in generate: 'patition_size'. Did you mean 'partition_size'\?"),
    ("generate.limits.max_atom=1", r"unknown key in generate.limits: 'max_atom'. Did you mean 'max_atoms'\?"),
    (
        "generate.sources.alloys.latices=[fcc]",
        r"unknown key in generate.sources.alloys: 'latices'. Did you mean 'lattices'\?",
    ),
    ("explore.batchsize=1", r"unknown key in explore: 'batchsize'. Did you mean 'batch_size'\?"),
    (
        "explore.dynamics.tempratures=[1]",
        r"unknown key in explore.dynamics: 'tempratures'. Did you mean 'temperatures'\?",
    ),
    ("explore.guards.max_forces=1", r"unknown key in explore.guards: 'max_forces'. Did you mean 'max_force'\?"),
    ("explore.potential.param={}", r"unknown key in explore.potential: 'param'. Did you mean 'params'\?"),
    ("explore.potential.params.cutof=1", r"unknown key in explore.potential.params: 'cutof'. Known: none"),
    ("describe.dim=1", r"unknown key in describe: 'dim'. Did you mean 'dims'\?"),
    ("describe.params.nmax=1", r"unknown key in describe.params: 'nmax'. Did you mean 'n_max'\?"),
    ("select.params.clusters=1", r"unknown key in select.params: 'clusters'. Did you mean 'n_clusters'\?"),
    ("label.checks.max_forc=1", r"unknown key in label.checks: 'max_forc'. Did you mean 'max_force'\?"),
    ("label.potential.params.foo=1", r"unknown key in label.potential.params: 'foo'. Known: none"),
    ("store.splits={}", r"unknown key in store: 'splits'. Did you mean 'split'\?"),
    ("cluster.worker=1", r"unknown key in cluster: 'worker'. Did you mean 'workers'\?"),
]

WRONG_VALUES = [
    (
        "store.split={train: 0.5, val: 0.1, test: 0.1}",
        r"store.split: the splits must sum to 1.*sum 0.7",
    ),
    (
        "store.split={train: 1.5, val: -0.5, test: 0}",
        r"store.split: split train=1.5 is no share; give a number",
    ),
    ("store.split.trane=0.9", r"store.split: unknown split 'trane'. Did you mean 'train'\?"),
    (
        "generate.sources.alloys.elements={Cu: 0.5, Au: 0.6}",
        r"alloys.elements: fractions of Cu, Au sum to 1.1; they must",
    ),
    ("explore.dynamics.temperatures=[-300]", r"temperatures.0: Input should be greater than 0 \(received -300\)"),
    ("generate.sources.alloys.elements={Cuu: [0, 1]}", r"unknown element 'Cuu'. Did you mean 'Cu'\?"),
    (
        "generate.sources.alloys.generator=alloy",
        r"unknown generator 'alloy'. Did you mean 'alloys'\? Known: adsorbates, alloys",
    ),
    ("explore.potential.name=emtt", r"unknown potential 'emtt'. Did you mean 'emt'\? Known: ase, chgnet, committee"),
    ("describe.descriptor=sope", r"unknown descriptor 'sope'. Did you mean 'soap'\?"),
    ("describe.device=gpu", r"describe.device: Input should be 'auto', 'cpu' or 'cuda' \(received 'gpu'\)"),
    ("describe.level=atoms", r"describe.level: Input should be 'structure' or 'atom' \(received 'atoms'\)"),
    ("select.method=environments", r"select.method=environments needs .*; type describe.level=atom"),
    ("select.method=kmean", r"unknown selector 'kmean'. Did you mean 'kmeans'\?"),
    ("explore.device=gpu", r"explore.device: Input should be 'auto', 'cpu' or 'cuda' \(received 'gpu'\)"),
    ("seed=-1", r"seed: Input should be greater than or equal to 0 \(received -1\)"),
    ("select.n=many", r"select.n: Input should be a valid integer.*\(received 'many'\)"),
    ("select.n=null", r"select.n: Input should be a valid integer \(received None\)"),
    (
        "cluster.memory=4 bananas",
        r"cluster.memory: must be auto or a number with a unit, e.g. 4GB \(received '4 bananas'\)",
    ),
    ("name=../up", r"name: String should match pattern"),
    (
        "explore.guards.max_disagreement=0.3",
        r"max_disagreement needs a committee, received .*name=emt; type explore.potential.name=committee",
    ),
    (
        "explore.potential={name: committee, params: {members: [{name: emt}]}}",
        r"explore.potential.params.members: List should have at least 2 items",
    ),
    (
        "explore.potential={name: committee, params: {members: [{name: emt}, {name: lj, params: {sgma: 2}}]}}",
        r"explore.potential.params: potential 'lj': unknown parameter 'sgma'. Did you mean 'sigma'\?",
    ),
    (
        "explore.dynamics.temperatures=[{start: 300, ed: 400}]",
        r"unknown key in explore.dynamics.temperatures.0: 'ed'. Did you mean 'end'\?",
    ),
    ("explore.dynamics.temperatures=[{start: 300, end: 0}]", r"300to0 K; a temperature must be greater than 0 K"),
    ("explore.dynamics.ensemble=npt", r"explore.dynamics.ensemble: Input should be 'auto', 'nve', .*'npt_isotropic'"),
    ("explore.monte_carlo={swap: 3}", r"unknown key in explore.monte_carlo: 'swap'. Did you mean 'swaps'\?"),
    ("explore.monte_carlo={every: 3}", r"explore.monte_carlo: no trial moves: give swaps or hops"),
    ("explore.dynamics.steps=4", r"steps=4 with equilibration=0 and stride=5 keep no frame; make steps larger"),
    ("~select.n", r"select.n is missing; type select.n=VALUE"),
    ("~label", r"label is missing; type label=chgnet\|emt\|mace\|xtb"),
    ("~generate.sources", r"nothing to generate from: give generate.sources or generate.paths"),
]

MALFORMED = [
    ("foo", r"override 'foo' must read key.path=value or group=choice, e.g. select.n=64"),
    ("=1", r"override '=1' must read key.path=value"),
    ("select.n=[1", r"no viable alternative at input"),
    ("generate=null", r"Config group override must be a string or a list"),
    ("select.n=${foo}", r"Interpolation key 'foo' not found"),
    ("select=rand", r"unknown choice of select 'rand'. Did you mean 'random'\? Known: .*kmeans, random"),
    ("cluster=nowhere", r"unknown choice of cluster 'nowhere'. Known: .*local, .*slurm"),
]


@pytest.mark.parametrize(("override", "said"), UNKNOWN_KEYS + MALFORMED, ids=lambda value: value)
def test_unknown_keys_and_malformed_overrides_are_explained(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("emt_alloy", [override])


def test_a_descriptor_that_cannot_give_what_is_asked_for_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"mbtr describes whole structures only; type describe.level=structure, or"):
        load_config("emt_alloy", ["describe=mbtr", "describe.level=atom"])
    with pytest.raises(
        ConfigError, match=r"MBTR of open structures: .*min value should be smaller.*change describe.params"
    ):
        load_config("emt_alloy", ["describe=mbtr", "describe.params.grid.min=2"])
    with pytest.raises(ConfigError, match=r"describe.params.geometry.function: Input should be 'atomic_number', "):
        load_config("emt_alloy", ["describe=mbtr", "describe.params.geometry.function=sine"])


@pytest.mark.parametrize(("override", "said"), WRONG_VALUES, ids=[override for override, _ in WRONG_VALUES])
def test_wrong_values_are_explained(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("emt_alloy", [override])


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)select.n: .*\nlabel.batch_size: "):
        load_config("emt_alloy", ["select.n=0", "label.batch_size=0"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nope.yaml", None, r"config file nope.yaml does not exist"),
        ("nope", None, r"unknown preset 'nope'. Known: .*emt_alloy, .*must end in .yaml"),
        ("quickstar", None, r"unknown preset 'quickstar'. Did you mean 'quickstart'\?"),
        ("mine.yml", b"seed: 1", r"unknown preset 'mine.yml'.*must end in .yaml"),
        ("broken.yaml", b"a: [1,\n", r"broken.yaml: while parsing a flow node"),
        ("list.yaml", b"- 1\n- 2\n", r"list.yaml: primary config 'list' must be a DictConfig, got ListConfig"),
        ("binary.yaml", b"\xff\xfe", r"binary.yaml: 'utf-8' codec can't decode"),
        ("empty.yaml", b"", r"generate is missing; type generate=classic_mix\|cu_ag_au\|emt_alloy\|files\|mattergen"),
        ("lost.yaml", b"defaults: [nowhere]", r"unknown config 'nowhere'"),
    ],
)
def test_files_that_are_no_config_are_explained(name: str, content: bytes | None, said: str, folder: Path) -> None:
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load_config(name)


@pytest.mark.parametrize(
    "payload", ["!!python/object/apply:os.system ['touch canary']", "!!python/name:os.system", "!custom x"]
)
def test_yaml_tags_run_nothing(payload: str, folder: Path) -> None:
    (folder / "evil.yaml").write_text(f"seed: {payload}\n")
    with pytest.raises(ConfigError, match="could not determine a constructor for the tag"):
        load_config("evil.yaml")
    (folder / "config.yaml").write_text(f"seed: {payload}\n")
    with pytest.raises(ConfigError, match="could not determine a constructor for the tag"):
        from_yaml(folder / "config.yaml")
    assert not (folder / "canary").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"is no run directory \(it has no config.yaml\); see: ls runs"),
        (b"[1, 2]", r"config.yaml must hold keys and values"),
        (b"a: [1,", r"config.yaml is not YAML"),
        (b"\xff", r"config.yaml is not text"),
        (b"seed: 0", r"generate is missing"),
    ],
)
def test_a_folder_that_is_no_run_is_explained(content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        from_yaml(tmp_path / "config.yaml")


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is no run directory"):
        from_yaml(tmp_path / "file" / "config.yaml")


# --- the schema ---------------------------------------------------------------------------------------


def test_schema_is_a_json_schema_that_accepts_every_config() -> None:
    schema: dict[str, Any] = json.loads(json.dumps(build_schema()))
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for preset in list_presets():
        validator.validate(yaml.safe_load((CONFIGS / f"{preset}.yaml").read_text()))
        validator.validate(load_config(preset).model_dump(mode="json"))
    assert [error.message for error in validator.iter_errors({"sed": 1})] == [
        "Additional properties are not allowed ('sed' was unexpected)"
    ]
    assert not validator.is_valid({"explore": {"dynamics": {"temperatures": [-1]}}})


def test_schema_documents_every_key() -> None:
    schema = build_schema()
    undocumented = [
        f"{name}.{key}"
        for name, model in {"Config": schema, **schema["$defs"]}.items()
        for key, value in model.get("properties", {}).items()
        if "description" not in value and "$ref" not in value
    ]
    assert undocumented == []


def test_where_and_how_often_is_not_what() -> None:
    """Device and checkpoints do not decide what a run makes, and so do not make it another run."""
    one = load_config("emt_alloy", ["explore.checkpoint=5", "explore.device=cpu", "cluster.workers=3"])
    other = load_config("emt_alloy", ["explore.checkpoint=60", "explore.device=auto"])
    assert one.dump_deciding() == other.dump_deciding()
    assert load_config("emt_alloy", ["explore.batch_atoms=100"]).dump_deciding() != other.dump_deciding()


def test_models_of_a_committee_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.model").write_bytes(b"weights")
    members = "members: [{name: mace, params: {model: one.model}}, {name: mace, params: {model: bundled}}]"
    loaded = load_config("emt_alloy", ["explore.potential.name=committee", f"explore.potential.params={{{members}}}"])
    models = [member["params"]["model"] for member in loaded.explore.potential.params["members"]]
    assert models == [str(tmp_path / "one.model"), "bundled"]
