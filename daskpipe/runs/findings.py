"""Findings of an audit: what is wrong in a run directory."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A file or folder that is not as it should be.

    Parameters
    ----------
    path
        Path of the file or folder, relative to the run directory.
    expected, found
        Expected and present state, in words.
    unit
        The unit that it belongs to, in words; empty if to none.
    aside
        Path that `fsck` with ``mend=True`` moves to ``damaged/``; empty if it mends in another way.
    """

    path: str
    expected: str
    found: str
    unit: str = ""
    aside: str = ""

    def __str__(self) -> str:
        of_unit = f" of {self.unit}" if self.unit else ""
        return f"{self.path}{of_unit}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """Result of `fsck`.

    Parameters
    ----------
    run_dir, rehashed
        The run directory, and whether every byte was read.
    stages
        Per stage: units, inputs, outputs, rejected and, where the plan is known, pending inputs.
    findings
        What is wrong.
    leftovers
        Files that attempts left behind, and what was moved aside: path, bytes, kind. They do no harm.
    waiting
        Units that were moved aside and are not made again yet.
    mended
        Repairs, in words.
    """

    run_dir: Path
    rehashed: bool
    stages: dict[str, dict[str, int | None]]
    findings: list[Finding]
    leftovers: list[dict[str, Any]]
    waiting: list[str]
    mended: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        findings = [{**asdict(finding), "says": str(finding)} for finding in self.findings]
        made = {"run_dir": str(self.run_dir), "clean": not self.findings, "findings": findings, "next": self.next}
        return {**asdict(self), **made}

    @property
    def next(self) -> list[str]:
        """Commands to type next."""
        run = quote(str(self.run_dir))
        if self.findings and not self.mended:
            return [f"daskpipe fsck {run} --rehash --mend", f"daskpipe resume {run}"]
        return [f"daskpipe resume {run}"] if self.findings or self.waiting or self.mended else []
