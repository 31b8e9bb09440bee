"""End the workers of a job when its run ends."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from distributed import Client, Security

from daskpipe.cluster.addresses import LOOPBACK
from daskpipe.cluster.scheduler import run_scheduler
from daskpipe.cluster.tls import write_keys

PROGRAM = """
import sys
from daskpipe.cluster import worker
if __name__ == "__main__":
    worker.KEY_SECONDS = 0.2
    worker.main()
"""


def test_a_job_ends_when_the_key_of_its_run_is_gone(tmp_path: Path) -> None:
    """Though the scheduler lives on here; where it does not, Dask's own ways end a job only if its network works."""
    security = Security.temporary()
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with (
        write_keys(tmp_path, security) as keys,
        run_scheduler(LOOPBACK, security, None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        words = [cluster.scheduler_address, "--nthreads", "1", "--nanny"]
        for option, file in (("--tls-ca-file", "ca.pem"), ("--tls-cert", "cert.pem"), ("--tls-key", "key.pem")):
            words += [option, str(keys / file)]
        with (tmp_path / "log.txt").open("wb") as log:
            job = subprocess.Popen([sys.executable, program, *words], stdout=log, stderr=log)
        try:
            client.wait_for_workers(1, timeout=90)
            assert job.poll() is None
            shutil.rmtree(keys)
            job.wait(60)
        finally:
            job.kill()
            job.wait()
        assert f"{keys}/key.pem is gone, and so is the run" in (tmp_path / "log.txt").read_text()
