"""Start a private Slurm for tests: its own munged, slurmctld and slurmd, below a temporary folder, on its own ports.

One node, this machine, with two partitions, ``cpu`` and ``gpu``; its two GPUs are ``/dev/null`` and ``/dev/zero``.
`two_nodes` has one of two nodes. Jobs run as the user of the tests, which must be root: slurmd starts them under their
owner's name.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from waiting import PATIENCE, wait_until

N_CPUS = 16
"""More than there are: jobs of tests mostly wait."""

CONFIG = """
ClusterName=daskpipe
SlurmctldHost={controller}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
ReturnToService=2
KillWait=5
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
{more}
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=ALL MaxTime=INFINITE State=UP
"""

NODE = "NodeName={host} NodeAddr=127.0.0.1 CPUs={n_cpus} RealMemory=20000 Gres=gpu:2 State=UNKNOWN"

GPUS = """
NodeName={host} Name=gpu File=/dev/null
NodeName={host} Name=gpu File=/dev/zero
"""


def missing() -> str | None:
    """Return why a Slurm cannot be started here, and what to do about it; None if it can."""
    if absent := [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]:
        return f"no {', '.join(absent)} on the PATH: apt-get install slurm-wlm munge"
    return "slurmd must be started by root to run jobs" if os.geteuid() else None


def command(*words: object) -> str:
    """Run a command of Slurm; return what it printed."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


@dataclass
class Slurm:
    """Control a Slurm that runs; SLURM_CONF of this process points at it."""

    folder: Path
    prefix: Sequence[str] = ()
    """Words before the controller's command, and before those that ask it: where it runs."""
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *words: str, user: str | None = None, prefix: Sequence[str] = ()) -> None:
        """Start a daemon in the foreground of a session of its own; it ends with this process."""
        command = ["setpriv", "--pdeathsig=KILL", "--", *prefix, *words]
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True, user=user, group=user
            )

    def command(self, *words: object) -> str:
        """Run a command of Slurm; return what it printed."""
        return command(*self.prefix, *words)

    def answers(self, *words: str) -> str:
        """Return what a command of Slurm prints, whether or not it succeeds."""
        return subprocess.run([*self.prefix, *words], capture_output=True, text=True).stdout

    def stop(self, name: str) -> None:
        """Kill a daemon, as a machine that goes down does."""
        daemon = self.daemons.pop(name)
        daemon.kill()
        daemon.wait(PATIENCE)

    def start_controller(self, *options: str) -> None:
        """Start slurmctld, with the jobs that it knew before unless the options say otherwise."""
        self.start("slurmctld", "slurmctld", "-D", *options, prefix=self.prefix)

    def stop_controller(self) -> None:
        """End slurmctld: jobs continue, and no command of Slurm is answered.

        It may write down what it knows: from a job that it has just started and forgotten it takes the node away for
        good.
        """
        self.daemons["slurmctld"].terminate()
        self.daemons["slurmctld"].wait(PATIENCE)
        self.stop("slurmctld")

    def squeue(self) -> dict[str, dict[str, str]]:
        """Return name, state and partition of the jobs that are not over, by id."""
        lines = self.command("squeue", "-h", "-o", "%A|%j|%T|%P").splitlines()
        return {
            job_id: {"name": name, "state": state, "partition": partition}
            for job_id, name, state, partition in (line.split("|") for line in lines)
        }

    def requeue(self, job_id: str) -> None:
        """End a job and start it again a few seconds later."""
        self.command("scontrol", "requeue", job_id)
        _wait_for(lambda: self.squeue().get(job_id, {}).get("state") == "PENDING", self)
        # Slurm holds it for two minutes. Started at once, it would be taken for the one that was ended.
        self.command("scontrol", "update", f"JobId={job_id}", "StartTime=now+5")

    def wait_until_idle(self) -> None:
        """Wait until the queue is empty and the node has no job's processes left."""
        wait_until(lambda: not self.squeue(), self.squeue)

    def said(self) -> str:
        """Return what the daemons printed last."""
        return "\n".join(f"{file.name}:\n{file.read_text()[-1500:]}" for file in sorted(self.folder.glob("*.out")))


@contextmanager
def running() -> Iterator[Slurm]:
    """Start a Slurm, point SLURM_CONF at it, and stop it with all its jobs at the end."""
    host = socket.gethostname()
    with own_folder() as folder:
        slurm = Slurm(folder)
        node = NODE.format(host=host, n_cpus=N_CPUS)
        with started(slurm, f"{host}(127.0.0.1)", [node], {"slurmd": ()}, gpus=GPUS.format(host=host)):
            yield slurm


@contextmanager
def own_folder() -> Iterator[Path]:
    """Yield a temporary folder for a Slurm; remove it."""
    # Not pytest's folder, which nobody but its owner may enter: munged runs as a user of its own.
    folder = Path(tempfile.mkdtemp(prefix="daskpipe-slurm-"))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def started(
    slurm: Slurm,
    controller: str,
    nodes: Sequence[str],
    slurmds: Mapping[str, Sequence[str]],
    gpus: str = "",
    more: str = "",
) -> Iterator[None]:
    """Start the daemons, point SLURM_CONF at them, and stop them with all jobs at the end.

    Parameters
    ----------
    slurm
        What becomes of them.
    controller
        Name and address of the controller's host.
    nodes
        Lines of ``slurm.conf``.
    slurmds
        Words before the command of each node's daemon, by the daemon's name.
    gpus
        Content of ``gres.conf``.
    more
        Another line of ``slurm.conf``.
    """
    folder = slurm.folder
    with ExitStack() as left, pytest.MonkeyPatch.context() as patch:
        left.callback(lambda: [slurm.stop(name) for name in list(slurm.daemons)])
        _write_files(folder, controller, nodes, gpus, more)
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        munge = folder / "munge"
        options = [
            f"--{option}={munge / name}"
            for option, name in (
                ("key-file", "key"),
                ("socket", "socket"),
                ("pid-file", "pid"),
                ("log-file", "log"),
                ("seed-file", "seed"),
            )
        ]
        slurm.start("munged", "munged", "--foreground", *options, user="munge")
        _wait_for(lambda: (munge / "socket").exists(), slurm)
        slurm.start_controller("-c")
        for name, prefix in slurmds.items():
            slurm.start(name, "slurmd", "-D", "-c", prefix=prefix)
        _wait_for(
            lambda: slurm.answers("sinfo", "-hN", "-p", "cpu", "-o", "%T").split() == ["idle"] * len(nodes), slurm
        )
        try:
            yield
        finally:
            if "slurmctld" not in slurm.daemons:
                slurm.start_controller()
                _wait_for(lambda: "is UP" in slurm.answers("scontrol", "ping"), slurm)
            slurm.answers("scancel", "--user=root")
            slurm.wait_until_idle()


def _write_files(folder: Path, controller: str, nodes: Sequence[str], gpus: str, more: str) -> None:
    for name in ("state", "munge"):
        (folder / name).mkdir(mode=0o755)
    owner = pwd.getpwnam("munge")
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    for path in (key.parent, key):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    config = CONFIG.format(folder=folder, controller=controller, ports=_free_ports(2), more=more)
    (folder / "slurm.conf").write_text("\n".join([config, *nodes, ""]))
    (folder / "gres.conf").write_text(gpus)
    (folder / "cgroup.conf").touch()


def _free_ports(n: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_for(done: Callable[[], bool], slurm: Slurm) -> None:
    wait_until(done, slurm.said, pause=0.1)
