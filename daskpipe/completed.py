"""Complete runs that earlier versions of the stages made: they stay complete."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from daskpipe.errors import InputError
from daskpipe.manifests import ORDER, Manifest, units_of
from daskpipe.variables import read_root
from daskpipe.work import Tree

if TYPE_CHECKING:
    from daskpipe.config import Config

ATTRIBUTE = "stage_versions"
"""Root attribute of a dataset: the version of each stage that made it, JSON."""

BESIDE = ("describe-fit", "describe-against", "describe", "store-write")
"""Stages whose units no other unit names as upstream: they name the frames or the plan that they work on."""


def stage_versions(config: Config) -> dict[str, int]:
    """Return the version of each stage, which is part of the keys of its units.

    Parameters
    ----------
    config
        Of the run: picks against an existing dataset have a version of their own.
    """
    from daskpipe.describe.stage import VERSION as DESCRIBE
    from daskpipe.explore.stage import VERSION as EXPLORE
    from daskpipe.generate.stage import VERSION as GENERATE
    from daskpipe.label.stage import VERSION as LABEL
    from daskpipe.select.stage import AGAINST_VERSION
    from daskpipe.select.stage import VERSION as SELECT
    from daskpipe.store.stage import PLAN_VERSION
    from daskpipe.store.stage import VERSION as STORE

    return {
        "generate": GENERATE,
        "explore": EXPLORE,
        "describe": DESCRIBE,
        "select": SELECT if config.select.against is None else AGAINST_VERSION,
        "label": LABEL,
        "store-plan": PLAN_VERSION,
        "store": STORE,
    }


def read_completed(tree: Tree, config: Config) -> dict[str, dict[str, Any]] | None:
    """Return the rows of a complete run whose dataset was made by other versions of the stages than today's.

    Its units have other keys than today's code would give them. Driving it would compute everything again, only to
    end beside a dataset that stands.

    Returns
    -------
    dict or None
        As `daskpipe.pipeline.corridor` returns them, nothing computed. None if there is no dataset, if it was made by
        today's versions, or if a unit that it came from is missing.

    Raises
    ------
    IntegrityError
        If the manifest of a unit cannot be read.
    """
    with suppress(InputError):
        there = read_root(tree.dataset)["attributes"]
        if there.get(ATTRIBUTE) != json.dumps(stage_versions(config), sort_keys=True):
            return _rows(tree, str(there.get("dataset_key")))
    return None


def _rows(tree: Tree, dataset_key: str) -> dict[str, dict[str, Any]] | None:
    from daskpipe.driving import summarise

    units = {stage: {manifest.unit.key: manifest for _, manifest in units_of(tree, stage)} for stage in ORDER}
    by_key = {key: manifest for of_stage in units.values() for key, manifest in of_stage.items()}
    waiting, used = [dataset_key], set[str]()
    while waiting:
        key = waiting.pop()
        if key not in by_key:
            return None
        if key not in used:
            used.add(key)
            waiting += by_key[key].unit.upstream
    for stage in BESIDE:
        used |= {key for key, manifest in units[stage].items() if used.intersection(manifest.unit.upstream)}
    if not all(used.intersection(units[stage]) for stage in ("generate", "explore", "select", "label", "store-plan")):
        return None
    rows: dict[str, dict[str, Any]] = {}
    for stage, of_stage in units.items():
        chosen: list[Manifest] = [manifest for key, manifest in of_stage.items() if key in used]
        if chosen:
            rows[stage] = summarise([manifest.receipt for manifest in chosen], 0, 0.0)
    for stage in ("select", "store-plan"):
        for key in used.intersection(units[stage]):
            rows[stage]["report"] = json.loads(tree.load(stage, key, ["report"])["report"].item())
    return rows
