"""Sites: what their files may say, the scripts of their jobs run by a real shell, and the lists of their queues."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import slurm
import yaml
from waiting import PATIENCE, wait_until

from daskpipe.cli.options import make_cluster_overrides
from daskpipe.cluster.dask_config import THREADS
from daskpipe.cluster.job_commands import list_jobs, list_jobs_async, name_cluster, submit_job
from daskpipe.cluster.job_script import build_job, own_jobs_command, render_scripts
from daskpipe.cluster.queues import JobState, all_queue_systems, get_queue_system
from daskpipe.cluster.settings import Cluster, JobPool
from daskpipe.cluster.sites import Site, known_sites, load_site, read_site, user_sites_folder
from daskpipe.cluster.worker import worker_arguments
from daskpipe.config.load import load_cluster, load_config
from daskpipe.core.errors import ClusterError, ConfigError
from daskpipe.core.files import package_folder

PACKAGED = sorted(path.stem for path in package_folder("jobqueue").glob("*.yaml"))
KINDS = sorted(queue.name for queue in all_queue_systems())
SCHEDULER = "tls://192.0.2.7:4321"


@pytest.fixture(autouse=True)
def _no_sites_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def make(kind: str = "SLURM", pool: dict[str, Any] | None = None, **site: Any) -> Site:
    """A site with one pool, ``cpu``."""
    return Site.model_validate({"name": "here", "class": kind, "pools": {"cpu": pool or {}}, **site})


def make_job(site: Site, **options: Any) -> Any:
    """A job of its only pool."""
    chosen = {"scheduler": SCHEDULER, "name": "daskpipe_1", "keys": None, "log_directory": Path("/logs"), **options}
    return build_job(site, site.pools["cpu"], **chosen)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A program in place of Python that writes down its arguments and its environment."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >{tmp_path}/arguments\nenv -0 >{tmp_path}/environment\n')
    program.chmod(0o755)
    return program


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[[Any], tuple[list[str], dict[str, str]]]:
    """Run a job as its queue would; return the arguments and the environment that its program had."""

    def run_script(made: Any) -> tuple[list[str], dict[str, str]]:
        (tmp_path / "arguments").unlink(missing_ok=True)
        text = made.job_script()
        if "condor_submit" in text:  # its own quoting: what is between double quotes, doubled ones for one; then words
            (line,) = re.findall(r'^Arguments = "(.*)"$', text, re.MULTILINE)
            found = re.fullmatch(r"-c '(.*)'", line.replace('""', '"'))
            assert found is not None
            words = [made.executable, "-c", found[1].replace("''", "'")]
        else:
            (tmp_path / "script.sh").write_text(text)
            words = ["/bin/bash", str(tmp_path / "script.sh")]
        subprocess.run(words, cwd=tmp_path, check=False, capture_output=True)
        if not (tmp_path / "arguments").exists():
            return [], {}
        environment = (tmp_path / "environment").read_text().rstrip("\0").split("\0")
        return (
            (tmp_path / "arguments").read_text().rstrip("\0").split("\0"),
            dict(item.partition("=")[::2] for item in environment),
        )

    return run_script


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
    ("content", "said"),
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
def test_sites_that_are_wrong_are_explained(content: str | bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=said):
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
    ("override", "said"),
    [
        ("cluster.pools.gpus.jobs=8", r"unknown pool of cluster slurm: 'gpus'. Did you mean 'gpu'\? Known: cpu, gpu"),
        ("cluster.pools.gpu.jobs=0", r"cluster.pools.gpu.jobs: Input should be greater than 0 \(received 0\)"),
        ("cluster.pools.gpu.partition='a;id'", r"cluster.pools.gpu.partition: must be a word.*\(received 'a;id'\)"),
        ("cluster.pools.gpu.walltime=60", r'walltime: must be "HH:MM:SS" or .* \(received 60\)'),
        ("cluster.pools.gpu.job=1", r"cluster.unknown key in pools.gpu: 'job'. Did you mean 'jobs'\?"),
    ],
)
def test_changes_that_are_wrong_are_explained(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_site(load_cluster(["cluster=slurm", override]))


def test_keys_are_for_joining_a_scheduler() -> None:
    assert Cluster(tls="/k", address="tls://x:1").tls == "/k"
    with pytest.raises(ConfigError, match=r"tls is for cluster.address=tls://host:port, received address None"):
        load_cluster(["cluster.tls=keys"])


# --- scripts ------------------------------------------------------------------------------------------

GPU_REQUESTS = {
    "SLURM": "#SBATCH --gres=gpu:2\n",
    "PBS": "#PBS -l select=1:ncpus=8:mem=30518mb:ngpus=2\n",
    "LSF": "#BSUB -gpu num=2\n",
    "SGE": "#$ -l gpu=2\n",
    "HTCondor": "\nrequest_gpus = 2\n",
    "OAR": "#OAR -l /nodes=1/gpu=2/core=4,walltime=26:00:00\n",
}
WALLTIMES = {
    "SLURM": "#SBATCH -t 26:00:00\n",
    "PBS": "#PBS -l walltime=26:00:00\n",
    "LSF": "#BSUB -W 26:00\n",
    "SGE": "#$ -l h_rt=26:00:00\n",
    "HTCondor": "\nperiodic_remove = JobStatus == 2 && time() - JobCurrentStartDate > 93600\n",
    "OAR": ",walltime=26:00:00\n",
}
N_SECONDS = 26 * 3600


@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_job_asks_for_its_gpus_and_starts_a_worker_each(
    kind: str, python: Path, run_script: Callable[[Any], tuple[list[str], dict[str, str]]], tmp_path: Path
) -> None:
    pool = {"gpus": 2, "cores": 8, "memory": "32GB", "walltime": "1-02:00:00", "environment": ["export A=x/$HOME"]}
    site = make(kind, pool, python=str(python), interface="ib0", scratch="$HOME/x")
    keys = tmp_path / "it's $(touch canary) mine"
    made = make_job(site, keys=keys)
    script = made.job_script()
    assert made.submit_command.split()[0] == get_queue_system(kind).submit_command
    assert GPU_REQUESTS[kind] in script
    assert WALLTIMES[kind] in script

    before = int(time.time())
    words, environment = run_script(made)
    after = int(time.time())
    assert words[:3] == ["-m", "daskpipe.cluster.worker", SCHEDULER]
    found = shlex.join(words)
    for option in ("--nworkers 2", "--nthreads 1", "--nanny", "--resources GPU=1", "--death-timeout 60"):
        assert option in found
    assert "--memory-limit 16000000000B" in found
    assert "--name daskpipe_1 " in found
    assert "--interface ib0" in found
    assert f"--local-directory {os.environ['HOME']}/x" in found
    for option, name in (("--tls-ca-file", "ca.pem"), ("--tls-cert", "cert.pem"), ("--tls-key", "key.pem")):
        assert words[words.index(option) + 1] == str(keys / name)
    assert before + N_SECONDS <= int(environment["DASKPIPE_DEADLINE"]) <= after + N_SECONDS
    assert {environment[name] for name in THREADS} == {"1"}
    assert environment["A"] == f"x/{os.environ['HOME']}"
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cpu_job_has_a_worker_a_core_and_no_walltime_of_its_own(
    kind: str,
    python: Path,
    run_script: Callable[[Any], tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DASKPIPE_DEADLINE", "1")  # of the job that the driver runs in
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    made = make_job(make(kind, {"cores": 4, "memory": "8GB"}, python=str(python)))
    words, environment = run_script(made)
    found = shlex.join(words)
    assert "--nworkers 4 --nthreads 1" in found
    assert "--memory-limit 2000000000B --resources CPU=1" in found
    assert "--interface" not in found
    assert "DASKPIPE_DEADLINE" not in environment
    assert environment["OMP_NUM_THREADS"] == "1"
    assert "00:30" not in made.job_script()  # dask-jobqueue's default is not the queue's


MEMORY_REQUESTS = {
    "SLURM": "#SBATCH --mem=30G\n",
    "PBS": ":mem=30518mb",
    "LSF": "#BSUB -M 32000000\n",
    "HTCondor": "RequestMemory = ",
}


@pytest.mark.parametrize("kind", KINDS)
def test_memory_can_be_left_to_the_site(
    kind: str, python: Path, run_script: Callable[[Any], tuple[list[str], dict[str, str]]]
) -> None:
    """Some sites refuse jobs that ask for memory. Grid Engine and OAR are asked for it by directives only."""
    pool = {"cores": 4, "directives": ["a=--mem=1 -M "]}
    asks, does_not = (make_job(make(kind, {**pool, "memory": memory}, python=str(python))) for memory in ("32GB", None))
    request = MEMORY_REQUESTS.get(kind, "no such line")
    assert (request in asks.job_script()) == (kind in MEMORY_REQUESTS)
    script = does_not.job_script()
    assert not re.search(r"^#SBATCH --mem|:mem=|^#BSUB -M|RequestMemory|\b1GB\b", script, re.MULTILINE)
    assert "--mem=1 -M" in script
    words, _ = run_script(does_not)
    assert words[words.index("--memory-limit") + 1] == "auto"


def test_hosts_are_excluded_where_the_queue_can() -> None:
    lines = {
        kind: get_queue_system(kind).write_header(JobPool(), "/l/x", ["n1", "n2"])["job_extra_directives"]
        for kind in KINDS
    }
    assert "--exclude=n1,n2" in lines["SLURM"]
    assert "-R \"select[hname!='n1' && hname!='n2']\"" in lines["LSF"]
    assert "-l h=!(n1|n2)" in lines["SGE"]


def test_what_is_set_for_dask_jobqueue_elsewhere_stays_out() -> None:
    import dask

    with dask.config.set({"jobqueue.slurm.account": "x;id", "jobqueue.slurm.job-script-prologue": ["id"]}):
        script = make_job(make()).job_script()
    assert "id\n" not in script
    assert "x;id" not in script


def test_a_command_of_ones_own_takes_the_place_of_the_workers(
    python: Path, run_script: Callable[[Any], tuple[list[str], dict[str, str]]], tmp_path: Path
) -> None:
    for kind in KINDS:
        words, environment = run_script(make_job(make(kind), command=f"{python} -m daskpipe resume 'a b' \"c'd\""))
        assert words == ["-m", "daskpipe", "resume", "a b", "c'd"]
        assert environment["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("name", PACKAGED)
def test_scripts_are_shown_as_they_are_submitted(name: str) -> None:
    shown = render_scripts(Cluster(name=name))
    assert list(shown) == ["cpu", "gpu", "driver"]
    site = read_site(name)
    made = build_job(
        site,
        site.pools["gpu"],
        scheduler="tls://SCHEDULER:PORT",
        name="daskpipe-gpu",
        keys=Path("/RUN/keys"),
        log_directory=Path("/RUN/jobs"),
    )
    assert shown["gpu"] == made.job_script()
    assert "daskpipe.cluster.worker" not in shown["driver"]
    assert not Path("/RUN").exists()
    assert "tcp://" in render_scripts(Cluster(name=name, insecure=True))["cpu"]


# --- hostile values -----------------------------------------------------------------------------------

HOSTILE = [
    "x; touch canary", "x && touch canary", "x | touch canary", "`touch canary`", "$(touch canary)", "x & touch canary",
    "x\ntouch canary", "x > canary", "$((touch canary))", "'; touch canary; '", '"; touch canary; "', "<(touch canary)",
    "x\\\ntouch canary", "${x:-`touch canary`}", "${x[$(touch canary)]}", "x\r touch canary", "x\0y", "x\u2028y",
    "x\n#SBATCH --wrap=id",
]  # fmt: skip
PLACES = [
    "pool.partition", "pool.account", "pool.walltime", "pool.memory", "pool.directives", "pool.environment",
    "site.interface", "site.scratch", "site.python", "site.name", "driver.environment", "driver.partition",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_of_a_site_is_read_as_more(place: str, value: str, tmp_path: Path) -> None:
    where, key = place.split(".")
    content: dict[str, Any] = {"class": "SLURM", "pools": {"cpu": {}}, "driver": {}}
    target = {"pool": content["pools"]["cpu"], "site": content, "driver": content["driver"]}[where]
    target[key] = [value] if key in ("directives", "environment") else value
    file = tmp_path / "site.yaml"
    file.write_text(yaml.safe_dump(content))
    path = {"pool": rf"pools\.cpu\.{key}", "site": key, "driver": rf"driver\.{key}"}[where]
    with pytest.raises(ConfigError, match=rf"site.yaml: {path}") as refused:
        read_site(str(file))
    assert repr(value) in str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", HOSTILE)
def test_nothing_that_a_job_is_given_runs(
    kind: str,
    value: str,
    python: Path,
    run_script: Callable[[Any], tuple[list[str], dict[str, str]]],
    tmp_path: Path,
) -> None:
    site = make(kind, python=str(python))
    refused = {
        "name": ("name of a job must be", value),
        "scheduler": ("address of a scheduler must be", f"tls://{value}"),
        "exclude": ("host must be", [value]),
        "log_directory": ("choose another with --run-dir", Path("/runs") / value),
    }
    for key, (said, hostile) in refused.items():
        with pytest.raises(ConfigError, match=said):
            make_job(site, **{key: hostile})
    keys = tmp_path / value
    if re.search(r"[\x00-\x1f]", value):
        with pytest.raises(ConfigError, match="folder of keys must be a path without control characters"):
            make_job(site, keys=keys)
    else:
        words, _ = run_script(make_job(site, keys=keys))
        assert words[-1] == str(keys / "key.pem")
    assert not list(tmp_path.rglob("*canary*"))


def test_a_canary_would_be_seen(run_script: Callable[[Any], Any], tmp_path: Path) -> None:
    for kind in KINDS:
        run_script(make_job(make(kind), command="touch canary"))
        (tmp_path / "canary").unlink()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("directives", "--constraint=[rack1,rack2]"),
        ("directives", "-l select=1:ncpus=4+1:mem=2gb"),
        ("directives", "--mail-user=ada@example.org"),
        ("environment", "module load cuda/12.4"),
        ("environment", "export PATH=${HOME}/bin:$PATH"),
        ("environment", "source /opt/conda/etc/profile.d/conda.sh"),
        ("environment", "conda activate mlip"),
        ("environment", "ulimit -s unlimited"),
    ],
)
def test_what_sites_do_write_is_taken(key: str, value: str) -> None:
    pool = JobPool.model_validate({key: [value]})
    assert value in make_job(make(pool=pool.model_dump())).job_script()


# --- lists of jobs ------------------------------------------------------------------------------------

SQUEUE = """\
1041|PENDING||Priority|a|b c
1042|RUNNING|gpu[03-04,07]|None|x-gpu.2
1043_[0-3%2]|PENDING||Resources|
1043_4|RUNNING|n7|None|
1044|CONFIGURING|n8|None|
1045|PENDING||DependencyNeverSatisfied|
1046|PENDING||PartitionTimeLimit|
1047|PENDING||ReqNodeNotAvail, UnavailableNodes:n[1-2]|
1048|PENDING||launch failed requeued held|
1049|COMPLETING|n9|None|
1050|PENDING||QOSMaxCpuPerJobLimit|
1051|PENDING||AssocGrpCpuLimit|
1052|REQUEUE_HOLD||JobHeldUser|
1053|CANCELLED||JobHeldUser|
slurm_load_jobs error: Unable to contact slurm controller
"""
QSTAT_PBS = """\

pbs01:
                                                               Req'd  Req'd   Elap
Job ID       Username Queue    Jobname          SessID NDS TSK Memory Time  S Time
------------ -------- -------- ---------------- ------ --- --- ------ ----- - -----
1234.pbs01   ada      workq    daskpipe_cpu_1      --    1   8   32gb 04:00 Q   --   --
1235.pbs01   ada      workq    daskpipe_gpu_2    20311   1   8   32gb 04:00 R 00:01 n012/0*8
1236[].pbs01 ada      workq    other               --    1   8   32gb 04:00 B   --   --
1237.pbs01   ada      workq    daskpipe_cpu_3      --    1   8   32gb 04:00 H   --   --
1238.pbs01   ada      workq    daskpipe_cpu_4    20400   2  16   64gb 04:00 E 00:09 n013/0*8+n014/0*8
"""
BJOBS = """\
501|RUN|8*n012:8*n013|-|x-gpu.1
502|PEND|-|Not enough GPUs on the hosts; Job's requirements for resources not satisfied|x-gpu.2
503|PSUSP|-|The job was suspended by the user while pending|x-gpu.3
504|EXIT|n012|-|x-gpu.4
505|SSUSP|n014|-|x-gpu.5
"""
QSTAT_SGE = """\
job-ID  prior   name       user         state submit/start at     queue                          slots ja-task-ID
-----------------------------------------------------------------------------------------------------------------
   3041 0.55500 daskpipe-1 ada          r     08/12/2026 10:01:11 gpu.q@n012.cluster.example         8
       Full jobname:     daskpipe-1a2b3c4d-gpu.1
       Master Queue:     gpu.q@n012.cluster.example
       Requested PE:     smp 8
       Granted PE:       smp 8
       Hard Resources:   h_rt=14400 (0.000000)
                         gpu=1 (0.000000)
       Soft Resources:
   3042 0.00000 daskpipe-1 ada          qw    08/12/2026 10:02:11                                    8
       Full jobname:     daskpipe-1a2b3c4d-gpu.2
       Requested PE:     smp 8
   3043 0.00000 daskpipe_g ada          Eqw   08/12/2026 10:02:12                                    8
   3044 0.00000 daskpipe_g ada          hqw   08/12/2026 10:02:13                                    8
   3045 0.55500 daskpipe_g ada          dr    08/12/2026 10:02:13 gpu.q@n013.cluster.example         8
"""
CONDOR_Q = """\
88	0	1	undefined	undefined	x-cpu.88
89	0	2	slot1_1@n012.cluster.example	undefined	x-cpu.89
90	0	5	undefined	Error from slot1_2@n013: out of memory	x-cpu.90
91	0	7	slot1_1@n014.cluster.example	undefined	x-cpu.91
"""
OARSTAT = """{
 "701" : {"state" : "Waiting", "message" : "FIFO scheduling OK", "assigned_network_address" : [], "name" : "x"},
 "702" : {"state" : "Running", "message" : "", "assigned_network_address" : ["n012.cluster.example"]},
 "703" : {"state" : "Hold", "message" : null, "assigned_network_address" : []},
 "704" : {"state" : "toLaunch"},
 "705" : {"state" : "Error", "message" : "no"}
}"""
LISTINGS: list[tuple[str, str, dict[str, JobState]]] = [
    ("SLURM", SQUEUE, {
        "1041": JobState("pending", None, "Priority", name="a|b c"),
        "1042": JobState("running", "gpu03", name="x-gpu.2"),
        "1043_[0-3%2]": JobState("pending", None, "Resources"),
        "1043_4": JobState("running", "n7"),
        "1044": JobState("pending", "n8"),
        "1045": JobState("pending", None, "DependencyNeverSatisfied", never=True),
        "1046": JobState("pending", None, "PartitionTimeLimit", never=True),
        "1047": JobState("pending", None, "ReqNodeNotAvail, UnavailableNodes:n[1-2]"),
        "1048": JobState("pending", None, "launch failed requeued held", never=True),
        "1049": JobState("other", "n9"),
        "1050": JobState("pending", None, "QOSMaxCpuPerJobLimit", never=True),
        "1051": JobState("pending", None, "AssocGrpCpuLimit"),
        "1052": JobState("other", None, "JobHeldUser", never=True),
        "1053": JobState("over", None, "JobHeldUser"),
    }),
    ("PBS", QSTAT_PBS, {
        "1234": JobState("pending", name="daskpipe_cpu_1"),
        "1235": JobState("running", "n012", name="daskpipe_gpu_2"),
        "1236[]": JobState("other", name="other"),
        "1237": JobState("other", None, "held", never=True, name="daskpipe_cpu_3"),
        "1238": JobState("other", "n013", name="daskpipe_cpu_4"),
    }),
    ("LSF", BJOBS, {
        "501": JobState("running", "n012", name="x-gpu.1"),
        "502": JobState(
            "pending",
            None,
            "Not enough GPUs on the hosts; Job's requirements for resources not satisfied",
            name="x-gpu.2",
        ),
        "503": JobState("other", None, "The job was suspended by the user while pending", never=True, name="x-gpu.3"),
        "504": JobState("over", "n012", name="x-gpu.4"),
        "505": JobState("running", "n014", name="x-gpu.5"),
    }),
    ("SGE", QSTAT_SGE, {
        "3041": JobState("running", "n012.cluster.example", name="daskpipe-1a2b3c4d-gpu.1"),
        "3042": JobState("pending", name="daskpipe-1a2b3c4d-gpu.2"),
        "3043": JobState("other", None, "Eqw", never=True, name="daskpipe_g"),
        "3044": JobState("other", None, "hqw", never=True, name="daskpipe_g"),
        "3045": JobState("other", "n013.cluster.example", name="daskpipe_g"),
    }),
    ("HTCondor", CONDOR_Q, {
        "88.0": JobState("pending", name="x-cpu.88"),
        "89.0": JobState("running", "n012.cluster.example", name="x-cpu.89"),
        "90.0": JobState("other", None, "Error from slot1_2@n013: out of memory", never=True, name="x-cpu.90"),
        "91.0": JobState("running", "n014.cluster.example", name="x-cpu.91"),
    }),
    ("OAR", OARSTAT, {
        "701": JobState("pending", None, "FIFO scheduling OK", name="x"),
        "702": JobState("running", "n012.cluster.example"),
        "703": JobState("other", None, "", never=True),
        "704": JobState("pending"),
        "705": JobState("over", None, "no"),
    }),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "jobs"), LISTINGS, ids=[kind for kind, _, _ in LISTINGS])
def test_the_list_of_a_queue_is_read(kind: str, text: str, jobs: dict[str, JobState]) -> None:
    assert get_queue_system(kind).read_listing(text) == jobs
    assert get_queue_system(kind).read_listing("") == {}


ANSWERS: list[tuple[str, str, str, str | None]] = [
    ("SLURM", "1041\n", "1041", None),
    ("SLURM", "1041;north\n", "1041", "north"),
    ("SLURM", "Submitted batch job 1041\n", "1041", None),
    ("SLURM", "Submitted batch job 1041 on cluster north\n", "1041", "north"),
    ("PBS", "1234.pbs01\n", "1234", None),
    ("PBS", "1236[].pbs01.example.org\n", "1236[]", None),
    ("LSF", "Job <501> is submitted to queue <normal>.\n", "501", None),
    ("LSF", "Job <501> is submitted to default queue <normal>.\n", "501", None),
    ("SGE", 'Your job 3041 ("daskpipe_1") has been submitted\n', "3041", None),
    ("HTCondor", "Submitting job(s).\n1 job(s) submitted to cluster 88.\n", "88.0", None),
    ("OAR", "[ADMISSION RULE] Modify resource description\nOAR_JOB_ID=701\n", "701", None),
]
GREETING = """
-----------------------------------------------------------------
          Welcome to the Stampede3 Supercomputer, rev. 3.2
-----------------------------------------------------------------
2 nodes free; job 7 of yours has 40 hours left. Your project: 12345 Submitted batch job 9
--> Verifying valid submit host (login1)...OK
"""


@pytest.mark.parametrize(("kind", "answer", "job_id", "cluster"), ANSWERS)
def test_a_job_is_listed_by_the_id_that_it_got(kind: str, answer: str, job_id: str, cluster: str | None) -> None:
    assert get_queue_system(kind).read_job_id(answer) == (job_id, cluster)
    assert get_queue_system(kind).read_job_id(f"{GREETING}{answer}4 GB of your quota are left\n") == (job_id, cluster)
    assert job_id in next(jobs for listed, _, jobs in LISTINGS if listed == kind)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_without_an_id_is_quoted(kind: str) -> None:
    command = get_queue_system(kind).submit_command
    with pytest.raises(
        ValueError, match=rf"{command} printed no line with a job's id: .*Stampede3.* / 2 nodes free; job 7"
    ):
        get_queue_system(kind).read_job_id(GREETING)
    with pytest.raises(ValueError, match=rf"{command} printed no line with a job's id: nothing"):
        get_queue_system(kind).read_job_id("")


def test_an_answer_with_two_ids_is_none() -> None:
    with pytest.raises(ValueError, match=r"sbatch printed several ids \(17, 3\): 3 / 17"):
        get_queue_system("SLURM").read_job_id("3\n17\n")


def test_a_name_is_compared_as_far_as_the_queue_shows_it() -> None:
    name = "daskpipe-1a2b3c4d-gpu.12"
    for kind in KINDS:
        matches = get_queue_system(kind).matches_name
        assert matches(name, name)
        assert matches(name[:15], name) == matches(f"{name[:14]}*", name) == (kind == "PBS")
        for other in ("daskpipe-1a2b3c4d-gpu.1", "daskpipe-5e6f7", "daskpipe-5e6f7a", "d", "", "*", name[:10]):
            assert not matches(other, name)


def test_a_queue_without_jobs_is_not_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LSF's list of no jobs is an error, on the standard error, with exit code 255."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program = tmp_path / "bjobs"
    for complaint in ("No unfinished job found", "No job found"):
        program.write_text(f"#!/bin/sh\necho '{complaint}' >&2\nexit 255\n")
        program.chmod(0o755)
        assert list_jobs(make("LSF")).jobs == {}
        assert asyncio.run(list_jobs_async(make("LSF"), None)).jobs == {}
    program.write_text("#!/bin/sh\necho 'LSF is down. Please wait ...' >&2\nexit 255\n")
    with pytest.raises(ClusterError, match=r"bjobs -a -u \w+ .*: LSF is down"):
        list_jobs(make("LSF"))
    with pytest.raises(RuntimeError, match="LSF is down"):
        asyncio.run(list_jobs_async(make("LSF"), None))


@pytest.mark.parametrize(
    ("kind", "program", "answer"),
    [
        ("SLURM", "scontrol", "Configuration data as of 2026-11-29T12:00:00\nClusterName             = north"),
        ("PBS", "qstat", "Server: north\n    server_state = Active"),
        ("LSF", "lsid", "IBM Spectrum LSF 10.1.0.0\n\nMy cluster name is north\nMy master name is m1"),
    ],
)
def test_a_queue_tells_its_cluster(
    kind: str, program: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / program).write_text(f"#!/bin/sh\necho '{answer}'\n")
    (tmp_path / program).chmod(0o755)
    assert asyncio.run(name_cluster(make(kind))) == "north"
    (tmp_path / program).write_text("#!/bin/sh\nexit 1\n")
    assert asyncio.run(name_cluster(make(kind))) is None


def test_a_queue_is_asked_for_ones_own_jobs_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    me = pwd.getpwuid(os.geteuid()).pw_name
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, "ada")
    for kind in KINDS:
        assert own_jobs_command(make(kind)) == get_queue_system(kind).list_command(me)
        assert any(me in word for word in own_jobs_command(make(kind)))


# --- for real -----------------------------------------------------------------------------------------


def test_a_worker_listens_where_the_scheduler_is_reached() -> None:
    assert worker_arguments(["tls://127.0.0.1:1", "--name", "x"])[-5:] == [
        "--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0",
    ]  # fmt: skip
    words = worker_arguments(["tls://[::1]:1", "--interface", "lo", "--nanny"])
    assert words[:4] == ["tls://[::1]:1", "--nanny", "--host", "[::1]"]


def own_address() -> str:
    """An address of this machine that is not loopback; loopback if it has no other."""
    addresses = [
        item.address for items in psutil.net_if_addrs().values() for item in items if item.family.name == "AF_INET"
    ]
    return next((address for address in addresses if not address.startswith("127.")), "127.0.0.1")


def test_the_workers_of_a_job_script_listen_on_one_address_and_loopback(tmp_path: Path) -> None:
    from distributed import Client, Scheduler, Security, SpecCluster

    security = Security.temporary()
    keys = tmp_path / "it's ours"
    keys.mkdir()
    for name, field in (("ca.pem", "tls_ca_file"), ("cert.pem", "tls_worker_cert"), ("key.pem", "tls_worker_key")):
        (keys / name).write_text(getattr(security, field))
    options = {"host": own_address(), "protocol": "tls://", "security": security, "dashboard": False,
               "dashboard_address": "127.0.0.1:0"}  # fmt: skip
    site = make(pool={"cores": 2, "memory": "2GB", "walltime": "00:10:00"}, scratch=str(tmp_path))
    with (
        SpecCluster(workers={}, scheduler={"cls": Scheduler, "options": options}, security=security) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        script = tmp_path / "script.sh"
        script.write_text(make_job(site, scheduler=cluster.scheduler_address, keys=keys).job_script())
        process = subprocess.Popen(["/bin/bash", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            client.wait_for_workers(2, timeout=PATIENCE)
            workers = client.scheduler_info(n_workers=-1)["workers"]
            assert {worker["name"] for worker in workers.values()} == {"daskpipe_1-0", "daskpipe_1-1"}
            assert [(worker["nthreads"], worker["resources"]) for worker in workers.values()] == [(1, {"CPU": 1})] * 2
            assert {worker["memory_limit"] for worker in workers.values()} == {10**9}
            told = client.run(
                lambda: {name: os.environ.get(name) for name in ("MALLOC_TRIM_THRESHOLD_", "MKL_NUM_THREADS")}
            )
            assert list(told.values()) == [{"MALLOC_TRIM_THRESHOLD_": None, "MKL_NUM_THREADS": "1"}] * 2
            directory = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            listening = [
                connection.laddr.ip
                for each in directory
                for connection in each.net_connections(kind="inet")
                if connection.status == psutil.CONN_LISTEN
            ]
            # Two workers and their nannies on the one address; the workers' HTTP on loopback.
            assert sorted(listening) == sorted([own_address()] * 4 + ["127.0.0.1"] * 2)
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def queue_of_slurm() -> Iterator[slurm.Slurm]:
    """A Slurm of this test's own."""
    if reason := slurm.missing():
        pytest.skip(reason)
    with slurm.running() as running:
        yield running


def submit(made: Any) -> str:
    """Submit a job; return its id."""
    return str(asyncio.run(submit_job(make(), made, pool="cpu", cluster_name=None)).job_id)


def wait_for(site: Site, wanted: Callable[[dict[str, JobState]], bool]) -> dict[str, JobState]:
    """Ask the queue until it says what is wanted."""

    def listed() -> dict[str, JobState]:
        jobs = site.queue_system.read_listing(
            subprocess.run(own_jobs_command(site), capture_output=True, text=True, check=True).stdout
        )
        return jobs if wanted(jobs) else {}

    return wait_until(listed)


def test_slurm_takes_the_script_and_lists_the_job(queue_of_slurm: slurm.Slurm, tmp_path: Path) -> None:
    pool = {"gpus": 1, "cores": 2, "memory": "64MB", "walltime": "00:05:00", "partition": "gpu"}
    site = make(pool={**pool, "directives": ["--comment=a,b"], "environment": ["export A=b"]})
    wanted = 'echo "told $DASKPIPE_DEADLINE $A"; sleep 60'
    runs = submit(make_job(site, command=wanted, log_directory=tmp_path))
    never = submit(make_job(make(pool={**pool, "directives": ["--hold"]}), command="true", log_directory=tmp_path))
    jobs = wait_for(site, lambda jobs: jobs.get(runs, JobState("other")).state == "running")
    assert jobs[runs].host is not None
    assert jobs[never] == JobState("pending", None, "JobHeldUser", never=True, name="daskpipe_1")
    with pytest.raises(RuntimeError, match="Requested node configuration is not available"):  # there is no other host
        submit(make_job(site, command="true", log_directory=tmp_path, exclude=[jobs[runs].host]))
    log = tmp_path / f"daskpipe_1-{runs}.log"
    told = wait_until(lambda: re.search(r"^told (\d+) b$", log.read_text() if log.exists() else "", re.MULTILINE))
    assert told is not None
    assert int(told[1]) == pytest.approx(time.time() + 300, abs=60)
    slurm.command("scancel", runs, never)
    wait_for(site, lambda jobs: {job.state for job in jobs.values()} == {"over"})
