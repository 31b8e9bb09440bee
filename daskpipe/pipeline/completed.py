"""Recognise complete runs that earlier versions of the stages made, so that they stay complete."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from daskpipe.core.errors import InputError
from daskpipe.core.root_metadata import read_root
from daskpipe.engine.manifests import STAGE_ORDER, Manifest, read_units
from daskpipe.engine.run_directory import RunDirectory

if TYPE_CHECKING:
    from daskpipe.config.models import Config

VERSIONS_ATTRIBUTE = "stage_versions"
"""Root attribute of a dataset: the version of each stage that made it, JSON."""

WITHOUT_DEPENDENTS = ("describe-fit", "describe-against", "describe", "store-write")
"""Stages whose units are upstream of no other unit: they name the frames or the plan that they work on."""


def collect_stage_versions(config: Config) -> dict[str, int]:
    """Return the version of each stage, which is part of the keys of its units.

    Parameters
    ----------
    config
        Config of the run: picks against an existing dataset have a version of their own.
    """
    from daskpipe.stages.describe.stage import VERSION as DESCRIBE
    from daskpipe.stages.explore.stage import VERSION as EXPLORE
    from daskpipe.stages.generate.stage import VERSION as GENERATE
    from daskpipe.stages.label.checking import VERSION as LABEL_CHECK
    from daskpipe.stages.label.isolated_atoms import VERSION as LABEL_ATOMS
    from daskpipe.stages.label.judging import VERSION as LABEL_JUDGE
    from daskpipe.stages.label.stage import VERSION as LABEL
    from daskpipe.stages.select.stage import AGAINST_VERSION
    from daskpipe.stages.select.stage import VERSION as SELECT
    from daskpipe.store.stage import PLAN_VERSION
    from daskpipe.store.stage import VERSION as STORE

    return {
        "generate": GENERATE,
        "explore": EXPLORE,
        "describe": DESCRIBE,
        "select": SELECT if config.select.against is None else AGAINST_VERSION,
        "label": LABEL,
        "label-check": LABEL_CHECK,
        "label-judge": LABEL_JUDGE,
        "label-atoms": LABEL_ATOMS,
        "store-plan": PLAN_VERSION,
        "store": STORE,
    }


def read_completed(directory: RunDirectory, config: Config) -> dict[str, dict[str, Any]] | None:
    """Return the rows of a complete run whose dataset was made by other versions of the stages than the present ones.

    Present code would give its units other keys. Driving it would compute everything again, for a dataset that is
    there already.

    Returns
    -------
    dict or None
        As `run_pipeline` returns them, nothing computed. None if there is no dataset, if it was made by the
        present versions, or if a unit that it came from is missing.

    Raises
    ------
    IntegrityError
        If the manifest of a unit cannot be read.
    """
    with suppress(InputError):
        there = read_root(directory.dataset)["attributes"]
        if there.get(VERSIONS_ATTRIBUTE) != json.dumps(collect_stage_versions(config), sort_keys=True):
            return _collect_rows(directory, str(there.get("dataset_key")))
    return None


def _collect_rows(directory: RunDirectory, dataset_key: str) -> dict[str, dict[str, Any]] | None:
    """Return the rows of the units that a dataset was made from, or None if one of them is missing."""
    from daskpipe.engine.driver import summarise_stage

    units = {
        stage: {manifest.unit.key: manifest for _, manifest in read_units(directory, stage)} for stage in STAGE_ORDER
    }
    by_key = {key: manifest for of_stage in units.values() for key, manifest in of_stage.items()}
    waiting, used = [dataset_key], set[str]()
    while waiting:
        key = waiting.pop()
        if key not in by_key:
            return None
        if key not in used:
            used.add(key)
            waiting += by_key[key].unit.upstream
    for stage in WITHOUT_DEPENDENTS:
        used |= {key for key, manifest in units[stage].items() if used.intersection(manifest.unit.upstream)}
    if not all(used.intersection(units[stage]) for stage in ("generate", "explore", "select", "label", "store-plan")):
        return None
    rows: dict[str, dict[str, Any]] = {}
    for stage, of_stage in units.items():
        chosen: list[Manifest] = [manifest for key, manifest in of_stage.items() if key in used]
        if chosen:
            rows[stage] = summarise_stage([manifest.receipt for manifest in chosen], 0, 0.0)
    for stage in ("select", "store-plan"):
        for key in used.intersection(units[stage]):
            rows[stage]["report"] = json.loads(directory.load_arrays(stage, key, ["report"])["report"].item())
    return rows
