from __future__ import annotations

from pathlib import Path

import pytest
from report_browser import Page
from report_samples import HOSTILE_WORD, VERDICT

from daskpipe.runs import report
from daskpipe.runs.report.chart import LONGEST_LABEL

PHONE, DESKTOP = 390, 1280

EMPTY_CHARTS = "[...document.querySelectorAll('.chart')].filter(c => !c.querySelector('svg')).map(c => c.dataset.chart)"
MARKS = ".point, .points path, .js-line, .sankey-link"
UNMARKED_CHARTS = f"""
[...document.querySelectorAll('.chart')].filter(c => !c.querySelector('{MARKS}')).map(c => c.dataset.chart)
"""
COLUMNS = """
new Set([...document.querySelectorAll('#labels figure')].map(f => Math.round(f.getBoundingClientRect().left))).size
"""
OVERLAPPING_FLOWS = """
(() => {
  const labels = [...document.querySelectorAll('[data-chart=flows] .node-label')];
  const boxes = labels.map(label => label.getBoundingClientRect());
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
  return labels.filter((_, i) => boxes.some((box, j) => j < i && meet(boxes[i], box))).map(label => label.textContent);
})()
"""
CLIPPED_LEGENDS = """
[...document.querySelectorAll('.chart')].filter(chart => {
  const box = chart.getBoundingClientRect();
  return [...chart.querySelectorAll('.legendtext, .xtick text, .ytick text, .xtitle, .ytitle')].some(text => {
    const at = text.getBoundingClientRect();
    // Plotly hides what would overlap.
    const across = at.left < box.left - 1 || at.right > box.right + 1;
    return at.width > 0 && (across || at.top < box.top - 1 || at.bottom > box.bottom + 1);
  });
}).map(chart => chart.dataset.chart)
"""


@pytest.fixture(scope="module")
def pages(run_dir: Path, hostile_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {
        "run": report.write_report(run_dir, folder / "run.html"),
        "dataset": report.write_report(hostile_dataset, folder / "dataset.html", verdict=VERDICT),
    }


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("name", ["run", "dataset"])
def test_the_page_reads_without_a_network(name: str, width: int, pages: dict[str, Path], chromium: Page) -> None:
    chromium.open(pages[name], width=width)
    assert chromium.complaints() == []
    assert chromium.requests() == [pages[name].as_uri()]
    assert chromium.evaluate("document.querySelectorAll('.chart').length") >= 12
    assert chromium.evaluate(EMPTY_CHARTS) == []
    assert chromium.evaluate(UNMARKED_CHARTS) == []
    assert chromium.evaluate(CLIPPED_LEGENDS) == []
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.evaluate(COLUMNS) == (1 if width == PHONE else 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "dataset"])
def test_labels_of_the_flow_do_not_overlap_and_phones_get_the_table(
    name: str, pages: dict[str, Path], chromium: Page
) -> None:
    chromium.open(pages[name], width=DESKTOP)
    assert chromium.evaluate("document.querySelectorAll('[data-chart=flows] .node-label').length") > 5
    assert chromium.evaluate(OVERLAPPING_FLOWS) == []
    chromium.open(pages[name], width=PHONE)
    assert chromium.evaluate("getComputedStyle(document.querySelector('[data-figure=flows]')).display") == "none"
    assert chromium.evaluate("document.querySelector('#flow table').getBoundingClientRect().height") > 100


def test_a_button_colours_the_map_by_split(pages: dict[str, Path], chromium: Page) -> None:
    legend = "[...document.querySelectorAll('[data-chart=map] .legendtext')].map(t => t.textContent)"
    chromium.open(pages["dataset"], width=DESKTOP)
    assert "surface" in chromium.evaluate(legend)
    by_split = "[...document.querySelectorAll('.updatemenu-button')].find(b => b.textContent.includes('split'))"
    chromium.evaluate(f"{by_split}.dispatchEvent(new MouseEvent('click'))")
    assert {"train", "val", "test"} <= set(chromium.evaluate(legend))
    assert "surface" not in chromium.evaluate(legend)


def test_hostile_names_run_nothing_and_are_shown_as_typed(pages: dict[str, Path], chromium: Page) -> None:
    chromium.open(pages["dataset"], width=DESKTOP)
    assert not [event for event in chromium.events if event.get("method") == "Page.javascriptDialogOpening"]
    assert chromium.evaluate("document.querySelectorAll('img[src=x], svg a, a[onerror]').length") == 0
    legend = chromium.evaluate(
        "[...document.querySelectorAll('[data-chart=sizes] .legendtext')].map(t => t.textContent)"
    )
    assert f"{HOSTILE_WORD[: LONGEST_LABEL - 1]}…" in legend


def test_a_script_that_slipped_in_would_not_run(pages: dict[str, Path], chromium: Page, tmp_path: Path) -> None:
    text = pages["dataset"].read_text(encoding="utf-8")
    tampered = tmp_path / "tampered.html"
    intruder = "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title = 'taken over'\">"
    tampered.write_text(text.replace("<main>", f"<main>{intruder}"), encoding="utf-8")
    chromium.open(tampered, width=DESKTOP)
    assert any("Content Security Policy" in text for text in chromium.complaints())
    assert "taken over" not in chromium.evaluate("document.title")
    assert chromium.evaluate(EMPTY_CHARTS) == []


def test_dark_pages_have_light_text(pages: dict[str, Path], chromium: Page) -> None:
    colour = "getComputedStyle(document.querySelector('[data-chart=sizes] .xtitle')).fill"
    chromium.open(pages["run"], width=DESKTOP)
    in_light = chromium.evaluate(colour)
    chromium.open(pages["run"], width=DESKTOP, dark=True)
    assert chromium.complaints() == []
    assert chromium.evaluate(colour) != in_light


def test_it_prints_with_its_figures_and_details(pages: dict[str, Path], chromium: Page) -> None:
    chromium.open(pages["run"], width=DESKTOP)
    chromium.evaluate(
        "addEventListener('beforeprint', () => { window.printed = [...document.querySelectorAll('.chart')]"
        ".map(c => c.querySelector('svg').getBoundingClientRect().width); })"
    )
    assert chromium.pdf().startswith(b"%PDF")
    assert chromium.complaints() == []
    widths = chromium.evaluate("window.printed")
    a4_within_its_margins = 680  # 180 mm in pixels of 1/96 inch
    assert widths
    assert max(widths) <= a4_within_its_margins
    assert chromium.evaluate("[...document.querySelectorAll('details')].every(item => item.open)")
    assert chromium.evaluate(EMPTY_CHARTS) == []
