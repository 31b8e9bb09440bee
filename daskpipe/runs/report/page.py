"""Render facts and figures as HTML; the template escapes all text from outside."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from daskpipe.runs.report.charts import draw_charts
from daskpipe.runs.report.contents import Contents
from daskpipe.runs.report.facts import Facts
from daskpipe.runs.report.thumbnails import draw_thumbnails, make_legend


def render_page(facts: Facts, contents: Contents | None) -> str:
    """Render the page.

    A content security policy in the page allows two scripts, plotly.js and its own, by their hashes, and forbids to
    fetch anything. If text from outside ever became a script, it would not run.
    """
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from daskpipe.core.versions import read_version

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":"), "ensure_ascii": False}
    environment.filters["number"] = format_number
    here = files("daskpipe.runs.report")
    figures = draw_charts(facts, contents)
    scripts = [get_plotlyjs(), here.joinpath("page.js").read_text(encoding="utf-8")]
    return environment.from_string(here.joinpath("page.html").read_text(encoding="utf-8")).render(
        facts=facts,
        contents=contents,
        charts=figures,
        figures={name: chart.figure for name, chart in figures.items() if chart.data},
        pictures=draw_thumbnails(contents.pictures) if contents is not None else {},
        legend=make_legend(contents.elements) if contents is not None else {},
        scripts=[Markup(script) for script in scripts],
        policy=" ".join(_hash_script(script) for script in scripts),
        version=read_version("daskpipe"),
    )


def format_number(value: Any) -> str:
    """Write a number for people: thousands separators, four digits, a dash for None.

    Examples
    --------
    >>> format_number(1234567), format_number(0.012345), format_number(None)
    ('1,234,567', '0.01235', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    whole = isinstance(value, int) or 1000 <= abs(value) < 1e15
    return f"{value:,.0f}".replace("-", "−") if whole else f"{value:.4g}".replace("-", "−")


def _hash_script(script: str) -> str:
    """Return the hash of a script as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
