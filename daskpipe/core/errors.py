"""Define the errors that users see, each with its exit code, and the record of a rejected structure.

An error says what was wrong, what was received, and what to type next. The exit codes are the contract of the command
line; library users catch the classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any

EXIT_COMPLETE = 0
EXIT_INTERNAL = 1
EXIT_QUARANTINED = 10
EXIT_INTERRUPTED = 75

MOST_LISTED = 40
"""Most known names that a message lists."""


class DaskpipeError(Exception):
    """Base of every error that daskpipe raises on purpose."""

    exit_code = EXIT_INTERNAL
    seconds: float = 0.0
    """Seconds of work of the attempt at a unit that this error ended."""


class ConfigError(DaskpipeError):
    """The command or the config is wrong; nothing was run."""

    exit_code = 2


class InputError(DaskpipeError):
    """A file, model or dataset that the user named cannot be used."""

    exit_code = 3


class ClusterError(DaskpipeError):
    """The workers that the run needs cannot be had."""

    exit_code = 4


class DiskError(DaskpipeError):
    """The disk is full or cannot be written."""

    exit_code = 5


class DiskUnreachable(DiskError):
    """The disk or its server does not answer; the same call may work a moment later."""


class IntegrityError(DaskpipeError):
    """Bytes on disk are not the bytes that were committed."""


class Interrupted(DaskpipeError):
    """The run was stopped before its end; ``daskpipe resume`` continues it."""

    exit_code = EXIT_INTERRUPTED


class Yielded(DaskpipeError):
    """A unit stopped at a checkpoint because its worker ends soon; another worker continues it."""


class Suspect(DaskpipeError):
    """Memory ran out under a unit, or a device failed; the unit or its worker may be the cause."""


def describe_unknown(kind: str, name: object, known: list[str]) -> str:
    """Return the message for a name that is not known: what was received, the nearest known name and all of them.

    Parameters
    ----------
    kind
        What the names are called, in the singular.
    name
        What was received.
    known
        At most `MOST_LISTED` of them are listed.

    Examples
    --------
    >>> describe_unknown("potential", "mase", ["chgnet", "mace"])
    "unknown potential 'mase'. Did you mean 'mace'? Known: chgnet, mace."
    """
    near = get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = f"Known: {', '.join(known) or 'none'}" if len(known) <= MOST_LISTED else f"{len(known)} are known"
    return f"unknown {kind} {str(name)!r}.{hint} {listed}."


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A structure that was taken out of the run, and why.

    Parameters
    ----------
    stage
        The stage that rejected it.
    structure
        The structure's id in hex, or the name of the input (a file and its frame) that gave none.
    reason
        One word from the list of the stage, fit for counting: ``overlap``, ``unreadable``, ``not_finite`` ...
    evidence
        What was measured, in words and numbers, for people.
    attempts
        Number of tries.
    details
        Anything else worth keeping, JSON types only (e.g. the step at which a trajectory broke).
    """

    stage: str
    structure: str
    reason: str
    evidence: str
    attempts: int = 1
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Name under which it is counted: ``stage/reason``."""
        return f"{self.stage}/{self.reason}"

    def as_json(self) -> dict[str, Any]:
        """Return the rejection as JSON types."""
        return asdict(self)


def count_reasons(rejections: Iterable[Rejection]) -> dict[str, int]:
    """Count rejections by kind, sorted by the names of the kinds."""
    return dict(sorted(Counter(rejection.kind for rejection in rejections).items()))


def describe_reasons(rejections: Iterable[Rejection]) -> str:
    """Return the counts of rejections by kind as words, e.g. ``3 generate/overlap, 1 label/timeout``."""
    return ", ".join(f"{n:,} {kind}" for kind, n in count_reasons(rejections).items())
