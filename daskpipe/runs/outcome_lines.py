"""Format the outcome of a run or of a verb on files as lines of plain text: labels, moves, selection, splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daskpipe.core.variables import SPLITS
from daskpipe.stages.explore.stage import EVALUATED_BY
from daskpipe.stages.generate.reading.left_out import LEFT_OUT


def format_labels(report: dict[str, Any], n_frames: int) -> list[str]:
    """Format which labels imported frames have, from which keys, and what was not taken."""
    if "labels" not in report:
        return []
    counts = ", ".join(f"{name} {report['labels'].get(name, 0):,}" for name in ("energy", "forces", "stress"))
    sources = "; ".join(f"{keys} ({n:,})" for keys, n in report["sources"].items())
    lines = [f"labels of {n_frames:,} frames: {counts}; from {sources}"]
    return lines + format_left_out(report["left_out"])


def format_left_out(names: Mapping[str, int]) -> list[str]:
    """Format the names of what files hold and was not taken, with the number of frames."""
    return ["not taken: " + ", ".join(f"{name} ({n:,})" for name, n in names.items())] if names else []


def format_left_out_of_seeds(tallies: Mapping[str, int]) -> list[str]:
    """Format the names of what files of seeds hold and was not taken, the most frequent first."""
    names = {name.removeprefix(LEFT_OUT): n for name, n in tallies.items() if name.startswith(LEFT_OUT)}
    return format_left_out(dict(sorted(names.items(), key=lambda item: (-item[1], item[0]))))


def format_refused(refused: Mapping[str, int]) -> list[str]:
    """Format how many structures failed the checks of seeds and were replaced, by source and reason."""
    counts = ", ".join(f"{name} {n:,}" for name, n in sorted(refused.items(), key=lambda item: (-item[1], item[0])))
    return [f"structures that failed a check and were replaced (source/reason): {counts}"] if refused else []


def format_evaluators(tallies: Mapping[str, int]) -> list[str]:
    """Format what evaluated the potential of exploration, and why, for a potential that has a choice."""
    counts = {name.removeprefix(EVALUATED_BY): n for name, n in tallies.items() if name.startswith(EVALUATED_BY)}
    if not counts:
        return []
    return ["evaluated by " + "; ".join(f"{name}: {n:,} trajectories" for name, n in sorted(counts.items()))]


def format_moves(tallies: dict[str, int]) -> list[str]:
    """Format how many relaxations converged, and how many trial moves were accepted."""
    lines = []
    converged, unconverged = (tallies.get(f"relaxations_{what}", 0) for what in ("converged", "unconverged"))
    if converged + unconverged:
        lines.append(f"relaxations: {converged:,} of {converged + unconverged:,} converged to explore.relax.fmax")
    for kind in ("swaps", "hops"):
        tried, overlapping, accepted, blocked = (
            tallies.get(f"{kind}_{what}", 0) for what in ("tried", "overlapping", "accepted", "blocked")
        )
        if tried:
            without = f", {blocked:,} had no vacant site in reach" if blocked else ""
            lines.append(f"trial {kind}: {accepted:,} of {tried:,} accepted ({overlapping:,} overlapped{without})")
    return lines


def format_selection(report: dict[str, Any]) -> list[str]:
    """Format what selection left out as near-duplicates, and how well its picks cover the pool."""
    duplicates, coverage = report["duplicates"], report["coverage"]
    near = f"near-duplicates left out: {duplicates['against_pool']:,} of an earlier frame"
    if duplicates["against_dataset"]:
        near += f", {duplicates['against_dataset']:,} of the existing dataset"
    covered = duplicates.get("covered")
    steered = (
        [
            f"already covered by the existing dataset: {covered['n_covered']:,} of {report['n_pool']:,} frames; "
            f"{covered['n_picked_elsewhere']:,} of {report['n_picked']:,} picks lie elsewhere"
        ]
        if covered
        else []
    )
    candidates = report["candidates"]
    marked = [f"candidates of the committee: {candidates['picked']:,} of {candidates['marked']:,} picked"]
    # Earlier versions judged each selection by 256 clusters.
    n_clusters = coverage.get("n_clusters", min(256, report["n_pool"]))
    elements = "" if coverage["elements_hit"] is None else f", {coverage['elements_hit']:.0%} of the elements"
    overlaps = report.get("overlaps", {"n": 0})
    warning = [f"picks with overlapping atoms: {overlaps['n']:,}, e.g. {overlaps['example']}"] if overlaps["n"] else []
    n_high = report.get("above_energy_window")
    window = [] if n_high is None else [f"above the energy window: {n_high:,} of {report['n_pool']:,} frames left out"]
    n_reference = report.get("n_reference")
    reference = [f"reference data: {n_reference:,} structures picked in any case"] if n_reference else []
    return [
        *warning,
        *reference,
        *window,
        f"{near} (closer than {duplicates['threshold']:g} of the pool's spread)",
        *steered,
        *(marked if candidates["marked"] else []),
        f"{report['n_picked']:,} of {report['n_pool']:,} frames picked by {report['method']}: they hit "
        f"{coverage['clusters_hit']:.0%} of {n_clusters:,} clusters of the pool, {coverage['bins_hit']:.0%} of the "
        f"bins of its features{elements}",
        f"distance of a frame to the nearest pick: mean {coverage['nearest_mean']:.3g}, 95 % below "
        f"{coverage['nearest_p95']:.3g}, largest {coverage['nearest_max']:.3g}",
    ]


KEPT_TOGETHER = {
    "seed": "all frames of a seed",
    "trajectory": "all frames of a trajectory",
    "composition": "all structures of a composition",
    "cluster": "all structures of a region of feature space",
    "structure": "nothing",
}
"""What each value of ``store.split_by`` keeps together, in words."""


def format_splits(report: dict[str, Any]) -> list[str]:
    """Format the sizes of the splits, what they keep together, and how much of val and test leaks from train."""
    counts = ", ".join(f"{report['counts'][name]:,} {name}" for name in SPLITS if report["counts"][name])
    near = " and near-duplicates" if report["near_duplicates"] and report["by"] != "structure" else ""
    if n_given := report.get("n_given"):
        n_others = report["n_structures"] - n_given
        others = f", {n_others:,} that came without are in train" if n_others else ""
        lines = [f"splits: {counts}; as given with the frames{others} (store.keep_splits=false splits anew)"]
    elif "n_gap" in report:
        lines = [
            f"splits: {counts}; blocks of time, for there are fewer seeds than splits; {report['n_gap']:,} structures "
            "of the gaps between them left out (store.gap)"
        ]
    else:
        lines = [
            f"splits: {counts}; {KEPT_TOGETHER[report['by']]}{near} kept together in {report['n_groups']:,} groups, "
            f"the largest of {report['largest_group']:,}"
        ]
    lines += [
        f"splits: {name} has no {', no '.join(lacking)}"
        for name, of_types in report.get("types", {}).items()
        if report["counts"][name] and (lacking := [kind for kind, count in of_types.items() if not count])
    ]
    for name, share in report["leakage"].items():
        at_random = report["leakage_random"].get(name)
        random = "" if at_random is None else f" (in a random split {at_random:.0%})"
        lines.append(
            f"leakage: {share:.0%} of {name} has a training neighbour closer than a frame is to the nearest other one "
            f"of its seed{random}"
        )
    if not report["leakage"]:
        if not (report["counts"]["val"] or report["counts"]["test"]):
            why = "there is no structure to validate or test with"
        elif not report["counts"]["train"]:
            why = "there is no structure to train with"
        else:
            why = "no seed has two frames here that are described"
        lines.append(f"leakage: not measured, for {why}")
    return lines
