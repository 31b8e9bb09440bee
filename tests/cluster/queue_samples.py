"""Samples of each queue system: lines of its scripts, and answers of its commands.

A new queue system gets an entry in `SAMPLES`; the tests of `test_queues.py` and `test_job_script.py` then cover it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from daskpipe.cluster.queues import JobState
from daskpipe.cluster.sites import Site


@dataclass(frozen=True, kw_only=True)
class QueueSample:
    """Texts that a queue system reads and writes.

    Parameters
    ----------
    gpu_request
        Text in the script of a job with 2 GPUs, 8 cores and 32 GB.
    walltime
        Text in the script of a job of 26 h.
    memory_request
        Text in the script of a job that asks for 32 GB; None if only a directive asks for memory.
    listing, jobs
        Output of the listing command, and the jobs in it.
    answers
        Outputs of the submit command, each with the job's id and the name of the cluster.
    cluster_answer
        Program that prints the name of the cluster, and its output for a cluster called ``north``.
    """

    gpu_request: str
    walltime: str
    memory_request: str | None = None
    listing: str
    jobs: dict[str, JobState]
    answers: list[tuple[str, str, str | None]]
    cluster_answer: tuple[str, str] | None = None


def make_site(kind: str = "SLURM", pool: dict[str, Any] | None = None, **site: Any) -> Site:
    """Return a site with one pool, ``cpu``."""
    return Site.model_validate({"name": "here", "class": kind, "pools": {"cpu": pool or {}}, **site})


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

SAMPLES = {
    "SLURM": QueueSample(
        gpu_request="#SBATCH --gres=gpu:2\n",
        walltime="#SBATCH -t 26:00:00\n",
        memory_request="#SBATCH --mem=30G\n",
        listing=SQUEUE,
        jobs={
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
        },
        answers=[
            ("1041\n", "1041", None),
            ("1041;north\n", "1041", "north"),
            ("Submitted batch job 1041\n", "1041", None),
            ("Submitted batch job 1041 on cluster north\n", "1041", "north"),
        ],
        cluster_answer=("scontrol", "Configuration data as of 2026-11-29T12:00:00\nClusterName             = north"),
    ),
    "PBS": QueueSample(
        gpu_request="#PBS -l select=1:ncpus=8:mem=30518mb:ngpus=2\n",
        walltime="#PBS -l walltime=26:00:00\n",
        memory_request=":mem=30518mb",
        listing=QSTAT_PBS,
        jobs={
            "1234": JobState("pending", name="daskpipe_cpu_1"),
            "1235": JobState("running", "n012", name="daskpipe_gpu_2"),
            "1236[]": JobState("other", name="other"),
            "1237": JobState("other", None, "held", never=True, name="daskpipe_cpu_3"),
            "1238": JobState("other", "n013", name="daskpipe_cpu_4"),
        },
        answers=[
            ("1234.pbs01\n", "1234", None),
            ("1236[].pbs01.example.org\n", "1236[]", None),
        ],
        cluster_answer=("qstat", "Server: north\n    server_state = Active"),
    ),
    "LSF": QueueSample(
        gpu_request="#BSUB -gpu num=2\n",
        walltime="#BSUB -W 26:00\n",
        memory_request="#BSUB -M 32000000\n",
        listing=BJOBS,
        jobs={
            "501": JobState("running", "n012", name="x-gpu.1"),
            "502": JobState(
                "pending",
                None,
                "Not enough GPUs on the hosts; Job's requirements for resources not satisfied",
                name="x-gpu.2",
            ),
            "503": JobState(
                "other", None, "The job was suspended by the user while pending", never=True, name="x-gpu.3"
            ),
            "504": JobState("over", "n012", name="x-gpu.4"),
            "505": JobState("running", "n014", name="x-gpu.5"),
        },
        answers=[
            ("Job <501> is submitted to queue <normal>.\n", "501", None),
            ("Job <501> is submitted to default queue <normal>.\n", "501", None),
        ],
        cluster_answer=("lsid", "IBM Spectrum LSF 10.1.0.0\n\nMy cluster name is north\nMy master name is m1"),
    ),
    "SGE": QueueSample(
        gpu_request="#$ -l gpu=2\n",
        walltime="#$ -l h_rt=26:00:00\n",
        listing=QSTAT_SGE,
        jobs={
            "3041": JobState("running", "n012.cluster.example", name="daskpipe-1a2b3c4d-gpu.1"),
            "3042": JobState("pending", name="daskpipe-1a2b3c4d-gpu.2"),
            "3043": JobState("other", None, "Eqw", never=True, name="daskpipe_g"),
            "3044": JobState("other", None, "hqw", never=True, name="daskpipe_g"),
            "3045": JobState("other", "n013.cluster.example", name="daskpipe_g"),
        },
        answers=[
            ('Your job 3041 ("daskpipe_1") has been submitted\n', "3041", None),
        ],
    ),
    "HTCondor": QueueSample(
        gpu_request="\nrequest_gpus = 2\n",
        walltime="\nperiodic_remove = JobStatus == 2 && time() - JobCurrentStartDate > 93600\n",
        memory_request="RequestMemory = ",
        listing=CONDOR_Q,
        jobs={
            "88.0": JobState("pending", name="x-cpu.88"),
            "89.0": JobState("running", "n012.cluster.example", name="x-cpu.89"),
            "90.0": JobState("other", None, "Error from slot1_2@n013: out of memory", never=True, name="x-cpu.90"),
            "91.0": JobState("running", "n014.cluster.example", name="x-cpu.91"),
        },
        answers=[
            ("Submitting job(s).\n1 job(s) submitted to cluster 88.\n", "88.0", None),
        ],
    ),
    "OAR": QueueSample(
        gpu_request="#OAR -l /nodes=1/gpu=2/core=4,walltime=26:00:00\n",
        walltime=",walltime=26:00:00\n",
        listing=OARSTAT,
        jobs={
            "701": JobState("pending", None, "FIFO scheduling OK", name="x"),
            "702": JobState("running", "n012.cluster.example"),
            "703": JobState("other", None, "", never=True),
            "704": JobState("pending"),
            "705": JobState("over", None, "no"),
        },
        answers=[
            ("[ADMISSION RULE] Modify resource description\nOAR_JOB_ID=701\n", "701", None),
        ],
    ),
}
"""Samples by the name of the queue system."""

KINDS = sorted(SAMPLES)
