"""Errors that users see, each with its exit code, and the record of a rejected structure.

An error says what was wrong, what was received, and what to type next. The exit codes are the CLI's
contract; library users catch the classes.
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
"""Longest list of known names that a message spells out."""


class DaskpipeError(Exception):
    """Base of every error that daskpipe raises on purpose."""

    exit_code = EXIT_INTERNAL
    seconds: float = 0.0
    """Seconds of work of the attempt at a unit that ended so."""


class ConfigError(DaskpipeError):
    """The command or the config is wrong; nothing was run."""

    exit_code = 2


class InputError(DaskpipeError):
    """A file, model or dataset that the user named cannot be used."""

    exit_code = 3


class ClusterError(DaskpipeError):
    """The workers that the run needs are not there."""

    exit_code = 4


class DiskError(DaskpipeError):
    """The disk is full or cannot be written."""

    exit_code = 5


class DiskUnreachable(DiskError):
    """The disk or its server does not answer; the same may work a moment later."""


class IntegrityError(DaskpipeError):
    """Bytes on disk are not the bytes that were committed."""


class Interrupted(DaskpipeError):
    """The run was stopped before its end; ``daskpipe resume`` goes on."""

    exit_code = EXIT_INTERRUPTED


class Yielded(DaskpipeError):
    """A unit stopped at a checkpoint because its worker ends soon; it goes on elsewhere."""


class Suspect(DaskpipeError):
    """Memory ran out under a unit, or a device failed: the unit or its worker is at fault, and which is not known."""


def unknown(kind: str, name: object, known: list[str]) -> str:
    """Message for a name that is not known: what was received, the nearest and all known names."""
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
        The room that rejected it.
    structure
        The structure's id in hex, or the name of the input (a file and its frame) that gave none.
    reason
        One word from the room's list, fit for counting: ``overlap``, ``unreadable``, ``not_finite`` ...
    evidence
        What was measured, in words and numbers, for a person.
    attempts
        How often it was tried.
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
        """What it is counted by: ``stage/reason``."""
        return f"{self.stage}/{self.reason}"

    def as_json(self) -> dict[str, Any]:
        """Return the rejection as JSON types."""
        return asdict(self)


def printable(text: object) -> str:
    """Return text as a terminal may be given it: characters that steer one are spelled out, line ends stay."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in str(text)
    )


def reasons(rejections: Iterable[Rejection]) -> dict[str, int]:
    """Count rejections by kind, in the order of the kinds' names."""
    return dict(sorted(Counter(rejection.kind for rejection in rejections).items()))


def list_reasons(rejections: Iterable[Rejection]) -> str:
    """Return the counts of rejections by kind as words, e.g. ``3 generate/overlap, 1 label/timeout``."""
    return ", ".join(f"{n:,} {kind}" for kind, n in reasons(rejections).items())
