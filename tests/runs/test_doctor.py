"""The doctor's examination of this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from daskpipe.runs.doctor import examine_machine


def test_doctor_tries_every_potential(type_command: Callable[..., Any]) -> None:
    examined = examine_machine()
    assert {name: row["ok"] for name, row in examined["potentials"].items()} == {
        "emt": True, "mace (bundled)": True, "chgnet": True, "xtb": True, "diep": True, "pyscf": True,
    }  # fmt: skip
    assert all("eV/atom" in row["says"] for row in examined["potentials"].values())
    assert examined["machine"]["packages"]["ok"]
    json.dumps(examined)
    typed = type_command("doctor")
    assert typed.code == 0
    for name in ("GPU", "disk", "Slurm", "mace (bundled)"):
        assert name in typed.out
