"""Find the programs that ASE's calculators start, and identify their methods."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from typing import Any

from daskpipe.core.errors import ConfigError
from daskpipe.potentials.identity import Identity, hash_facts

NOT_DECIDING = ("command", "n_ranks", "timeout", "memory")
"""Parameters that change no number."""


def require_program(name: str, command: str) -> str:
    """Return the path of the program that the first word of a command names.

    Raises
    ------
    ConfigError
        If it is not on the PATH.
    """
    words = shlex.split(command)
    program = shutil.which(words[0]) if words else None
    if program is None:
        raise ConfigError(
            f"potential {name!r} needs the program {words[0] if words else name!r}, which is not on the PATH; install "
            "it, or give label.potential.params.command='mpirun -n 4 /path/to/program'"
        )
    return program


def identity_of_program(
    name: str, program: str, params: Mapping[str, Any], elements: frozenset[str] | None = None
) -> Identity:
    """Identify a method of a program by its parameters; the version of the program is no part of it."""
    deciding = {key: value for key, value in params.items() if key not in NOT_DECIDING}
    return Identity(name=name, hash=hash_facts(program, deciding), elements=elements)
