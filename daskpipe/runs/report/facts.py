"""Collect what happened in a run, from its directory, or from the attributes of its dataset."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from daskpipe.core.errors import InputError, Rejection
from daskpipe.engine.ledger import read_ledger
from daskpipe.engine.run_directory import RunDirectory
from daskpipe.engine.units import Receipt, Unit
from daskpipe.runs.report.frames import Frames, read_frames
from daskpipe.runs.report.seeds import describe_seeds
from daskpipe.runs.report.split_words import describe_splits, list_shares

if TYPE_CHECKING:
    from daskpipe.runs.report.contents import Contents

EXAMPLES = 3
"""Most examples of each reason."""

STAGES = (
    "generate", "explore", "read", "describe-against", "describe-fit", "describe", "select", "label",
    "label-check", "label-judge", "label-atoms", "store",
)  # fmt: skip
"""Stages in the order of the page."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Counts of what passed through a stage.

    Parameters
    ----------
    stage
        Name of the stage.
    n_in, n_out
        Number of inputs and outputs, whose names are `came` and `went`.
    removed
        Number of what was taken out, by reason.
    of
        Name of what was taken out.
    """

    stage: str
    n_in: int
    came: str
    n_out: int
    went: str
    removed: dict[str, int]
    of: str


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Time of a stage in seconds: wall time of the driver, and the sum over units that measure it."""

    stage: str
    wall_seconds: float
    unit_seconds: float
    n_units: int
    n_lost: int
    n_suspect: int


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Structures that one stage rejected for one reason: their number, and examples."""

    stage: str
    reason: str
    n: int
    examples: list[Rejection]


@dataclass(frozen=True, kw_only=True)
class Source:
    """File or dataset that structures were read from, as the dataset records it; None for what is not recorded."""

    name: str
    n_structures: int | None
    labelled_by: str | None
    checksum: str | None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts on a run or a dataset that the page shows, without the contents of the dataset."""

    name: str
    target: str
    kind: str
    began: str | None = None
    ended: str | None = None
    state: str | None = None
    steps: list[Step] = field(default_factory=list)
    selection: dict[str, Any] = field(default_factory=dict)
    reasons: list[Reason] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    n_starts: int = 0
    frames: Frames | None = None
    seeds: list[str] = field(default_factory=list)
    config: str | None = None
    provenance: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    split_rows: list[tuple[str, str]] = field(default_factory=list)
    split_shares: list[tuple[str, ...]] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    gate: dict[str, Any] | None = None
    gate_note: str = ""
    gate_command: str = ""


def collect_run_facts(directory: RunDirectory, contents: Contents | None, verdict: Mapping[str, Any] | None) -> Facts:
    """Collect facts from a run directory; the run need not be complete.

    Raises
    ------
    InputError
        If its quality.json is no verdict.
    IntegrityError
        If the files of a committed unit have changed.
    """
    from daskpipe.runs.status import read_status

    attributes = contents.attributes if contents else {}
    events = read_ledger(directory)
    units = _read_units(directory, events)
    receipts = {stage: [receipt for _, receipt in of_stage] for stage, of_stage in units.items()}
    outs = {stage: sum(receipt.n_out for receipt in of_stage) for stage, of_stage in receipts.items()}
    inputs = {stage: sum(receipt.n_inputs for receipt in of_stage) for stage, of_stage in receipts.items()}
    reasons = _count_reasons(directory)
    selection = {}
    if units.get("select"):
        selection = json.loads(directory.load_arrays("select", units["select"][0][0].key, ["report"])["report"].item())
    config = directory.config.read_text()
    return Facts(
        name=_read_name(config, directory.root),
        target=str(directory.root),
        kind="run",
        began=events[0]["at"] if events else None,
        ended=events[-1]["at"] if events else None,
        state=read_status(directory.root)["state"],
        steps=_list_steps(outs, inputs, {(reason.stage, reason.reason): reason.n for reason in reasons}, selection),
        selection=selection,
        reasons=reasons,
        timings=_sum_timings(events, receipts),
        n_starts=len({event["segment"] for event in events}),
        frames=read_frames(directory, units),
        seeds=describe_seeds(directory, receipts.get("generate", []), config),
        config=config,
        provenance=_list_provenance(attributes, _list_models(directory, attributes)),
        versions=_parse_attribute(attributes, "versions"),
        split_rows=describe_splits(
            _parse_attribute(attributes, "split_rule"), _parse_attribute(attributes, "split_report")
        ),
        split_shares=list_shares(_parse_attribute(attributes, "split_report")),
        sources=_list_sources(attributes),
        **_read_gate(directory.dataset, directory.root / "quality.json", contents, verdict),
    )


def collect_dataset_facts(contents: Contents, verdict: Mapping[str, Any] | None) -> Facts:
    """Collect facts on the run that made a dataset from its attributes.

    Raises
    ------
    InputError
        If an attribute or the verdict cannot be read.
    """
    attributes = contents.attributes
    counts = {}
    for kind, n in _parse_attribute(attributes, "quarantined").items():
        stage, _, reason = str(kind).partition("/")
        counts[stage, reason] = int(n)
    selection = _parse_attribute(attributes, "selection")
    config = _parse_attribute(attributes, "config")
    return Facts(
        name=str(config.get("name", contents.path.stem)),
        target=str(contents.path),
        kind="dataset",
        steps=_list_steps(_parse_attribute(attributes, "run_counts"), {}, counts, selection),
        selection=selection,
        reasons=[Reason(stage=stage, reason=reason, n=n, examples=[]) for (stage, reason), n in counts.items()],
        config=json.dumps(config, indent=1, ensure_ascii=False) if config else None,
        provenance=_list_provenance(attributes, _list_models(None, attributes)),
        versions=_parse_attribute(attributes, "versions"),
        split_rows=describe_splits(
            _parse_attribute(attributes, "split_rule"), _parse_attribute(attributes, "split_report")
        ),
        split_shares=list_shares(_parse_attribute(attributes, "split_report")),
        sources=_list_sources(attributes),
        **_read_gate(contents.path, contents.path.with_name("quality.json"), contents, verdict),
    )


# --- counts -----------------------------------------------------------------------------------------


def _read_units(directory: RunDirectory, events: list[dict[str, Any]]) -> dict[str, list[tuple[Unit, Receipt]]]:
    """Read the units of a run by stage, in order.

    Where units of an earlier version of a stage are left, the newest one of each index counts, up to the number that
    was planned last.
    """
    planned = {event["stage"]: event["n_units"] for event in events if event["event"] == "StageStarted"}
    newest: dict[str, dict[int, tuple[float, Unit, Receipt]]] = {}
    for file in directory.list_manifests():
        try:
            written, manifest = file.stat().st_mtime, json.loads(file.read_bytes())
        except FileNotFoundError:  # removed meanwhile by a release or an fsck
            continue
        unit = Unit(**{**manifest["unit"], "upstream": tuple(manifest["unit"]["upstream"])})
        of_stage = newest.setdefault(unit.stage, {})
        if unit.index < planned.get(unit.stage, unit.index + 1) and (
            unit.index not in of_stage or of_stage[unit.index][0] < written
        ):
            of_stage[unit.index] = (written, unit, Receipt(**manifest["receipt"]))
    return {stage: [numbered[index][1:] for index in sorted(numbered)] for stage, numbered in newest.items()}


def _count_reasons(directory: RunDirectory) -> list[Reason]:
    """Count rejections by stage and reason, in the order of the stages, with the first ones as examples."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[Rejection]] = {}
    for rejection in _read_rejections(directory):
        kind = (rejection.stage, rejection.reason)
        counts[kind] += 1
        if len(examples.setdefault(kind, [])) < EXAMPLES:
            examples[kind].append(rejection)
    order = {stage: number for number, stage in enumerate(STAGES)}
    kinds = sorted(counts, key=lambda kind: (order.get(kind[0], len(order)), -counts[kind], kind))
    return [
        Reason(stage=stage, reason=reason, n=counts[stage, reason], examples=examples[stage, reason])
        for stage, reason in kinds
    ]


def _read_rejections(directory: RunDirectory) -> Iterator[Rejection]:
    """Yield the rejections of a run one at a time: each holds geometries, and there may be many."""
    for file in directory.quarantine_files():
        yield directory.read_rejection(file)


def _list_steps(
    outs: Mapping[str, int], inputs: Mapping[str, int], counts: Mapping[tuple[str, str], int], selection: dict[str, Any]
) -> list[Step]:
    """List what came into each stage, left it, and was taken out, for the stages that the run has reached."""
    removed = {
        stage: dict(Counter({reason: n for (where, reason), n in counts.items() if where == stage}).most_common())
        for stage in STAGES
    }
    steps = []
    if "generate" in outs:
        # Duplicates among seeds are known only when all seeds are made.
        seeds = outs["generate"] - removed["generate"].get("duplicate", 0)
        made = seeds + sum(removed["generate"].values())
        steps.append(_make_step("generate", made, "structures made or read", seeds, "seeds", removed, "structures"))
        if "explore" in outs:
            n_in = inputs.get("explore", seeds)
            came = "trajectories" if "explore" in inputs else "seeds"
            steps.append(
                _make_step("explore", n_in, came, outs["explore"], "frames", removed, "trajectories that broke")
            )
    if "explore" in outs and "select" in outs:
        pool, picked = outs["explore"], outs["select"]
        duplicates = selection.get("duplicates", {})
        near = {
            "near-duplicate of an earlier frame": int(duplicates.get("against_pool", 0)),
            "near-duplicate of the existing dataset": int(duplicates.get("against_dataset", 0)),
        }
        if "above_energy_window" in selection:
            near["above the energy window"] = int(selection["above_energy_window"])
        near["not picked"] = pool - picked - sum(near.values())
        left_out = {"select": {why: n for why, n in near.items() if n > 0}}
        steps.append(_make_step("select", pool, "frames", picked, "picks", left_out, "frames"))
    if "select" in outs and "label" in outs:
        steps.append(_make_step("label", outs["select"], "picks", outs["label"], "labelled", removed, "picks"))
    if "label" in outs and "store" in outs:
        steps.append(_make_step("store", outs["label"], "labelled", outs["store"], "stored", removed, "structures"))
    return steps


def _make_step(
    stage: str, n_in: int, came: str, n_out: int, went: str, removed: Mapping[str, dict[str, int]], of: str
) -> Step:
    return Step(stage=stage, n_in=n_in, came=came, n_out=n_out, went=went, removed=removed.get(stage, {}), of=of)


def _sum_timings(events: list[dict[str, Any]], receipts: Mapping[str, list[Receipt]]) -> list[Timing]:
    """Add up the times of passes that reached the end of a stage, over all starts of the driver."""
    wall: Counter[str] = Counter()
    tries: Counter[tuple[str, str]] = Counter()
    for event in events:
        if event["event"] == "StageFinished":
            wall[event["stage"]] += event["seconds"]
        elif event["event"] == "UnitLost":
            tries[event["stage"], event.get("kind", "")] += 1
    return [
        Timing(
            stage=stage,
            wall_seconds=wall[stage],
            unit_seconds=sum(receipt.seconds for receipt in receipts.get(stage, [])),
            n_units=len(receipts.get(stage, [])),
            n_lost=tries[stage, "infrastructure"],
            n_suspect=tries[stage, "suspect"],
        )
        for stage in STAGES
        if stage in wall or receipts.get(stage)
    ]


# --- provenance -------------------------------------------------------------------------------------


def _read_name(config: str, root: Path) -> str:
    import yaml

    read = yaml.safe_load(config)
    return str(read.get("name", root.name)) if isinstance(read, dict) else root.name


def _parse_attribute(attributes: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a root attribute that is a JSON object, or the text of one; empty if it is absent.

    Raises
    ------
    InputError
        If it is something else.
    """
    value = attributes.get(name, {})
    try:
        content = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise InputError(f"root attribute {name!r} is not JSON ({error}); see: daskpipe fsck") from error
    if not isinstance(content, dict):
        raise InputError(f"root attribute {name!r} is not a JSON object, received {str(value)[:40]}")
    return content


def _list_models(directory: RunDirectory | None, attributes: Mapping[str, Any]) -> dict[str, str]:
    """List name and hash of each model, by its role."""
    record = directory.root / "potentials.json" if directory else None
    if record and record.is_file():
        read = json.loads(record.read_text())
        return {f"{stage} with": f"{models['name']}, sha256 {models['hash']}" for stage, models in read.items()}
    models = {}
    for stage, attribute in (
        ("explore", "explore_potential"),
        ("label", "label_potential"),
        ("describe", "describe_model"),
    ):
        if model := _parse_attribute(attributes, attribute):
            models[f"{stage} with"] = f"{model.get('name')}, sha256 {model.get('sha256')}"
    return models


def _list_provenance(attributes: Mapping[str, Any], potentials: Mapping[str, str]) -> dict[str, str]:
    checksums = attributes.get("checksums", {})
    given = {
        "seed": attributes.get("seed"),
        **potentials,
        "dataset_key": attributes.get("dataset_key"),
        "schema": attributes.get("daskpipe_schema"),
        "checksum of the root (crc32c)": checksums.get("root") if isinstance(checksums, dict) else None,
    }
    return {name: str(value) for name, value in given.items() if value is not None}


def _list_sources(attributes: Mapping[str, Any]) -> list[Source]:
    """List the files or datasets that a dataset was imported or merged from.

    Raises
    ------
    InputError
        If the attribute ``sources`` cannot be read.
    """
    value = attributes.get("sources", "[]")
    try:
        listed = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise InputError(f"root attribute 'sources' is not JSON ({error}); see: daskpipe fsck") from error
    if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
        raise InputError(f"root attribute 'sources' is not a list of JSON objects, received {str(value)[:40]}")
    return [
        Source(
            name=str(row.get("name", "–")),
            n_structures=int(row["n_structures"]) if "n_structures" in row else None,
            labelled_by=_read_labeller(row),
            checksum=str(row["checksum"]) if "checksum" in row else None,
        )
        for row in listed
    ]


def _read_labeller(row: Mapping[str, Any]) -> str | None:
    """Return the method or the potential that labelled a source."""
    if "label_method" in row:
        return str(row["label_method"])
    return (
        str(_parse_attribute(row, "label_potential")["name"])
        if "name" in _parse_attribute(row, "label_potential")
        else None
    )


def _read_gate(
    target: Path, file: Path, contents: Contents | None, verdict: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the verdict of the quality gate, given or read, a note on it, and the command that makes it.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    command = f"daskpipe quality {quote(str(target))}"
    if verdict is None and file.is_file():
        try:
            verdict = json.loads(file.read_text())
        except ValueError as error:
            raise InputError(f"{file} is not JSON ({error}); type: {command}") from error
    if verdict is None:
        return {"gate_command": command}
    checks = verdict.get("checks") if isinstance(verdict, Mapping) else None
    named = isinstance(checks, list) and all(
        isinstance(check, Mapping) and {"name", "verdict"} <= check.keys() for check in checks
    )
    if not named or not isinstance(verdict.get("go"), bool):
        raise InputError(
            "the verdict has no 'go' (true or false) and 'checks' (a list, each with 'name' and 'verdict'); "
            f"type: {command}"
        )
    note = ""
    if contents is not None and verdict.get("dataset_key") != contents.attributes.get("dataset_key"):
        note = f"This verdict is on another dataset (key {verdict.get('dataset_key')})."
    return {"gate": dict(verdict), "gate_note": note, "gate_command": command}
