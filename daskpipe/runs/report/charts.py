"""Draw the figures of the page: flows, splits, volumes, the map of features, times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np

from daskpipe.runs.report.chart import COLOURS, Chart, escape_label, make_axis, make_count_axis, round_numbers
from daskpipe.runs.report.contents import Contents
from daskpipe.runs.report.distributions import (
    draw_bars,
    draw_compositions,
    draw_elements,
    draw_force_tails,
    draw_lines,
    draw_pairs,
    draw_strata,
    draw_stress_components,
)
from daskpipe.runs.report.facts import Facts, Step, Timing
from daskpipe.runs.report.frames import Frames

PASSED, TAKEN_OUT = "#0072b2", "#d55e00"
"""Colours of what a stage lets through, and of what it takes out."""

GREY = "#8a8f98"
"""Colour of frames that are no picks."""

THINNEST = 0.01
"""Smallest width of a flow, as a share of the widest."""

MOST_REASONS = 6
"""Most reasons of a stage that have a flow of their own."""

LINE_LENGTH = 18
"""Most characters of a line of a label."""

FEWEST_POINTS = 3
"""Fewest points of a plot of energies and volumes."""


def draw_charts(facts: Facts, contents: Contents | None) -> dict[str, Chart]:
    """Draw all figures for which there are numbers, and return them by id."""
    drawn: list[Chart | None] = [draw_flows(facts.steps, contents)]
    if contents is not None and contents.n_structures:
        drawn += [
            draw_elements(contents),
            draw_compositions(contents),
            draw_bars("sizes", "Atoms a structure", contents.sizes, "atoms a structure"),
            draw_bars("energies", "Energy an atom, less a linear fit", contents.energies, "energy − fit", "eV/atom"),
            draw_volumes(contents),
            draw_lines("forces", "Forces by kind of system", contents.forces),
            draw_lines("forces-elements", "Forces by element", contents.forces_of_elements),
            draw_force_tails(contents.forces_of_elements),
            draw_pairs(contents),
            draw_bars("temperature", "Thermostat", contents.temperature, "temperature", "K"),
            draw_bars("pressure", "Barostat", contents.pressure, "pressure of the barostat", "GPa"),
            draw_bars(
                "stress", "Pressure of the labels", contents.stress_pressure, "−(xx + yy + zz)/3 of the stress", "GPa"
            ),
            draw_stress_components(contents.stress_components),
            draw_strata(contents),
            draw_splits(contents),
        ]
    drawn += [draw_map(facts.frames, contents), draw_comparison(facts.frames), draw_times(facts.timings)]
    return {chart.id: chart for chart in drawn if chart is not None}


def draw_flows(steps: Sequence[Step], contents: Contents | None) -> Chart | None:
    """Draw what went through the stages, and what was taken out and why."""
    if not steps:
        return None
    nodes: list[tuple[str, str]] = []
    links: list[tuple[int, int, int, str]] = []

    def add_node(name: str, n: int, colour: str) -> int:
        nodes.append((_wrap_label(name, n), colour))
        return len(nodes) - 1

    here = add_node(steps[0].came, steps[0].n_in, GREY)
    for step in steps:
        for reason, n in _merge_rare(step.removed).items():
            there = add_node(reason, n, TAKEN_OUT)
            links.append((here, there, n, f"{n:,} {step.of}: {escape_label(reason)}"))
        if step.stage == "store" and contents is not None and contents.splits:
            for name, split in contents.splits.items():
                n = split["structures"]
                links.append((here, add_node(name, n, PASSED), n, f"{n:,} structures for {escape_label(name)}"))
            break
        there = add_node(step.went, step.n_out, PASSED)
        links.append((here, there, step.n_out, f"{step.n_in:,} {step.came} → {step.n_out:,} {step.went}"))
        here = there
    widest = max((n for _, _, n, _ in links), default=0)
    data = {
        "type": "sankey",
        "arrangement": "snap",
        "node": {
            "label": [label for label, _ in nodes],
            "color": [colour for _, colour in nodes],
            "pad": 34,
            "thickness": 12,
            "line": {"width": 0},
            "hovertemplate": "%{label}<extra></extra>",
        },
        "link": {
            "source": [source for source, _, _, _ in links],
            "target": [target for _, target, _, _ in links],
            "value": [max(n, THINNEST * widest) for _, _, n, _ in links],
            "label": [text for _, _, _, text in links],
            "color": [_fade_colour(nodes[target][1]) for _, target, _, _ in links],
            "hovertemplate": "%{label}<extra></extra>",
        },
    }
    words = "; ".join(f"{step.stage}: {step.n_in:,} {step.came} to {step.n_out:,} {step.went}" for step in steps)
    return Chart(
        id="flows", title="From seeds to the dataset", alt=f"Flow diagram. {words}.", data=[data], layout={},
        height=max(320, 46 * len(nodes)), wide=True,
    )  # fmt: skip


def _wrap_label(name: str, n: int) -> str:
    """Break a label into short lines: a long one would reach into the next column."""
    return "<br>".join(escape_label(line) for line in wrap(f"{name} {n:,}", LINE_LENGTH))


def _merge_rare(removed: Mapping[str, int]) -> dict[str, int]:
    """Merge the rarer reasons into one."""
    listed = dict(list(removed.items())[:MOST_REASONS])
    if rest := sum(removed.values()) - sum(listed.values()):
        listed["other reasons"] = rest
    return listed


def _fade_colour(colour: str) -> str:
    """Return a colour, given as ``#rrggbb``, with transparency."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.35)"


def draw_splits(contents: Contents) -> Chart | None:
    """Draw the structures of each split by kind of system."""
    splits = {name: split for name, split in contents.splits.items() if split["structures"]}
    if not splits:
        return None
    names = list(splits)[::-1]
    data = [
        {
            "type": "bar", "orientation": "h", "name": escape_label(kind), "y": [escape_label(name) for name in names],
            "x": [splits[name]["types"][kind] for name in names], "marker": {"color": COLOURS[number]},
            "hovertemplate": "%{x:,} structures in %{y}<extra>" + escape_label(kind) + "</extra>",
        }
        for number, kind in enumerate(contents.types)
    ]  # fmt: skip
    layout = {
        "barmode": "stack",
        "xaxis": make_count_axis("structures", max(split["structures"] for split in splits.values())),
        "yaxis": make_axis("", type="category"),
    }
    words = ", ".join(f"{name} {split['structures']:,}" for name, split in splits.items())
    return Chart(
        id="splits",
        title="Splits by kind of system",
        alt=f"Structures of each split: {words}.",
        data=data,
        layout=layout,
        height=260,
    )


def draw_volumes(contents: Contents) -> Chart | None:
    """Draw the energy of an atom over its volume, for structures that are periodic in three directions."""
    if sum(map(len, contents.volumes.values())) < FEWEST_POINTS:
        return None
    kinds = list(contents.types)
    data = [
        {
            "type": "scatter", "mode": "markers", "name": escape_label(kind), "x": round_numbers(cloud[:, 0]),
            "y": round_numbers(cloud[:, 1]), "marker": {"color": COLOURS[kinds.index(kind)], "size": 6, "opacity": 0.7},
            "hovertemplate": "%{y:.4g} eV/atom at %{x:.4g} Å³<extra>" + escape_label(kind) + "</extra>",
        }
        for kind, cloud in contents.volumes.items()
    ]  # fmt: skip
    layout = {
        "xaxis": make_axis("volume (Å³/atom)"),
        "yaxis": make_axis("energy − fit (eV/atom)"),
        "hovermode": "closest",
        "showlegend": True,
    }
    n = sum(map(len, contents.volumes.values()))
    alt = f"Scatter plot of the energy of an atom, less the linear fit, over its volume: {n:,} structures."
    return Chart(id="volumes", title="Energy and volume", alt=alt, data=data, layout=layout)


def draw_map(frames: Frames | None, contents: Contents | None) -> Chart | None:
    """Draw frames, seeds and picks on the first two axes of the features; buttons choose what colours the picks."""
    clouds: list[tuple[str, np.ndarray, dict[str, Any]]] = []
    if frames is not None:
        clouds.append(("frames", frames.points, {"color": GREY, "size": 4, "opacity": 0.45}))
        if len(frames.seeds):
            mark = {"color": GREY, "size": 8, "symbol": "x-thin-open", "line": {"width": 1.5}}
            clouds.append(("seeds (step 0)", frames.seeds, mark))
    n_grey = len(clouds)
    features = contents.features if contents is not None else None
    colourings = features.colourings if features is not None else {}
    owners = [""] * n_grey
    if features is not None:
        for title, groups in colourings.items():
            for number, (name, here) in enumerate(groups.items()):
                mark = {"color": COLOURS[number % len(COLOURS)], "size": 7, "line": {"width": 0.5, "color": "white"}}
                clouds.append((name, features.points[here], mark))
                owners.append(title)
    elif frames is not None:
        clouds.append(("picks", frames.picks, {"color": COLOURS[0], "size": 7}))
        owners.append("")
    if not clouds:
        return None
    first_title = next(iter(colourings), "")
    data = [
        {
            "type": "scatter", "mode": "markers", "name": escape_label(name), "x": round_numbers(cloud[:, 0]),
            "y": round_numbers(cloud[:, 1]), "marker": marker, "hoverinfo": "name",
            "visible": owner in ("", first_title),
        }
        for owner, (name, cloud, marker) in zip(owners, clouds, strict=True)
    ]  # fmt: skip
    shares = [f" ({100 * share:.0f} % of the variance)" for share in frames.explained] if frames else []
    first, second = (f"feature {number + 1}{shares[number] if len(shares) > number else ''}" for number in range(2))
    layout: dict[str, Any] = {"xaxis": make_axis(first), "yaxis": make_axis(second), "hovermode": "closest"}
    if len(colourings) > 1:
        layout["updatemenus"] = [
            {
                "type": "buttons", "direction": "right", "showactive": True,
                "x": 0, "xanchor": "left", "y": -0.16, "yanchor": "top", "pad": {"t": 4},
                "buttons": [
                    {
                        "label": title, "method": "restyle",
                        "args": [{"visible": [owner in ("", title) for owner in owners]}],
                    }
                    for title in colourings
                ],
            }
        ]  # fmt: skip
    shown = [
        (name, cloud) for owner, (name, cloud, _) in zip(owners, clouds, strict=True) if owner in ("", first_title)
    ]
    words = ", ".join(f"{len(cloud):,} {name}" for name, cloud in shown)
    return Chart(
        id="map", title="Map of the features", alt=f"Scatter plot of features 1 and 2; drawn: {words}.", data=data,
        layout=layout, height=560, wide=True,
    )  # fmt: skip


def draw_comparison(frames: Frames | None) -> Chart | None:
    """Draw the share of frames farther than a distance from the nearest pick, and from the nearest random frame."""
    if frames is None or not len(frames.to_picks):
        return None
    curves = (("picks", frames.to_picks, COLOURS[0]), ("as many random frames", frames.to_random, COLOURS[1]))
    data = []
    for name, distances, colour in curves:
        distance = np.sort(distances)
        farther = 100 * (1 - np.arange(1, len(distance) + 1) / len(distance))
        few = np.unique(np.linspace(0, len(distance) - 1, 400).astype(int))
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": name, "x": round_numbers(distance[few]),
                "y": round_numbers(farther[few]), "line": {"color": colour, "width": 1.8},
                "hovertemplate": "%{y:.3g} % farther than %{x:.3g}<extra>" + name + "</extra>",
            }
        )  # fmt: skip
    layout = {
        "xaxis": make_axis("distance between features", rangemode="tozero"),
        "yaxis": make_axis("frames that are farther (%)", rangemode="tozero"),
    }
    words = ", ".join(f"{name} {distances.mean():.3g}" for name, distances, _ in curves)
    return Chart(
        id="comparison", title="Selection against random frames", alt=f"Mean distance to the nearest: {words}.",
        data=data, layout=layout,
    )  # fmt: skip


def draw_times(timings: Sequence[Timing]) -> Chart | None:
    """Draw the wall time of each stage."""
    if not timings:
        return None
    stages = [timing.stage for timing in timings][::-1]
    data = [
        {
            "type": "bar", "orientation": "h", "y": stages, "marker": {"color": COLOURS[0]}, "showlegend": False,
            "x": round_numbers([timing.wall_seconds for timing in timings][::-1]),
            "hovertemplate": "%{y}: %{x:,.3g} s<extra></extra>",
        }
    ]  # fmt: skip
    layout = {"xaxis": make_axis("wall time (s)", rangemode="tozero"), "yaxis": make_axis("", type="category")}
    words = ", ".join(f"{timing.stage} {timing.wall_seconds:,.1f} s" for timing in timings)
    return Chart(
        id="times", title="Wall time by stage", alt=f"Wall times: {words}.", data=data, layout=layout, height=300
    )
