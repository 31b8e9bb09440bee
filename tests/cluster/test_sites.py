"""Read sites from their files, with the changes of a config, and explain mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from queue_samples import KINDS

from daskpipe.cli.options import make_cluster_overrides
from daskpipe.cluster.settings import Cluster, JobPool
from daskpipe.cluster.sites import Site, known_sites, load_site, read_site, user_sites_folder
from daskpipe.config.load import load_cluster, load_config
from daskpipe.core.errors import ConfigError
from daskpipe.core.files import package_folder

PACKAGED = sorted(path.stem for path in package_folder("jobqueue").glob("*.yaml"))


# --- files --------------------------------------------------------------------------------------------


def test_each_queue_has_a_site_and_each_site_a_choice() -> None:
    assert {read_site(name).kind for name in PACKAGED} == set(KINDS)
    assert {path.stem for path in (package_folder("configs") / "cluster").glob("*.yaml")} == {"local", *PACKAGED}


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_site_has_pools_of_both_kinds(name: str) -> None:
    site = load_site(load_cluster([f"cluster={name}"]))
    assert site.name == name
    assert {pool.resource: pool.n_processes for pool in site.pools.values()} == {
        "CPU": site.pools["cpu"].cores,
        "GPU": site.pools["gpu"].gpus,
    }
    assert (site.driver.gpus, site.driver.cores) == (0, 1)


def test_an_unquoted_walltime_is_what_it_looks_like(tmp_path: Path) -> None:
    """YAML 1.1 reads the first one and the last one as numbers of seconds, and the second one as text."""
    file = tmp_path / "site.yaml"
    for written, seconds in (("12:00:00", 43200), ("04:00:00", 14400), ('"1-02:03:04"', 93784), ("100:00:00", 360000)):
        file.write_text(f"class: SLURMCluster\npools: {{cpu: {{walltime: {written}}}}}\n")
        assert read_site(str(file)).pools["cpu"].seconds == seconds
    assert JobPool().seconds is None


def test_the_driver_goes_where_the_cpu_pool_goes() -> None:
    gpu, cpu = {"gpus": 2, "partition": "gpu"}, {"cores": 8, "partition": "std", "account": "a", "keep": 2}
    site = Site.model_validate({"name": "x", "class": "PBS", "pools": {"gpu": gpu, "cpu": cpu}})
    assert site.driver == JobPool(jobs=1, partition="std", account="a")
    unasked = Site.model_validate({"name": "x", "class": "SLURM", "pools": {"cpu": {"memory": None}}})
    assert unasked.driver.memory is None
    only = Site.model_validate({"name": "x", "class": "PBS", "pools": {"gpu": gpu}, "driver": {"memory": "2GB"}})
    assert only.driver == JobPool(memory="2GB")


GOOD = "class: SLURM\npools: {cpu: {memory: 1GB}}\n"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            GOOD.replace("SLURM", "SLRM"),
            r"site.yaml: class: unknown queue system 'SLRM'. Did you mean 'SLURM'\?.*\(received 'SLRM'\)",
        ),
        (
            GOOD.replace("1GB", "'1GB; rm -rf ~'"),
            r"site.yaml: pools.cpu.memory: must be a number with a unit, e.g. 32GB \(received '1GB; rm -rf ~'\)",
        ),
        (GOOD.replace("1GB", "0GB"), r"pools.cpu: memory must be more than 0 B"),
        (GOOD.replace("memory: 1GB", "keep: 9"), r"pools.cpu: keep=9 is more than jobs=4"),
        (GOOD.replace("memory: 1GB", "walltime: '00:00:00'"), r"pools.cpu: walltime must be longer than 0 s"),
        *(
            (
                GOOD.replace("memory: 1GB", f"walltime: {written}"),
                rf'walltime: must be "HH:MM:SS" or "D-HH:MM:SS", in quotes, e.g. "04:00:00" \(received {received}\)',
            )
            for written, received in (("60", "60"), ("'60'", "'60'"), ("60:00", "'60:00'"), ("1.5", "1.5"))
        ),
        (
            GOOD.replace("memory: 1GB", "directives: ['--clusters=other']"),
            r"directive sends to another cluster are not listed in this one, received .*export SLURM_CLUSTERS=NAME",
        ),
        (GOOD.replace("memory: 1GB", "walltime: 4 h"), r'walltime: must be "HH:MM:SS" or.*\(received \'4 h\'\)'),
        (GOOD.replace("memory", "mem"), r"unknown key in pools.cpu: 'mem'. Did you mean 'memory'\?"),
        (f"{GOOD}scratsch: /x", r"unknown key 'scratsch'. Did you mean 'scratch'\? Known: class, driver"),
        ("class: SLURM", r"site.yaml: pools is missing"),
        ("class: SLURM\npools: {}", r"pools: Dictionary should have at least 1 item"),
        ("class: HTCondor\npools: {cpu: {partition: x}}", r"HTCondor has no partitions.*pools.cpu.partition='x'"),
        (
            "class: HTCondor\npools: {cpu: {directives: [x]}}",
            r"HTCondor's directives read key = value, received \['x'\]",
        ),
        ("1: 2\nclass: SLURM", r"Keys should be strings"),
        ("[1]", r"must hold keys and values, received list"),
        ("class: !!python/name:os.system x", r"is not YAML: could not determine a constructor"),
        ("a: [", r"is not YAML"),
        (b"\xff\xfe\x00", r"is not YAML"),
    ],
)
def test_sites_that_are_wrong_are_explained(content: str | bytes, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=complaint):
        read_site(str(file))


def test_sites_of_ones_own_come_first(tmp_path: Path) -> None:
    assert set(known_sites()) == set(PACKAGED)
    folder = user_sites_folder()
    assert folder == tmp_path / "config" / "daskpipe" / "jobqueue"
    folder.mkdir(parents=True)
    for name in ("fram", "slurm"):
        (folder / f"{name}.yaml").write_text(GOOD)
    assert read_site("fram").name == "fram"
    assert list(read_site("slurm").pools) == ["cpu"]  # the packaged one has a GPU pool
    with pytest.raises(ConfigError, match=r"unknown cluster 'farm'. Did you mean 'fram'\? Known: local, .*fram.*slurm"):
        read_site("farm")
    with pytest.raises(ConfigError, match=r"unknown cluster '.*none.yaml'"):
        read_site(str(tmp_path / "none.yaml"))


def test_cluster_takes_names_paths_and_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("it's, mine.yaml").write_text(f"name: mine\n{GOOD}")
    user_sites_folder().mkdir(parents=True)
    (user_sites_folder() / "fram.yaml").write_text(GOOD)
    named = {word: load_cluster(make_cluster_overrides(word)) for word in ("local", "slurm", "fram", "it's, mine.yaml")}
    assert [settings.name for settings in named.values()] == [
        "local",
        "slurm",
        "fram",
        str(tmp_path / "it's, mine.yaml"),
    ]
    assert load_site(named["it's, mine.yaml"]).name == "mine"
    assert load_site(named["fram"]).name == "fram"
    assert load_cluster(make_cluster_overrides("tls://x:1")).address == "tls://x:1"
    with pytest.raises(ConfigError, match=r"unknown cluster '../quickstart'"):
        load_site(load_cluster(make_cluster_overrides("../quickstart")))


@pytest.mark.parametrize("typed", ["local", "slurm", "mine.yaml"])
def test_a_typed_cluster_stands_instead_of_a_scheduler_that_the_file_joins(typed: str, tmp_path: Path) -> None:
    file = tmp_path / "joins.yaml"
    file.write_text("defaults: [emt_alloy, _self_]\ncluster: {address: 'tls://127.0.0.1:1', tls: keys}\n")
    assert load_config(str(file)).cluster.address == "tls://127.0.0.1:1"
    settings = load_config(str(file), make_cluster_overrides(typed)).cluster
    assert (Path(settings.name).name, settings.address, settings.tls) == (typed, None, None)


# --- what the config changes --------------------------------------------------------------------------


def test_pools_are_changed_from_the_command_line() -> None:
    words = ["cluster=slurm", "cluster.pools.gpu.jobs=8", "cluster.pools.gpu.walltime='1-00:00:00'"]
    site = load_site(load_config("emt_alloy", [*words, "cluster.pools.cpu.directives=['--qos=high']"]).cluster)
    assert (site.pools["gpu"].jobs, site.pools["gpu"].seconds, site.pools["gpu"].cores) == (8, 86400, 4)
    assert (site.pools["cpu"].jobs, site.pools["cpu"].directives) == (4, ["--qos=high"])


def test_workers_limits_the_jobs_of_each_pool_that_says_nothing_else() -> None:
    site = load_site(load_cluster(["cluster=slurm", "cluster.workers=2", "cluster.pools.gpu.jobs=3"]))
    assert {name: pool.jobs for name, pool in site.pools.items()} == {"cpu": 2, "gpu": 3}


def test_one_wrong_value_is_one_line() -> None:
    with pytest.raises(ConfigError) as refused:
        load_site(load_cluster(["cluster=slurm", "cluster.pools.gpu.cores=0"]))
    assert str(refused.value) == "cluster.pools.gpu.cores: Input should be greater than 0 (received 0)"


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("cluster.pools.gpus.jobs=8", r"unknown pool of cluster slurm: 'gpus'. Did you mean 'gpu'\? Known: cpu, gpu"),
        ("cluster.pools.gpu.jobs=0", r"cluster.pools.gpu.jobs: Input should be greater than 0 \(received 0\)"),
        ("cluster.pools.gpu.partition='a;id'", r"cluster.pools.gpu.partition: must be a word.*\(received 'a;id'\)"),
        ("cluster.pools.gpu.walltime=60", r'walltime: must be "HH:MM:SS" or .* \(received 60\)'),
        ("cluster.pools.gpu.job=1", r"cluster.unknown key in pools.gpu: 'job'. Did you mean 'jobs'\?"),
    ],
)
def test_changes_that_are_wrong_are_explained(override: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_site(load_cluster(["cluster=slurm", override]))


def test_keys_are_for_joining_a_scheduler() -> None:
    assert Cluster(tls="/k", address="tls://x:1").tls == "/k"
    with pytest.raises(ConfigError, match=r"tls is for cluster.address=tls://host:port, received address None"):
        load_cluster(["cluster.tls=keys"])
