"""Figures of the page, as the plain dictionaries that plotly.js draws.

Colours of text and grid are left to the page, which knows whether it is dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from daskpipe.report.contents import PAIR_EDGES, Contents, Histogram
from daskpipe.report.facts import Facts, Frames, Step, Timing

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b5a800", "#8c6bb1", "#7f7f7f")
"""Okabe and Ito's, which all eyes tell apart; the last is for the rest."""
PASSED, TAKEN_OUT = "#0072b2", "#d55e00"
GREY = "#8a8f98"

THINNEST = 0.01
"""Share of the widest flow that a flow is drawn with at least."""

BONDED = 0.5
"""Distance, Å, from which on a radial histogram is normalised: one pair of overlapping atoms would dwarf all others."""

MOST_REASONS = 6
LONGEST_LABEL = 34


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure.

    Parameters
    ----------
    id, title, alt
        Its place in the page, heading, and what it shows in words.
    data, layout
        As plotly.js takes them, JSON types only.
    height
        In pixels.
    wide
        Whether it takes the whole width of the page.
    """

    id: str
    title: str
    alt: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 340
    wide: bool = False

    @property
    def figure(self) -> dict[str, Any]:
        """What the page's script needs."""
        return {"data": self.data, "layout": self.layout}


def charts(facts: Facts, contents: Contents | None) -> dict[str, Chart]:
    """Return all figures for which there are numbers, by id."""
    found: list[Chart | None] = [flows(facts.steps, contents)]
    if contents is not None and contents.n_structures:
        found += [
            _elements(contents),
            _compositions(contents),
            _bars("sizes", "Atoms a structure", contents.sizes, "atoms a structure"),
            _bars("energies", "Energy an atom, less a linear fit", contents.energies, "energy − fit (eV/atom)"),
            _lines("forces", "Forces by kind of system", contents.forces),
            _lines("forces-elements", "Forces by element", contents.forces_of_elements),
            _pairs(contents),
            _bars("temperature", "Thermostat", contents.temperature, "temperature (K)"),
            _bars("pressure", "Barostat", contents.pressure, "pressure of the barostat (GPa)"),
            _bars(
                "stress", "Pressure of the labels", contents.stress_pressure, "−(xx + yy + zz)/3 of the stress (GPa)"
            ),
            _strata(contents),
            _splits(contents),
        ]
    found += [_map(facts.frames, contents), _times(facts.timings)]
    return {chart.id: chart for chart in found if chart is not None}


def plain(name: str) -> str:
    """Return a name as plotly shall show it: its tags and entities are text, and it is not too long."""
    short = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
    return escape(short, quote=False)


def flows(steps: Sequence[Step], contents: Contents | None) -> Chart | None:
    """Draw what went through the stages and what was taken out, and why."""
    if not steps:
        return None
    nodes: list[tuple[str, str]] = []
    links: list[tuple[int, int, int, str]] = []

    def node(name: str, n: int, colour: str) -> int:
        nodes.append((f"{plain(name)} {n:,}", colour))
        return len(nodes) - 1

    here = node(steps[0].came, steps[0].n_in, GREY)
    for step in steps:
        for reason, n in _shortened(step.removed).items():
            there = node(reason, n, TAKEN_OUT)
            links.append((here, there, n, f"{n:,} {step.of}: {plain(reason)}"))
        if step.stage == "store" and contents is not None and contents.splits:
            for name, split in contents.splits.items():
                n = split["structures"]
                links.append((here, node(name, n, PASSED), n, f"{n:,} structures for {plain(name)}"))
            break
        there = node(step.went, step.n_out, PASSED)
        links.append((here, there, step.n_out, f"{step.n_in:,} {step.came} → {step.n_out:,} {step.went}"))
        here = there
    widest = max((n for _, _, n, _ in links), default=0)
    data = {
        "type": "sankey",
        "arrangement": "snap",
        "node": {
            "label": [label for label, _ in nodes],
            "color": [colour for _, colour in nodes],
            "pad": 18,
            "thickness": 12,
            "line": {"width": 0},
            "hovertemplate": "%{label}<extra></extra>",
        },
        "link": {
            "source": [source for source, _, _, _ in links],
            "target": [target for _, target, _, _ in links],
            "value": [max(n, THINNEST * widest) for _, _, n, _ in links],
            "label": [text for _, _, _, text in links],
            "color": [_pale(nodes[target][1]) for _, target, _, _ in links],
            "hovertemplate": "%{label}<extra></extra>",
        },
    }
    words = "; ".join(f"{step.stage}: {step.n_in:,} {step.came} to {step.n_out:,} {step.went}" for step in steps)
    return Chart(
        id="flows", title="From seeds to the dataset", alt=f"Flow diagram. {words}.", data=[data], layout={},
        height=max(300, 40 * len(nodes)), wide=True,
    )  # fmt: skip


def _shortened(removed: Mapping[str, int]) -> dict[str, int]:
    listed = dict(list(removed.items())[:MOST_REASONS])
    if rest := sum(removed.values()) - sum(listed.values()):
        listed["other reasons"] = rest
    return listed


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.35)"


def _elements(contents: Contents) -> Chart:
    symbols = list(contents.elements)
    traces = [
        ("of the atoms", [100 * n / contents.n_atoms for n in contents.elements.values()], COLOURS[0]),
        ("of the structures hold it", [100 * n / contents.n_structures for n in contents.holders.values()], COLOURS[4]),
    ]
    data = [
        {
            "type": "bar", "name": name, "x": symbols, "y": _numbers(shares), "marker": {"color": colour},
            "hovertemplate": "%{x}: %{y:.3g} % " + name + "<extra></extra>",
        }
        for name, shares, colour in traces
    ]  # fmt: skip
    words = ", ".join(f"{symbol} {n:,}" for symbol, n in contents.elements.items())
    layout = {"xaxis": _axis("element", type="category"), "yaxis": _axis("share (%)", rangemode="tozero")}
    return Chart(
        id="elements", title="Elements", alt=f"Bar chart of the atoms by element: {words}.", data=data, layout=layout
    )


def _compositions(contents: Contents) -> Chart:
    formulas = list(contents.compositions.items())[::-1]
    data = [
        {
            "type": "bar", "orientation": "h", "x": [n for _, n in formulas],
            "y": [plain(formula) for formula, _ in formulas], "marker": {"color": COLOURS[0]},
            "hovertemplate": "%{y}: %{x:,} structures<extra></extra>", "showlegend": False,
        }
    ]  # fmt: skip
    layout = {
        "xaxis": _counts("structures", formulas[-1][1]),
        "yaxis": _axis("", type="category", dtick=1),
    }
    most, n = next(iter(contents.compositions.items()))
    alt = (
        f"Bar chart of the {len(formulas)} most frequent of {contents.n_compositions:,} formulas; first {most} ({n:,})."
    )
    return Chart(id="compositions", title="Formulas", alt=alt, data=data, layout=layout)


def _bars(name: str, title: str, histogram: Histogram | None, unit: str) -> Chart | None:
    """Stack a histogram's groups."""
    if histogram is None:
        return None
    edges = histogram.edges
    data = [
        {
            "type": "bar", "name": plain(group), "x": _numbers((edges[:-1] + edges[1:]) / 2),
            "y": counts.tolist(), "width": _numbers(np.diff(edges)), "marker": {"color": COLOURS[number]},
            "hovertemplate": "%{y:,} at %{x:.4g}<extra>" + plain(group) + "</extra>",
        }
        for number, (group, counts) in enumerate(histogram.counts.items())
        if counts.any()
    ]  # fmt: skip
    layout = {
        "barmode": "stack",
        "bargap": 0,
        "xaxis": _axis(unit, range=_numbers(edges[[0, -1]])),
        "yaxis": _counts("structures", int(np.sum(list(histogram.counts.values()), axis=0).max())),
    }
    alt = f"Histogram of {histogram.n_values:,} structures, {unit}: {histogram.low:.4g} to {histogram.high:.4g}."
    return Chart(id=name, title=title, alt=alt, data=data, layout=layout)


def _lines(name: str, title: str, histogram: Histogram | None) -> Chart | None:
    """Draw a histogram over a logarithmic axis, each group as the share of its own atoms."""
    if histogram is None:
        return None
    middles = np.sqrt(histogram.edges[:-1] * histogram.edges[1:])
    few = histogram.edges[-1] < 3000 * histogram.edges[0]
    data = [
        {
            "type": "scatter", "mode": "lines", "name": plain(group), "x": _numbers(middles),
            "y": _numbers(100 * counts / counts.sum()),
            "line": {"color": COLOURS[number], "width": 1.8, "shape": "hvh"},
            "hovertemplate": "%{y:.3g} % at %{x:.3g} eV/Å<extra>" + plain(group) + "</extra>",
        }
        for number, (group, counts) in enumerate(histogram.counts.items())
        if counts.any()
    ]  # fmt: skip
    layout = {
        # Within a few decades 2 and 5 have their ticks as well.
        "xaxis": _axis(
            "force on an atom (eV/Å)", type="log", exponentformat="none" if few else "power", dtick="D2" if few else 1
        ),
        "yaxis": _axis("share of the atoms (%)", rangemode="tozero"),
    }
    alt = (
        f"Distribution of the forces on {histogram.n_values:,} atoms over a logarithmic axis; median about "
        f"{histogram.median:.2g}, largest {histogram.high:.3g} eV/Å."
    )
    return Chart(id=name, title=title, alt=alt, data=data, layout=layout)


def _pairs(contents: Contents) -> Chart | None:
    pairs = contents.pairs
    if not pairs.counts:
        return None
    middles = (PAIR_EDGES[:-1] + PAIR_EDGES[1:]) / 2
    first = max(0, int(np.searchsorted(PAIR_EDGES, min(pairs.shortest.values()))) - 4)
    data = []
    for number, (pair, counts) in enumerate(pairs.counts.items()):
        density = counts / middles**2
        peak = density[middles > BONDED].max() or density.max()
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": pair, "x": _numbers(middles[first:]),
                "y": _numbers((density / peak)[first:]), "line": {"color": COLOURS[number], "width": 1.8},
                "hovertemplate": "%{x:.2f} Å<extra>" + pair + "</extra>",
            }
        )  # fmt: skip
    words = ", ".join(f"{pair} {distance:.2f} Å" for pair, distance in pairs.shortest.items())
    layout = {
        "xaxis": _axis("distance (Å)", range=_numbers([PAIR_EDGES[first], PAIR_EDGES[-1]])),
        "yaxis": _axis("pairs/distance² (peak = 1)", range=[0, 1.05]),
    }
    alt = f"Radial histogram of the most frequent pairs of elements. Shortest distances: {words}."
    return Chart(id="pairs", title="Distances between atoms", alt=alt, data=data, layout=layout)


def _strata(contents: Contents) -> Chart | None:
    if contents.strata is None or not len(contents.strata):
        return None
    size, n = np.unique(contents.strata, return_counts=True)
    data = [
        {
            "type": "bar", "x": [f"{item:,}" for item in size.tolist()], "y": n.tolist(),
            "marker": {"color": COLOURS[0]}, "showlegend": False,
            "hovertemplate": "%{y:,} strata with %{x} structures<extra></extra>",
        }
    ]  # fmt: skip
    layout: dict[str, Any] = {
        "xaxis": _axis("structures in the stratum", type="category"),
        "yaxis": _counts("strata", int(n.max())),
    }
    if len(size) > 30:
        counts, edges = np.histogram(contents.strata, 30)
        data[0] |= {"x": _numbers((edges[:-1] + edges[1:]) / 2), "y": counts.tolist()}
        data[0]["hovertemplate"] = "%{y:,} strata with about %{x:,.0f} structures<extra></extra>"
        layout["xaxis"] = _axis("structures in the stratum")
        layout["bargap"] = 0
    alt = f"Bar chart of the sizes of {len(contents.strata):,} strata: {size[0]:,} to {size[-1]:,} structures."
    return Chart(id="strata", title="Strata", alt=alt, data=data, layout=layout)


def _splits(contents: Contents) -> Chart | None:
    splits = {name: split for name, split in contents.splits.items() if split["structures"]}
    if not splits:
        return None
    names = list(splits)[::-1]
    data = [
        {
            "type": "bar", "orientation": "h", "name": plain(kind), "y": [plain(name) for name in names],
            "x": [splits[name]["types"][kind] for name in names], "marker": {"color": COLOURS[number]},
            "hovertemplate": "%{x:,} structures in %{y}<extra>" + plain(kind) + "</extra>",
        }
        for number, kind in enumerate(contents.types)
    ]  # fmt: skip
    layout = {
        "barmode": "stack",
        "xaxis": _counts("structures", max(split["structures"] for split in splits.values())),
        "yaxis": _axis("", type="category"),
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


def _map(frames: Frames | None, contents: Contents | None) -> Chart | None:
    """Draw frames, seeds and picks on the first two axes of the features."""
    clouds: list[tuple[str, np.ndarray, dict[str, Any]]] = []
    if frames is not None:
        clouds.append(("frames", frames.points, {"color": GREY, "size": 4, "opacity": 0.45}))
        if len(frames.seeds):
            mark = {"color": GREY, "size": 8, "symbol": "x-thin-open", "line": {"width": 1.5}}
            clouds.append(("seeds (step 0)", frames.seeds, mark))
    points = contents.points if contents is not None else {}
    if points:
        clouds += [
            (kind, cloud, {"color": COLOURS[number], "size": 7, "line": {"width": 0.5, "color": "white"}})
            for number, (kind, cloud) in enumerate(points.items())
        ]
    elif frames is not None:
        clouds.append(("picks", frames.picks, {"color": COLOURS[0], "size": 7}))
    if not clouds:
        return None
    data = [
        {
            "type": "scatter", "mode": "markers", "name": plain(name), "x": _numbers(cloud[:, 0]),
            "y": _numbers(cloud[:, 1]), "marker": marker, "hoverinfo": "name",
        }
        for name, cloud, marker in clouds
    ]  # fmt: skip
    shares = [f" ({100 * share:.0f} % of the variance)" for share in frames.explained] if frames else []
    first, second = (f"feature {number + 1}{shares[number] if len(shares) > number else ''}" for number in range(2))
    words = ", ".join(f"{len(cloud):,} {name}" for name, cloud, _ in clouds)
    return Chart(
        id="map", title="Map of the features", alt=f"Scatter plot of features 1 and 2; drawn: {words}.", data=data,
        layout={"xaxis": _axis(first), "yaxis": _axis(second), "hovermode": "closest"}, height=520, wide=True,
    )  # fmt: skip


def _times(timings: Sequence[Timing]) -> Chart | None:
    if not timings:
        return None
    stages = [timing.stage for timing in timings][::-1]
    data = [
        {
            "type": "bar", "orientation": "h", "y": stages, "marker": {"color": COLOURS[0]}, "showlegend": False,
            "x": _numbers([timing.wall_seconds for timing in timings][::-1]),
            "hovertemplate": "%{y}: %{x:,.3g} s<extra></extra>",
        }
    ]  # fmt: skip
    layout = {"xaxis": _axis("wall time (s)", rangemode="tozero"), "yaxis": _axis("", type="category")}
    words = ", ".join(f"{timing.stage} {timing.wall_seconds:,.1f} s" for timing in timings)
    return Chart(
        id="times", title="Wall time by stage", alt=f"Wall times: {words}.", data=data, layout=layout, height=300
    )


def _axis(title: str, **rest: Any) -> dict[str, Any]:
    return {"title": {"text": title}, "automargin": True, "separatethousands": True, **rest}


def _counts(title: str, largest: int) -> dict[str, Any]:
    """Return an axis for whole numbers, without ticks between them."""
    return _axis(title, rangemode="tozero", exponentformat="none", **({"dtick": 1} if largest <= 5 else {}))


def _numbers(values: Any) -> list[float]:
    """Round to five digits: a page holds many numbers, and no one sees the sixth."""
    return [float(f"{value:.5g}") for value in np.asarray(values, dtype=np.float64).tolist()]
