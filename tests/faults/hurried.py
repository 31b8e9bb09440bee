"""Run ``daskpipe`` with short waits for workers and for queues, which serve nobody else in tests."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    import sys

    from daskpipe.cli.main import main as daskpipe
    from daskpipe.cluster import job_scaler
    from daskpipe.engine import dispatcher

    dispatcher.NO_WORKER_SECONDS = 3.0
    job_scaler.TICK_SECONDS = 0.2
    job_scaler.QUEUE_SECONDS = 1.0
    sys.argv[0] = "daskpipe"
    daskpipe()


if __name__ == "__main__":
    main()
