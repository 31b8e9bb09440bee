"""Write job scripts and run them with a real shell and a real Slurm; hostile values run nothing."""

from __future__ import annotations

import asyncio
import os
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
from queue_samples import KINDS, SAMPLES, make_site
from waiting import PATIENCE, wait_until

from daskpipe.cluster.dask_config import THREADS
from daskpipe.cluster.job_commands import submit_job
from daskpipe.cluster.job_script import build_job, own_jobs_command, render_scripts
from daskpipe.cluster.queues import JobState, get_queue_system
from daskpipe.cluster.settings import Cluster, JobPool
from daskpipe.cluster.sites import Site, read_site
from daskpipe.cluster.worker import worker_arguments
from daskpipe.core.errors import ConfigError
from daskpipe.core.files import package_folder

PACKAGED = sorted(path.stem for path in package_folder("jobqueue").glob("*.yaml"))
SCHEDULER = "tls://192.0.2.7:4321"
N_SECONDS = 26 * 3600


def make_job(site: Site, **options: Any) -> Any:
    """Return a job of the only pool of a site."""
    chosen = {"scheduler": SCHEDULER, "name": "daskpipe_1", "keys": None, "log_directory": Path("/logs"), **options}
    return build_job(site, site.pools["cpu"], **chosen)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Write a program that stands in for Python and stores its arguments and its environment."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >{tmp_path}/arguments\nenv -0 >{tmp_path}/environment\n')
    program.chmod(0o755)
    return program


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[[Any], tuple[list[str], dict[str, str]]]:
    """Return a function that runs a job as its queue would and returns the arguments and environment of its program."""

    def run_script(made: Any) -> tuple[list[str], dict[str, str]]:
        (tmp_path / "arguments").unlink(missing_ok=True)
        text = made.job_script()
        if "condor_submit" in text:  # its own quoting: what is between double quotes, doubled ones for one; then words
            (line,) = re.findall(r'^Arguments = "(.*)"$', text, re.MULTILINE)
            quoted = re.fullmatch(r"-c '(.*)'", line.replace('""', '"'))
            assert quoted is not None
            words = [made.executable, "-c", quoted[1].replace("''", "'")]
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


# --- scripts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_job_asks_for_its_gpus_and_starts_a_worker_each(
    kind: str, python: Path, run_script: Callable[[Any], tuple[list[str], dict[str, str]]], tmp_path: Path
) -> None:
    pool = {"gpus": 2, "cores": 8, "memory": "32GB", "walltime": "1-02:00:00", "environment": ["export A=x/$HOME"]}
    site = make_site(kind, pool, python=str(python), interface="ib0", scratch="$HOME/x")
    keys = tmp_path / "it's $(touch canary) mine"
    made = make_job(site, keys=keys)
    script = made.job_script()
    assert made.submit_command.split()[0] == get_queue_system(kind).submit_command
    assert SAMPLES[kind].gpu_request in script
    assert SAMPLES[kind].walltime in script

    before = int(time.time())
    words, environment = run_script(made)
    after = int(time.time())
    assert words[:3] == ["-m", "daskpipe.cluster.worker", SCHEDULER]
    line = shlex.join(words)
    for option in ("--nworkers 2", "--nthreads 1", "--nanny", "--resources GPU=1", "--death-timeout 60"):
        assert option in line
    assert "--memory-limit 16000000000B" in line
    assert "--name daskpipe_1 " in line
    assert "--interface ib0" in line
    assert f"--local-directory {os.environ['HOME']}/x" in line
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
    made = make_job(make_site(kind, {"cores": 4, "memory": "8GB"}, python=str(python)))
    words, environment = run_script(made)
    line = shlex.join(words)
    assert "--nworkers 4 --nthreads 1" in line
    assert "--memory-limit 2000000000B --resources CPU=1" in line
    assert "--interface" not in line
    assert "DASKPIPE_DEADLINE" not in environment
    assert environment["OMP_NUM_THREADS"] == "1"
    assert "00:30" not in made.job_script()  # dask-jobqueue's default is not the queue's


@pytest.mark.parametrize("kind", KINDS)
def test_memory_can_be_left_to_the_site(
    kind: str, python: Path, run_script: Callable[[Any], tuple[list[str], dict[str, str]]]
) -> None:
    """Some sites refuse jobs that ask for memory. Grid Engine and OAR are asked for it by directives only."""
    pool = {"cores": 4, "directives": ["a=--mem=1 -M "]}
    asks, does_not = (
        make_job(make_site(kind, {**pool, "memory": memory}, python=str(python))) for memory in ("32GB", None)
    )
    request = SAMPLES[kind].memory_request or "no such line"
    assert (request in asks.job_script()) == (SAMPLES[kind].memory_request is not None)
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
        script = make_job(make_site()).job_script()
    assert "id\n" not in script
    assert "x;id" not in script


def test_a_command_of_ones_own_takes_the_place_of_the_workers(
    python: Path, run_script: Callable[[Any], tuple[list[str], dict[str, str]]], tmp_path: Path
) -> None:
    for kind in KINDS:
        words, environment = run_script(make_job(make_site(kind), command=f"{python} -m daskpipe resume 'a b' \"c'd\""))
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
    site = make_site(kind, python=str(python))
    refused = {
        "name": ("name of a job must be", value),
        "scheduler": ("address of a scheduler must be", f"tls://{value}"),
        "exclude": ("host must be", [value]),
        "log_directory": ("choose another with --run-dir", Path("/runs") / value),
    }
    for key, (complaint, hostile) in refused.items():
        with pytest.raises(ConfigError, match=complaint):
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
        run_script(make_job(make_site(kind), command="touch canary"))
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
    assert value in make_job(make_site(pool=pool.model_dump())).job_script()


# --- for real -----------------------------------------------------------------------------------------


def test_a_worker_listens_where_the_scheduler_is_reached() -> None:
    assert worker_arguments(["tls://127.0.0.1:1", "--name", "x"])[-5:] == [
        "--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0",
    ]  # fmt: skip
    words = worker_arguments(["tls://[::1]:1", "--interface", "lo", "--nanny"])
    assert words[:4] == ["tls://[::1]:1", "--nanny", "--host", "[::1]"]


def find_own_address() -> str:
    """Return an address of this machine that is not loopback; loopback if it has no other."""
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
    options = {"host": find_own_address(), "protocol": "tls://", "security": security, "dashboard": False,
               "dashboard_address": "127.0.0.1:0"}  # fmt: skip
    site = make_site(pool={"cores": 2, "memory": "2GB", "walltime": "00:10:00"}, scratch=str(tmp_path))
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
            variables = client.run(
                lambda: {name: os.environ.get(name) for name in ("MALLOC_TRIM_THRESHOLD_", "MKL_NUM_THREADS")}
            )
            assert list(variables.values()) == [{"MALLOC_TRIM_THRESHOLD_": None, "MKL_NUM_THREADS": "1"}] * 2
            directory = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            listening = [
                connection.laddr.ip
                for each in directory
                for connection in each.net_connections(kind="inet")
                if connection.status == psutil.CONN_LISTEN
            ]
            # Two workers and their nannies on the one address; the workers' HTTP on loopback.
            assert sorted(listening) == sorted([find_own_address()] * 4 + ["127.0.0.1"] * 2)
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def queue_of_slurm() -> Iterator[slurm.Slurm]:
    """Start a Slurm for this file."""
    if reason := slurm.missing():
        pytest.skip(reason)
    with slurm.running() as running:
        yield running


def submit_made_job(made: Any) -> str:
    """Submit a job; return its id."""
    return str(asyncio.run(submit_job(make_site(), made, pool="cpu", cluster_name=None)).job_id)


def wait_for_jobs(site: Site, wanted: Callable[[dict[str, JobState]], bool]) -> dict[str, JobState]:
    """List the jobs until a condition holds."""

    def list_wanted() -> dict[str, JobState]:
        jobs = site.queue_system.read_listing(
            subprocess.run(own_jobs_command(site), capture_output=True, text=True, check=True).stdout
        )
        return jobs if wanted(jobs) else {}

    return wait_until(list_wanted)


def test_slurm_takes_the_script_and_lists_the_job(queue_of_slurm: slurm.Slurm, tmp_path: Path) -> None:
    pool = {"gpus": 1, "cores": 2, "memory": "64MB", "walltime": "00:05:00", "partition": "gpu"}
    site = make_site(pool={**pool, "directives": ["--comment=a,b"], "environment": ["export A=b"]})
    wanted = 'echo "end: $DASKPIPE_DEADLINE $A"; sleep 60'
    runs = submit_made_job(make_job(site, command=wanted, log_directory=tmp_path))
    never = submit_made_job(
        make_job(make_site(pool={**pool, "directives": ["--hold"]}), command="true", log_directory=tmp_path)
    )
    jobs = wait_for_jobs(site, lambda jobs: jobs.get(runs, JobState("other")).state == "running")
    assert jobs[runs].host is not None
    assert jobs[never] == JobState("pending", None, "JobHeldUser", never=True, name="daskpipe_1")
    with pytest.raises(RuntimeError, match="Requested node configuration is not available"):  # there is no other host
        submit_made_job(make_job(site, command="true", log_directory=tmp_path, exclude=[jobs[runs].host]))
    log = tmp_path / f"daskpipe_1-{runs}.log"
    printed = wait_until(lambda: re.search(r"^end: (\d+) b$", log.read_text() if log.exists() else "", re.MULTILINE))
    assert printed is not None
    assert int(printed[1]) == pytest.approx(time.time() + 300, abs=60)
    slurm.command("scancel", runs, never)
    wait_for_jobs(site, lambda jobs: {job.state for job in jobs.values()} == {"over"})
