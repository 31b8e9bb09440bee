"""How far a run is, read from its directory alone."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

from daskpipe.errors import ConfigError, reasons
from daskpipe.ledger import read_ledger
from daskpipe.work import Tree


def status(run_dir: Path | str) -> dict[str, Any]:
    """Return how far a run is.

    Parameters
    ----------
    run_dir
        A run directory; need not be complete.

    Returns
    -------
    dict
        ``state`` (``running``, ``complete`` or ``stopped``), ``stages`` (units committed and planned, outputs,
        rejected), ``quarantined`` by reason, ``driver_starts`` and ``dataset`` (or None). JSON types.

    Raises
    ------
    ConfigError
        If it is no run directory.
    """
    tree = Tree(Path(run_dir))
    if not tree.config.is_file():
        raise ConfigError(f"{run_dir} is no run directory (it has no config.yaml); see: ls runs")
    events = read_ledger(tree)
    stages: dict[str, dict[str, int]] = {}
    finished = False
    for event in events:
        if event["event"] == "RunStarted":
            finished = False
        elif event["event"] == "StageStarted":
            planned = stages.setdefault(event["stage"], {"committed": 0, "planned": 0, "out": 0, "rejected": 0})
            planned |= {"planned": event["n_units"], "committed": event["n_committed"]}
        elif event["event"] == "UnitCommitted":
            stages[event["stage"]]["committed"] += 1
        elif event["event"] == "StageFinished":
            stages[event["stage"]] |= {"out": event["n_out"], "rejected": event["n_rejected"]}
        elif event["event"] == "RunFinished":
            finished = True
    running = is_running(tree)
    return {
        "run_dir": str(tree.root),
        "state": "running" if running else "complete" if finished and tree.dataset.exists() else "stopped",
        "stages": stages,
        "quarantined": reasons(tree.quarantined()),
        "driver_starts": len({event["segment"] for event in events}),
        "dataset": str(tree.dataset) if tree.dataset.exists() else None,
    }


def is_running(tree: Tree) -> bool:
    """Whether a driver on this machine holds the run directory."""
    lock = tree.root / ".lock"
    if not lock.exists():
        return False
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
