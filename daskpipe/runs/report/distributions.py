"""Draw the figures of distributions: elements, formulas, histograms, distances."""

from __future__ import annotations

from typing import Any

import numpy as np

from daskpipe.runs.report.chart import (
    COLOURS,
    Chart,
    escape_label,
    make_axis,
    make_count_axis,
    make_log_axis,
    round_numbers,
)
from daskpipe.runs.report.contents import Contents
from daskpipe.runs.report.measures import PAIR_EDGES, Histogram

BONDED = 0.5
"""Distance, Å, above which a radial histogram is normalised: one pair of overlapping atoms would dwarf all others."""


def draw_elements(contents: Contents) -> Chart:
    """Draw the shares of atoms and of structures by element."""
    symbols = list(contents.elements)
    traces = [
        ("of the atoms", [100 * n / contents.n_atoms for n in contents.elements.values()], COLOURS[0]),
        ("of the structures hold it", [100 * n / contents.n_structures for n in contents.holders.values()], COLOURS[4]),
    ]
    data = [
        {
            "type": "bar", "name": name, "x": symbols, "y": round_numbers(shares), "marker": {"color": colour},
            "hovertemplate": "%{x}: %{y:.3g} % " + name + "<extra></extra>",
        }
        for name, shares, colour in traces
    ]  # fmt: skip
    words = ", ".join(f"{symbol} {n:,}" for symbol, n in contents.elements.items())
    layout = {"xaxis": make_axis("element", type="category"), "yaxis": make_axis("share (%)", rangemode="tozero")}
    return Chart(
        id="elements", title="Elements", alt=f"Bar chart of the atoms by element: {words}.", data=data, layout=layout
    )


def draw_compositions(contents: Contents) -> Chart:
    """Draw the structures of the most frequent formulas."""
    formulas = list(contents.compositions.items())[::-1]
    data = [
        {
            "type": "bar", "orientation": "h", "x": [n for _, n in formulas],
            "y": [escape_label(formula) for formula, _ in formulas], "marker": {"color": COLOURS[0]},
            "hovertemplate": "%{y}: %{x:,} structures<extra></extra>", "showlegend": False,
        }
    ]  # fmt: skip
    layout = {
        "xaxis": make_count_axis("structures", formulas[-1][1]),
        "yaxis": make_axis("", type="category", dtick=1),
    }
    most, n = next(iter(contents.compositions.items()))
    alt = (
        f"Bar chart of the {len(formulas)} most frequent of {contents.n_compositions:,} formulas; first {most} ({n:,})."
    )
    return Chart(id="compositions", title="Formulas", alt=alt, data=data, layout=layout)


def draw_bars(name: str, title: str, histogram: Histogram | None, quantity: str, unit: str = "") -> Chart | None:
    """Stack a histogram's groups; a histogram of one value becomes a sentence."""
    if histogram is None:
        return None
    label = f"{quantity} ({unit})" if unit else quantity
    if histogram.has_one_value:
        value = f"{histogram.low:.4g} {unit}".rstrip().replace("-", "−")
        n = histogram.n_values
        holders = "the one structure that has one" if n == 1 else f"all {n:,} structures that have one"
        sentence = f"{quantity[0].upper()}{quantity[1:]}: {value} in {holders}."
        return Chart(id=name, title=title, alt=sentence, data=[], layout={}, sentence=sentence)
    edges = histogram.edges
    data = [
        {
            "type": "bar", "name": escape_label(group), "x": round_numbers((edges[:-1] + edges[1:]) / 2),
            "y": counts.tolist(), "width": round_numbers(np.diff(edges)), "marker": {"color": COLOURS[number]},
            "hovertemplate": "%{y:,} at %{x:.4g}<extra>" + escape_label(group) + "</extra>",
        }
        for number, (group, counts) in enumerate(histogram.counts.items())
        if counts.any()
    ]  # fmt: skip
    layout = {
        "barmode": "stack",
        "bargap": 0,
        "xaxis": make_axis(label, range=round_numbers(edges[[0, -1]])),
        "yaxis": make_count_axis("structures", int(np.sum(list(histogram.counts.values()), axis=0).max())),
    }
    alt = f"Histogram of {histogram.n_values:,} structures, {label}: {histogram.low:.4g} to {histogram.high:.4g}."
    return Chart(id=name, title=title, alt=alt, data=data, layout=layout)


def draw_stress_components(histogram: Histogram | None) -> Chart | None:
    """Draw the histogram of each component of the stress as a line."""
    if histogram is None or histogram.has_one_value:
        return None
    edges = histogram.edges
    data = [
        {
            "type": "scatter", "mode": "lines", "name": group, "x": round_numbers((edges[:-1] + edges[1:]) / 2),
            "y": counts.tolist(), "line": {"color": COLOURS[number], "width": 1.8, "shape": "hvh"},
            "hovertemplate": "%{y:,} at %{x:.4g} GPa<extra>" + group + "</extra>",
        }
        for number, (group, counts) in enumerate(histogram.counts.items())
        if counts.any()
    ]  # fmt: skip
    most = max(int(counts.max()) for counts in histogram.counts.values())
    layout = {
        "xaxis": make_axis("component of the stress (GPa)", range=round_numbers(edges[[0, -1]])),
        "yaxis": make_count_axis("structures", most),
    }
    alt = f"Histograms of the six components of the stress: {histogram.low:.4g} to {histogram.high:.4g} GPa."
    return Chart(id="stress-components", title="Components of the stress", alt=alt, data=data, layout=layout)


def draw_lines(name: str, title: str, histogram: Histogram | None) -> Chart | None:
    """Draw a histogram over a logarithmic axis, each group as the share of its own atoms."""
    if histogram is None:
        return None
    middles = np.sqrt(histogram.edges[:-1] * histogram.edges[1:])
    data = [
        {
            "type": "scatter", "mode": "lines", "name": escape_label(group), "x": round_numbers(middles),
            "y": round_numbers(100 * counts / counts.sum()),
            "line": {"color": COLOURS[number], "width": 1.8, "shape": "hvh"},
            "hovertemplate": "%{y:.3g} % at %{x:.3g} eV/Å<extra>" + escape_label(group) + "</extra>",
        }
        for number, (group, counts) in enumerate(histogram.counts.items())
        if counts.any()
    ]  # fmt: skip
    layout = {
        "xaxis": make_log_axis("force on an atom (eV/Å)", histogram.edges[0], histogram.edges[-1]),
        "yaxis": make_axis("share of the atoms (%)", rangemode="tozero"),
    }
    alt = (
        f"Distribution of the forces on {histogram.n_values:,} atoms over a logarithmic axis; median about "
        f"{histogram.median:.2g}, largest {histogram.high:.3g} eV/Å."
    )
    return Chart(id=name, title=title, alt=alt, data=data, layout=layout)


def draw_force_tails(histogram: Histogram | None) -> Chart | None:
    """Draw the share of each element's atoms whose force is larger than a value, both axes logarithmic."""
    if histogram is None:
        return None
    tails = {
        group: 100 * np.cumsum(counts[::-1])[::-1] / counts.sum()
        for group, counts in histogram.counts.items()
        if counts.any()
    }
    low = histogram.edges[:-1]
    begin = int(np.searchsorted(low, histogram.median, side="right")) - 1
    data = [
        {
            "type": "scatter", "mode": "lines", "name": escape_label(group),
            "x": round_numbers(low[begin:][tail[begin:] > 0]), "y": round_numbers(tail[begin:][tail[begin:] > 0]),
            "line": {"color": COLOURS[number], "width": 1.8, "shape": "hv"},
            "hovertemplate": "%{y:.3g} % above %{x:.3g} eV/Å<extra>" + escape_label(group) + "</extra>",
        }
        for number, (group, tail) in enumerate(tails.items())
        if (tail[begin:] > 0).any()
    ]  # fmt: skip
    least = min(float(tail[tail > 0].min()) for tail in tails.values())
    layout = {
        "xaxis": make_log_axis("force on an atom (eV/Å)", low[begin], histogram.edges[-1]),
        "yaxis": make_log_axis("share of the atoms above (%)", least / 1.2, 100.0),
    }
    alt = "; ".join(f"{group}: 1 in 100 above {_find_tail(low, tail):.3g} eV/Å" for group, tail in tails.items())
    return Chart(id="force-tails", title="Largest forces by element", alt=f"Tails. {alt}.", data=data, layout=layout)


def _find_tail(low: np.ndarray, tail: np.ndarray) -> float:
    """Return the largest force, eV/Å, that one atom in a hundred exceeds."""
    return float(low[np.flatnonzero(tail >= 1.0)[-1]])


def draw_pairs(contents: Contents) -> Chart | None:
    """Draw the radial histogram of the most frequent pairs of elements."""
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
                "type": "scatter", "mode": "lines", "name": pair, "x": round_numbers(middles[first:]),
                "y": round_numbers((density / peak)[first:]), "line": {"color": COLOURS[number], "width": 1.8},
                "hovertemplate": "%{x:.2f} Å<extra>" + pair + "</extra>",
            }
        )  # fmt: skip
    words = ", ".join(f"{pair} {distance:.2f} Å" for pair, distance in pairs.shortest.items())
    layout = {
        "xaxis": make_axis("distance (Å)", range=round_numbers([PAIR_EDGES[first], PAIR_EDGES[-1]])),
        "yaxis": make_axis("pairs/distance² (peak = 1)", range=[0, 1.05]),
    }
    alt = f"Radial histogram of the most frequent pairs of elements. Shortest distances: {words}."
    return Chart(id="pairs", title="Distances between atoms", alt=alt, data=data, layout=layout)


def draw_strata(contents: Contents) -> Chart | None:
    """Draw how many strata hold how many structures."""
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
        "xaxis": make_axis("structures in the stratum", type="category"),
        "yaxis": make_count_axis("strata", int(n.max())),
    }
    if len(size) > 30:
        counts, edges = np.histogram(contents.strata, 30)
        data[0] |= {"x": round_numbers((edges[:-1] + edges[1:]) / 2), "y": counts.tolist()}
        data[0]["hovertemplate"] = "%{y:,} strata with about %{x:,.0f} structures<extra></extra>"
        layout["xaxis"] = make_axis("structures in the stratum")
        layout["bargap"] = 0
    alt = f"Bar chart of the sizes of {len(contents.strata):,} strata: {size[0]:,} to {size[-1]:,} structures."
    return Chart(id="strata", title="Strata", alt=alt, data=data, layout=layout)
