"""Count the jobs that fail in a row: on a host, which is then left out, and in a pool, which then waits."""

from __future__ import annotations

import time
from collections.abc import Iterable

HOST_LIMIT = 2
"""Jobs in a row that end early on one host, after which it is left out."""

FAILURE_LIMIT = 8
"""Jobs of a pool in a row that end, or are refused, before a worker registers, after which the run stops."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds without a submission after a pool's first failure, and at most; each failure in a row doubles them."""


class HostFailures:
    """Jobs in a row that ended early, by host."""

    def __init__(self) -> None:
        self.excluded: set[str] = set()
        """Hosts that new jobs leave out."""
        self._counts: dict[str, int] = {}

    def count_failure(self, host: str) -> bool:
        """Count a job that ended early; return whether the host is left out from now on."""
        self._counts[host] = self._counts.get(host, 0) + 1
        if self._counts[host] < HOST_LIMIT or host in self.excluded:
            return False
        self.excluded.add(host)
        return True

    def forget_host(self, host: str | None) -> None:
        """Set the count of a host to zero."""
        self._counts.pop(host or "", None)

    def forget_all(self) -> None:
        """Set all counts to zero and leave out no host."""
        self.excluded.clear()
        self._counts.clear()


class PoolFailures:
    """Jobs in a row that failed before a worker registered, by pool, and the pauses after them.

    Parameters
    ----------
    pools
        Names of the pools.
    """

    def __init__(self, pools: Iterable[str]) -> None:
        self.counts = dict.fromkeys(pools, 0)
        """Failures in a row, by pool."""
        self._resume_at = dict.fromkeys(self.counts, 0.0)

    def count_failure(self, pool: str) -> float:
        """Count a job that failed, and start the pause of its pool; return the length of the pause in s."""
        self.counts[pool] += 1
        return self.start_pause(pool)

    def start_pause(self, pool: str, seconds: float | None = None) -> float:
        """Let a pool submit nothing for a while; return the time in s, by default what its failures ask for."""
        if seconds is None:
            seconds = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (self.counts[pool] - 1))
        self._resume_at[pool] = time.monotonic() + seconds
        return seconds

    def is_pausing(self, pool: str) -> bool:
        """Tell whether a pool is to submit nothing now."""
        return time.monotonic() < self._resume_at[pool]

    def has_reached_limit(self, pool: str) -> bool:
        """Tell whether so many jobs of a pool have failed in a row that the run stops."""
        return self.counts[pool] >= FAILURE_LIMIT

    def forget_pool(self, pool: str) -> None:
        """Set the count of a pool to zero, since a worker of it has registered."""
        self.counts[pool] = 0
