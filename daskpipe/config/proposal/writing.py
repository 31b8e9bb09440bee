"""Write a proposal as YAML with comments, and try it as a config."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

from daskpipe.config.load import load_config
from daskpipe.config.proposal.conditions import (
    BATCH_SIZES,
    choose_cutoff,
    choose_potential,
    choose_teacher,
    choose_temperatures,
    choose_temperatures_by_type,
    describe_timestep,
)
from daskpipe.config.proposal.kinds import KINDS, Source, Study, choose_kinds, make_sources
from daskpipe.config.proposal.systems import System, read_system
from daskpipe.config.saved import build_schema
from daskpipe.core.errors import ConfigError
from daskpipe.core.outputs import check_output, replace_output

N_SEEDS = 32
"""Structures of all sources with a share: a first run on a laptop."""

STEPS, EQUILIBRATION, STRIDE = 300, 60, 20
"""Steps of a trajectory, those before its first frame, and those between two frames."""

N_PICKS = 120
"""Frames to label."""

WIDTH = 116
"""Longest line of a comment."""


@dataclass(frozen=True)
class Proposal:
    """A config that was written, and the lines that explain it to who typed the command.

    Parameters
    ----------
    path
        The file.
    lines
        What the texts were taken for, and the choices with their reasons.
    """

    path: Path
    lines: tuple[str, ...]


def propose_config(
    texts: Sequence[str], out: str | Path | None = None, *, kinds: Sequence[str] | None = None, force: bool = False
) -> Proposal:
    """Write a commented config for systems.

    Parameters
    ----------
    texts
        Chemical formulas, names of molecules in ASE's G2 set, SMILES, and paths of files of structures.
    out
        File to write, ``*.yaml``; by default named after the systems, in the current folder.
    kinds
        Kinds of structures, of `daskpipe.config.proposal.KINDS`; the usual ones of the systems by default.
    force
        Replace `out` if it exists.

    Returns
    -------
    Proposal
        The file has been composed and validated as a config.

    Raises
    ------
    ConfigError
        For a text that is none of these, a kind that the systems do not have, elements that no potential here knows,
        or if `out` exists.
    InputError
        If a file of structures cannot be read.
    """
    if not texts:
        raise ConfigError("nothing to make a config for; type e.g. daskpipe new MgO, or daskpipe new my.cif")
    if kinds is not None and not kinds:
        raise ConfigError(f"--kinds is empty; choose of {', '.join(KINDS)}")
    study = _read_study(texts, kinds)
    chosen = choose_kinds(study, kinds)
    name = _make_name(texts)
    path = Path(f"{name}.yaml" if out is None else out)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path} is no name of a config; give -o NAME.yaml")
    check_output(path, force)
    systems = (*study.crystals, *study.molecules)
    lines = [each.describe() for each in systems]
    command = shlex.join(["daskpipe", "new", *texts, *(["--kinds", ",".join(kinds)] if kinds else [])])
    text = _write_text(study, chosen, name, command, path, lines)
    with replace_output(path) as attempt:
        attempt.write_text(text, encoding="utf-8")
        load_config(str(attempt))
    return Proposal(path, tuple(lines))


def _read_study(texts: Sequence[str], kinds: Sequence[str] | None) -> Study:
    """Read the systems; kinds of crystals alone, or of molecules alone, decide what an ambiguous text is."""
    needs = {KINDS[kind].needs for kind in kinds or () if kind in KINDS}
    prefer: Literal["formula", "smiles"] | None = None
    if len(needs) == 1 and "adsorbates" not in (kinds or ()):
        prefer = "formula" if needs == {"crystals"} else "smiles"
    systems = [read_system(text, prefer) for text in dict.fromkeys(texts)]

    def is_molecule(system: System) -> bool:
        return system.open and system.bonding == "molecular"

    return Study(
        crystals=tuple(each for each in systems if not is_molecule(each)),
        molecules=tuple(each for each in systems if is_molecule(each)),
    )


def _make_name(texts: Sequence[str]) -> str:
    """Return a name for the run: the texts, without what a file name or a shell could misread."""
    words = [re.sub(r"[^A-Za-z0-9]+", "", Path(text).stem if Path(text).exists() else text) for text in texts]
    return "_".join(word for word in words if word)[:40] or "config"


def _write_text(study: Study, kinds: Sequence[str], name: str, command: str, path: Path, lines: list[str]) -> str:
    """Return the YAML; the choices are added to `lines`."""
    explorer = choose_potential(study)
    teacher = choose_teacher(explorer)
    temperatures = choose_temperatures(study)
    by_type = choose_temperatures_by_type(study, kinds)
    cutoff = choose_cutoff(study)
    sources = make_sources(study, kinds)
    lines += [
        f"Kinds of structures: {', '.join(kinds)}.",
        f"Explored with {explorer.value['name']}: {explorer.reason}.",
        f"Labelled with {teacher.value['name']}: {teacher.reason}.",
        f"Temperatures {_flow(temperatures.value)} K: {temperatures.reason}.",
    ]
    shared = any("share" in source.keys for source in sources)
    typed = shlex.quote(str(path))
    files = [each.text for each in (*study.crystals, *study.molecules) if each.form == "file"]
    rows = [
        f"# yaml-language-server: $schema={_write_schema()}",
        f"# Made by: {command}",
        *(_comment(line) for line in lines[: len(study.crystals) + len(study.molecules)]),
        f"# What it costs: daskpipe plan {typed} --probe. Start it: daskpipe run {typed}",
        "defaults: [{describe: soap}, {select: kmeans}, {store: zarr}, {cluster: local}, _self_]",
        "",
        f"name: {name}",
        "seed: 0",
        "",
        "generate:",
        *([f"  n: {N_SEEDS}  # of all sources with a share; raise it for a larger dataset"] if shared else []),
        *([_comment("Your structures as they are.", 2), f"  paths: {_flow(files)}"] if files else []),
        "  sources:",
        *(row for source in sources for row in _write_source(source)),
        "",
        "explore:",
        _comment(f"{explorer.reason}.", 2),
        f"  potential: {_flow(explorer.value)}",
        f"  batch_size: {BATCH_SIZES[explorer.value['name']]}  # trajectories of a unit of work",
        "  dynamics:",
        _comment(f"Kelvin: {temperatures.reason}.", 4),
        f"    temperatures: {_flow(temperatures.value)}",
        *(
            [_comment(f"{by_type.reason}.", 4), f"    temperatures_by_type: {_flow(by_type.value)}"]
            if by_type.value
            else []
        ),
        f"    timestep: auto  # {describe_timestep(study)}",
        f"    steps: {STEPS}  # raise it: longer trajectories see more",
        f"    equilibration: {EQUILIBRATION}",
        f"    stride: {STRIDE}",
        "",
        "describe:",
        f"  params: {{r_cut: {cutoff.value:g}}}  # Å: {cutoff.reason}",
        "",
        "select:",
        f"  n: {N_PICKS}  # frames to label, spread over what was seen",
        "",
        "label:",
        _comment(f"{teacher.reason}.", 2),
        f"  potential: {_flow(teacher.value)}",
    ]
    return "\n".join(rows) + "\n"


def _write_source(source: Source) -> list[str]:
    keys = [f"      {key}: {_flow(value)}" for key, value in source.keys.items()]
    return [_comment(source.comment, 4), f"    {source.name}:", *keys]


def _comment(text: str, indent: int = 0) -> str:
    """Return a comment, wrapped."""
    space = " " * indent
    sentence = text[:1].upper() + text[1:] if indent else text
    return "\n".join(wrap(sentence, WIDTH, initial_indent=f"{space}# ", subsequent_indent=f"{space}# "))


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    import yaml

    text: str = yaml.safe_dump(_shorten(value), default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _shorten(value: Any) -> Any:
    """Return a value with whole numbers as integers, in mappings and lists too."""
    if isinstance(value, dict):
        return {key: _shorten(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shorten(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _write_schema() -> Path:
    """Write the schema of configs to the user's cache folder, for editors, and return its path."""
    from platformdirs import user_cache_path

    from daskpipe import __version__

    path = user_cache_path("daskpipe", ensure_exists=True) / f"config-{__version__}.schema.json"
    text = json.dumps(build_schema())
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        with replace_output(path) as attempt:
            attempt.write_text(text, encoding="utf-8")
    return path
