"""``daskpipe`` with less patience for workers that do not come, and queues that serve nobody else."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    import sys

    from daskpipe import keeper, window
    from daskpipe.cli import main as daskpipe

    window.NO_WORKER_SECONDS = 3.0
    keeper.TICK_SECONDS = 0.2
    keeper.QUEUE_SECONDS = 1.0
    sys.argv[0] = "daskpipe"
    daskpipe()


if __name__ == "__main__":
    main()
