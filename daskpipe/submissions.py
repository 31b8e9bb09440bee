"""Jobs that a run directory has submitted, for whoever keeps or cancels them; and how a queue is asked.

``jobs.jsonl`` in the run directory has a line for each submission, with ``job_id``, ``pool``, ``name``, ``at`` and
``class``, and one, ``closed``, when all jobs of a driver had left the queue: queues use their numbers again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from daskpipe import sites
from daskpipe.errors import ClusterError

RECORD = "jobs.jsonl"

COMMAND_SECONDS = 60.0
"""Time that the queue has to answer the keeper."""

ANSWER_SECONDS = 30.0
"""Time that it has to answer somebody who waits."""


def cancel_left(site: sites.Site, root: Path) -> list[str]:
    """Cancel jobs of a run directory that no driver keeps any more; return the ids of those that were left.

    Parameters
    ----------
    site
        Where they were submitted.
    root
        Run directory of which no driver lives; ``jobs.jsonl`` in it tells of the jobs.

    Raises
    ------
    ClusterError
        If the queue does not answer.
    """
    submitted = [line["job_id"] for line in recorded(root) if line["class"] == site.kind]
    if not submitted:
        return []
    listed = listed_in(site)
    left = [job_id for job_id in submitted if job_id in listed]
    if left:
        ask([*cancel_command(site), *left])
    return left


def record(root: Path, **line: str) -> None:
    """Add a line to the list of jobs, with the time."""
    file = root / RECORD
    torn = file.exists() and not file.read_bytes().endswith(b"\n")
    with file.open("a") as lines:
        lines.write("\n" * torn + json.dumps({**line, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}) + "\n")


def recorded(root: Path) -> list[dict[str, Any]]:
    """Return the submissions of a run directory that may have left a job: those since a driver ended in order."""
    left: list[dict[str, Any]] = []
    for line in lines_of(root):
        left = [] if "closed" in line else [*left, line]
    return left


def lines_of(root: Path) -> list[dict[str, Any]]:
    """Return the lines of the list of jobs; one that was torn by a kill is none."""
    file = root / RECORD
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def tag(root: Path) -> str:
    """Return what the names of a run directory's jobs begin with."""
    return f"daskpipe-{hashlib.blake2b(os.fsencode(root), digest_size=4).hexdigest()}"


def cancel_command(site: sites.Site) -> list[str]:
    """Return the words before the ids of jobs that are to be cancelled."""
    return shlex.split(sites.job_class(site).cancel_command)


def listed_in(site: sites.Site) -> set[str]:
    """Return the ids of the user's jobs in a queue; raises as `ask`."""
    return set(sites.parse(site, ask(sites.queue(site))))


def ask(words: Sequence[str]) -> str:
    """Run a command of a queue, where nothing else has to go on; return what it prints.

    Raises
    ------
    ClusterError
        If it is not there, fails or does not answer.
    """
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=ANSWER_SECONDS).stdout
    except subprocess.CalledProcessError as error:
        raise ClusterError(f"{shlex.join(words)}: {error.stderr.strip()}. Try again when it answers") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"{shlex.join(words)}: {error}. Type this where the site's commands are") from error


async def output(words: Sequence[str]) -> str:
    """Run a command; return what it printed.

    Raises
    ------
    OSError, RuntimeError
        If there is no such command, or it fails or does not answer; with what it said.
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    try:
        out, err = await asyncio.wait_for(process.communicate(), COMMAND_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise RuntimeError(f"{words[0]} did not answer in {COMMAND_SECONDS:.0f} s") from None
    if process.returncode:
        raise RuntimeError((err or out).decode(errors="replace"))
    return out.decode(errors="replace")


def words_of(error: Exception) -> str:
    """Return what a command said, on one line; dask-jobqueue wraps it into words of its own."""
    return " ".join(str(error).rpartition("stderr:")[2].split()) or type(error).__name__
