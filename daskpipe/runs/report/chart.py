"""Figure of the page, in the plain dictionaries that plotly.js draws, and its axes.

The page sets the colours of text and grid, since it knows whether it is dark.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b5a800", "#8c6bb1", "#7f7f7f")
"""Colours of Okabe and Ito, which people with any colour vision can tell apart; the last is for the rest."""

LONGEST_LABEL = 34
"""Most characters of a label."""

FEW_DECADES = 4
"""Most decades of a logarithmic axis with labels at 2 and 5."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure.

    Parameters
    ----------
    id, title, alt
        Its place in the page, its heading, and a description in words.
    data, layout
        As plotly.js takes them, JSON types only.
    height
        Height in pixels.
    wide
        Whether it takes the whole width of the page.
    sentence
        Text in place of a figure that would show a single value; then there are no data.
    """

    id: str
    title: str
    alt: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 340
    wide: bool = False
    sentence: str = ""

    @property
    def figure(self) -> dict[str, Any]:
        """Data and layout, for the script of the page."""
        return {"data": self.data, "layout": self.layout}


def escape_label(name: str) -> str:
    """Escape a name for plotly, which else takes tags and entities in it as such, and shorten it.

    Examples
    --------
    >>> escape_label("<b>Cu</b>")
    '&lt;b&gt;Cu&lt;/b&gt;'
    """
    short = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
    return escape(short, quote=False)


def make_axis(title: str, **rest: Any) -> dict[str, Any]:
    """Make an axis with a title."""
    return {"title": {"text": title}, "automargin": True, "separatethousands": True, **rest}


def make_count_axis(title: str, largest: int) -> dict[str, Any]:
    """Make an axis for whole numbers, without ticks between them."""
    return make_axis(title, rangemode="tozero", exponentformat="none", **({"dtick": 1} if largest <= 5 else {}))


def round_numbers(values: Any) -> list[float]:
    """Round to five digits, which are enough for a figure: a page holds many numbers."""
    return [float(f"{value:.5g}") for value in np.asarray(values, dtype=np.float64).tolist()]


def make_log_axis(title: str, low: float, high: float) -> dict[str, Any]:
    """Make a logarithmic axis with a label at each decade, and at 2 and 5 where there are few decades."""
    decades = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1).astype(int).tolist()
    factors = (1, 2, 5) if len(decades) <= FEW_DECADES else (1,)
    ticks = [(factor, decade) for decade in decades for factor in factors]
    return make_axis(
        title,
        type="log",
        tickvals=[factor * 10.0**decade for factor, decade in ticks],
        ticktext=[_write_power(factor, decade) for factor, decade in ticks],
        range=round_numbers(np.log10([low, high])),
    )


def _write_power(factor: int, decade: int) -> str:
    """Write a number such as 0.05 or 20, or 10⁻⁶ where it has many zeros."""
    if -4 < decade < 5:
        return f"{factor * 10.0**decade:.{max(0, -decade)}f}"
    power = str(decade).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{power}" if factor == 1 else f"{factor}·10{power}"
