"""Document a model: facts for machines, and a card for people."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskpipe.core.root_metadata import read_root
from daskpipe.core.versions import read_version
from daskpipe.train.options import Options

if TYPE_CHECKING:
    from daskpipe.load import Spec
    from daskpipe.train.accuracy import Errors

Facts = dict[str, Any]
"""JSON types by name."""

PACKAGES = ("daskpipe", "mace-torch", "torch", "numpy", "ase")
"""Packages whose versions are recorded."""

HEADER = (
    "| split | structures | system type | energy MAE / RMSE, meV/atom | forces MAE / RMSE, eV/Å "
    "| mean predictor, eV/Å | times better | stress RMSE, meV/Å³ |\n|---|---|---|---|---|---|---|---|"
)


def dataset_facts(path: Path) -> Facts:
    """Return the facts that identify a dataset, and its teacher."""
    attributes = read_root(path)["attributes"]
    teacher = json.loads(attributes.get("label_potential", "{}"))
    return {
        "name": f"{path.parent.name}/{path.name}",
        "dataset_key": attributes.get("dataset_key"),
        "checksum": attributes["checksums"]["root"],
        "n_structures": attributes["n_structures"],
        "teacher": teacher.get("name"),
        "teacher_sha256": teacher.get("sha256"),
    }


def model_facts(spec: Spec, options: Options) -> Facts:
    """Return the settings and versions with which a model was made."""
    from ase.data import chemical_symbols

    return {
        "elements": [chemical_symbols[number] for number in spec.elements],
        "e0s": spec.e0s,
        "isolated_atoms": spec.isolated,
        "rms_force": spec.rms_force,
        "avg_num_neighbors": spec.avg_num_neighbors,
        "mace_options": {name: str(value) for name, value in options.items()},
        "versions": {name: read_version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }


def model_card(name: str, facts: Facts, splits: Mapping[str, Mapping[str, Errors]]) -> str:
    """Format the card of a model, Markdown."""
    data = facts["dataset"]
    counts = ", ".join(f"{number} {split}" for split, number in data["splits"].items())
    teacher = f"{data['teacher'] or 'not recorded'} (SHA-256 `{data['teacher_sha256'] or 'not recorded'}`)"
    options = "\n".join(f"| `{key}` | `{value}` |" for key, value in sorted(facts["mace_options"].items()))
    e0s = ", ".join(f"{symbol} {energy:.4f}" for symbol, energy in facts["e0s"].items())
    rows = [_format_row(split, kind, errors) for split, groups in splits.items() for kind, errors in groups.items()]
    failed = {split: groups["all"]["failures"] for split, groups in splits.items() if groups["all"]["failures"]}
    foundation = f", begun from the model {facts['foundation']}" if facts["foundation"] else ""
    return f"""# {name}

A MACE for {", ".join(facts["elements"])}, trained by `daskpipe train`.

* Use it: `explore.potential={{name: mace, params: {{model: PATH/model.model}}}}`, or MACE's `MACECalculator`.
  The file is a pickle: loading it runs code that it contains, so load it only if you trust its origin.
* SHA-256 of `model.model`: `{facts["sha256"]}`
* Dataset: `{data["name"]}`, key `{data["dataset_key"] or "not recorded"}`, checksum of its root `{data["checksum"]}`,
  {data["n_structures"]} structures ({counts}). MACE was given the splits train and val only.
* Teacher: {teacher}.
* Training: {facts["epochs"]} epochs, the weights of epoch {facts["best_epoch"]} (lowest loss on val),
  seed {facts["seed"]}, {facts["device"]}, {facts["dtype"]}{foundation}; {facts["seconds"]:.0f} s with the evaluation.
* Made with {", ".join(f"{package} {number}" for package, number in facts["versions"].items())}.

## Errors against the teacher

{HEADER}
{chr(10).join(rows)}

The mean predictor takes no forces, and for the energy the sum over the atoms; its force RMSE is the RMS of the forces.
"Times better" is the ratio of the two force RMSEs.{f" Structures without a result: {failed}." if failed else ""}

## Limits

* It knows {", ".join(facts["elements"])} only, and only in surroundings that the dataset contains: the table shows its
  errors on frames that resemble those of the dataset, and says nothing about others.
* Its energies are those of its teacher, with the teacher's errors.
* Energies of single atoms (eV: {e0s}) are {_describe_e0s(facts)}.
* No charges, no magnetic moments, nothing beyond {2 * float(facts["mace_options"]["r_max"]):g} Å.

## Options of mace_run_train

| option | value |
|---|---|
{options}
"""


def _describe_e0s(facts: Facts) -> str:
    """Describe the origin of the energies of single atoms."""
    fit = "a least-squares fit on the training split, not those of free atoms"
    isolated = facts["isolated_atoms"]
    if not isolated:
        return fit
    others = [symbol for symbol in facts["e0s"] if symbol not in isolated]
    of_isolated = f"those of the isolated atoms of the dataset for {', '.join(isolated)}"
    return f"{of_isolated}; for {', '.join(others)} they are {fit}" if others else of_isolated


def _format_row(split: str, kind: str, errors: Errors) -> str:
    """Format one row of the table of errors."""
    energy, forces, stress = errors["energy"], errors["forces"], errors["stress"]
    cells = [split, str(errors["n_structures"]), kind, "-", "-", "-", "-", "-"]
    if energy is not None:
        cells[3] = f"{1e3 * energy['mae']:.1f} / {1e3 * energy['rmse']:.1f}"
    if forces is not None:
        cells[4] = f"{forces['mae']:.4f} / {forces['rmse']:.4f}"
        cells[5] = f"{forces['mean_predictor_rmse']:.4f}"
        cells[6] = f"{forces['times_better']:.1f}" if forces["times_better"] else "-"
    if stress is not None:
        cells[7] = f"{1e3 * stress['rmse']:.2f}"
    return f"| {' | '.join(cells)} |"
