from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html import escape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from report_samples import HOSTILE, HOSTILE_WORD, VERDICT

import daskpipe
from daskpipe.core.errors import ConfigError, InputError
from daskpipe.runs import report
from daskpipe.runs.report.chart import LONGEST_LABEL
from daskpipe.runs.report.split_words import describe_splits, list_shares
from daskpipe.store import open_dataset

MOST_BYTES = 8_000_000
ALL_CHARTS = {
    "flows", "elements", "compositions", "sizes", "energies", "volumes", "forces", "forces-elements", "force-tails",
    "pairs", "temperature", "pressure", "stress", "stress-components", "map", "comparison", "strata", "splits", "times",
}  # fmt: skip
N_SCRIPTS = 3
"""The figures, plotly.js and the page's own."""


class Parsed(HTMLParser):
    """Elements with their attributes, the text outside scripts, and the scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        inside = self.elements[-1][0] if self.elements else ""
        if inside == "script" and len(self.scripts) < self.count("script"):
            self.scripts.append(data)
        elif inside != "style":
            self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    @property
    def charts(self) -> set[str]:
        return {attrs["data-chart"] or "" for _, attrs in self.elements if "data-chart" in attrs}

    @property
    def figures(self) -> dict[str, dict]:
        return json.loads(self.scripts[0])

    def table(self, caption: str) -> str:
        """Text from a table's caption to the next caption."""
        assert caption in self.text
        return self.text.split(caption, 1)[1][:600]


@pytest.fixture(scope="module")
def run_page(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write_report(run_dir, tmp_path_factory.mktemp("page") / "run.html")


@pytest.fixture(scope="module")
def dataset_page(hostile_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write_report(hostile_dataset, tmp_path_factory.mktemp("page") / "dataset.html", verdict=VERDICT)


def test_a_run_is_reported_from_its_first_seed_to_its_last_atom(run_page: Path, reference: daskpipe.Result) -> None:
    page = Parsed(run_page)
    counts = {stage: row["out"] for stage, row in reference.stages.items()}
    ds = open_dataset(reference.dataset)
    n_atoms = ds.sizes["atom"]
    assert f"{n_atoms:,} atoms in {counts['store']} structures" in page.text
    table = page.table("Counts through the stages")
    # One seed more was made than the run counts: the unreadable file of the fixture.
    assert f"generate {counts['generate'] + 1} structures made or read {counts['generate']} seeds 1 unreadable" in table
    assert f"explore {reference.stages['explore']['inputs']} trajectories {counts['explore']} frames 1 force" in table
    duplicates = json.loads(ds.attrs["selection"])["duplicates"]["against_pool"]
    assert f"{counts['explore'] - counts['select'] - duplicates} not picked" in table
    assert f"store {counts['label']} labelled {counts['store']} stored" in table
    assert re.search(
        rf"Seeds {counts['generate']} structures of \d+ compositions, .* entropy [\d.]+ of at most", page.text
    )
    assert ds.attrs["dataset_key"] in page.text
    assert ds.attrs["checksums"]["root"] in page.text
    assert json.loads(ds.attrs["label_potential"])["sha256"] in page.text
    assert "name: emt_alloy" in page.text
    assert json.loads(ds.attrs["versions"])["torch"] in page.text
    assert page.charts == ALL_CHARTS - {"pressure", "temperature"}  # one of each


def test_failures_are_listed_with_examples(run_page: Path) -> None:
    page = Parsed(run_page)
    table = page.table("Rejected, by stage and reason")
    assert f"generate unreadable 1 files/{HOSTILE}.xyz : found {HOSTILE}" in table
    assert f"explore force 1 {'0f' * 16} : 120 eV/Å" in table


def test_a_dataset_alone_is_reported(dataset_page: Path) -> None:
    page = Parsed(dataset_page)
    assert page.charts == ALL_CHARTS - {"times", "comparison", "pressure"}  # one pressure
    table = page.table("Counts through the stages")
    assert "generate 12 structures made or read 11 seeds 1 duplicate" in table
    assert "select 90 frames 33 picks 5 near-duplicate of an earlier frame; 52 not picked" in table
    assert f"label 33 picks 30 labelled 3 {HOSTILE}" in table
    assert "train 60 %" in page.table("Shares of the splits")
    assert "kept together all frames of a seed" in page.table("How they were made")
    assert "No group" in page.text


def test_records_of_a_split_are_written_in_words() -> None:
    rule = {"seed": 3, "unit": "group", "fractions": {"train": 0.8}, "split_by": "trajectory", "near_duplicates": 0.01}
    report = {
        "by": "trajectory",
        "wanted": {"test": 0.1, "train": 0.8},
        "n_doubled": 1200,
        "leakage": {"val": 0.25},
        "frame_distance": None,
        "gap": {"of_blocks": 7, "ids": [1, 2]},
    }
    assert describe_splits(rule, report) == [
        ("kept together", "all frames of a trajectory"),
        ("near-duplicates kept together up to", "1 % of the spread of the features"),
        ("structures that occurred twice, left out", "1,200"),
        ("distance from a frame to the nearest other one of its seed", "–"),
        ("seed of the shuffle", "3"),
        ("gap.of blocks", "7"),
        ("gap.ids", "[1, 2]"),
    ]
    assert list_shares(report) == [
        ("train", "80 %", "–", "–"),
        ("val", "–", "25 %", "–"),
        ("test", "10 %", "–", "–"),
    ]


def test_sources_of_a_merged_dataset_are_listed(structures: list, tmp_path: Path) -> None:
    from daskpipe.core.structures import from_atoms
    from daskpipe.store import arrange_and_write

    sources = [
        {"name": "melt.xyz", "checksum": "c1", "label_method": "pbe"},
        {"name": "old.zarr", "n_structures": 1234, "label_potential": '{"name": "emt", "sha256": "0"}'},
    ]
    attrs = {"dataset_key": "k", "sources": json.dumps(sources)}
    arrange_and_write(from_atoms(structures[:3]), tmp_path / "a.zarr", seed=0, fractions={"train": 1.0}, attrs=attrs)
    table = Parsed(report.write_report(tmp_path / "a.zarr")).table("Where the structures come from")
    assert "melt.xyz – pbe c1" in table
    assert "old.zarr 1,234 emt –" in table
    attrs["sources"] = "[3]"
    arrange_and_write(from_atoms(structures[:3]), tmp_path / "b.zarr", seed=0, fractions={"train": 1.0}, attrs=attrs)
    with pytest.raises(InputError, match=r"'sources' is not a list of JSON objects, received \[3\]"):
        report.write_report(tmp_path / "b.zarr")


@pytest.mark.parametrize("name", ["run_page", "dataset_page"])
def test_names_from_outside_are_text(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    page = Parsed(path)
    assert HOSTILE in page.text
    assert page.count("script") == N_SCRIPTS
    sources = [attrs.get(key) or "" for _, attrs in page.elements for key in ("src", "href") if key in attrs]
    assert sources
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in sources)
    assert not [key for _, attrs in page.elements for key in attrs if key.startswith("on")]
    # Whatever the parser makes of it: no tag of theirs stands in the file but as text.
    text = path.read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert HOSTILE_WORD not in text


def test_names_in_figures_are_no_tags_of_plotly_either(dataset_page: Path) -> None:
    figures = Parsed(dataset_page).figures
    names = [trace["name"] for trace in figures["sizes"]["data"]]
    assert escape(f"{HOSTILE_WORD[: LONGEST_LABEL - 1]}…") in names
    assert not [name for name in names if "<" in name]


@pytest.mark.parametrize("name", ["run_page", "dataset_page"])
def test_plotly_knows_all_that_the_figures_say(name: str, request: pytest.FixtureRequest) -> None:
    from plotly.graph_objects import Figure

    page = Parsed(request.getfixturevalue(name))
    assert page.figures.keys() == page.charts
    for figure in page.figures.values():
        assert Figure(figure).data  # raises ValueError at a property that there is not


def test_failed_checks_come_first_and_passed_ones_are_folded(dataset_page: Path) -> None:
    page = Parsed(dataset_page)
    assert "NO-GO" in page.text
    failed, passed = page.table("Checks that did not pass"), page.table("Checks that passed")
    assert f"{HOSTILE} fail 2 0 {HOSTILE} 1,200 structures {'ab' * 16} {HOSTILE}" in failed
    assert failed.index("fail") < failed.index("skipped")
    assert "leakage skipped – – no features" in failed
    assert "share of near pairs warn 1.5 % 1 %" in failed
    assert "largest force pass 1,234 eV/Å 50 eV/Å" in passed
    assert f"1 of {len(VERDICT['checks'])} checks failed: {HOSTILE}." in page.text
    folded = [attrs for tag, attrs in page.elements if tag == "details"]
    assert folded
    assert all("open" not in attrs for attrs in folded)
    assert "another dataset" not in page.text


def test_the_largest_forces_of_each_element_are_drawn(dataset_page: Path, structures: list) -> None:
    traces = {trace["name"]: trace for trace in Parsed(dataset_page).figures["force-tails"]["data"]}
    assert traces.keys() == {"Cu", "Ag", "Au"}
    for symbol, trace in traces.items():
        norms = np.concatenate([np.linalg.norm(one.get_forces()[one.symbols == symbol], axis=1) for one in structures])
        for edge, share in list(zip(trace["x"], trace["y"], strict=True))[1:]:
            # The edge is rounded to five digits, so a force within that may lie on its other side.
            assert np.mean(norms >= edge * 1.0001) - 1e-4 <= share / 100 <= np.mean(norms >= edge * 0.9999) + 1e-4


def test_a_histogram_of_one_value_is_a_sentence(dataset_page: Path) -> None:
    page = Parsed(dataset_page)
    assert "Pressure of the barostat: 2 GPa in all 10 structures that have one." in page.text
    assert "pressure" not in page.figures


def test_the_map_is_coloured_by_kind_split_and_reason(dataset_page: Path, structures: list) -> None:
    figure = Parsed(dataset_page).figures["map"]
    [menu] = figure["layout"]["updatemenus"]
    assert [button["label"] for button in menu["buttons"]] == ["kind", "split", "reason"]
    for button in menu["buttons"]:
        shown = [trace for trace, seen in zip(figure["data"], button["args"][0]["visible"], strict=True) if seen]
        assert sum(len(trace["x"]) for trace in shown) == len(structures)  # each structure once, whatever colours it
    assert [trace["visible"] for trace in figure["data"]] == menu["buttons"][0]["args"][0]["visible"]
    assert {trace["name"] for trace in figure["data"]} >= {"train", "surface", "stratum"}


def test_a_verdict_beside_the_dataset_is_read(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    key = open_dataset(tmp_path / "run" / "dataset.zarr").attrs["dataset_key"]
    gate = tmp_path / "run" / "quality.json"
    gate.write_text(json.dumps({**VERDICT, "go": True, "dataset_key": key}))
    page = Parsed(report.write_report(tmp_path / "run"))
    assert "GO" in page.words
    assert "another dataset" not in page.text
    gate.write_text(json.dumps(VERDICT))
    page = Parsed(report.write_report(tmp_path / "run"))
    assert "This verdict is on another dataset (key k1). Type: daskpipe quality" in page.text
    gate.write_text("{")
    with pytest.raises(InputError, match=r"quality.json is not JSON.*type: daskpipe quality"):
        report.write_report(tmp_path / "run")


def test_without_a_verdict_the_page_says_what_to_type(run_page: Path, run_dir: Path) -> None:
    assert f"The quality gate was not run. Type: daskpipe quality {run_dir}/dataset.zarr" in Parsed(run_page).text


def test_a_verdict_without_checks_is_refused(hostile_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the verdict has no 'go'.*type: daskpipe quality"):
        report.write_report(hostile_dataset, tmp_path / "page.html", verdict={"go": True})
    with pytest.raises(InputError, match="each with 'name' and 'verdict'"):
        report.write_report(hostile_dataset, tmp_path / "page.html", verdict={"go": True, "checks": [{"name": "cell"}]})


def test_a_run_without_its_dataset_is_reported_as_far_as_it_came(run_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    shutil.rmtree(run / "dataset.zarr")
    for stage in ("label", "store"):
        shutil.rmtree(run / "units" / stage)
    page = Parsed(report.write_report(run))
    assert page.charts == {"flows", "map", "comparison", "times"}
    assert "select" in page.table("Counts through the stages")
    assert "Composition" not in page.words
    assert "picks" in [trace["name"] for trace in page.figures["map"]["data"]]


def test_a_dataset_without_labels_or_features_is_reported(tmp_path: Path) -> None:
    from ase import Atoms

    from daskpipe.core.structures import from_atoms
    from daskpipe.store import arrange_and_write

    atoms = Atoms("H", positions=[[0, 0, 0]])
    fractions = {"train": 1.0}
    arrange_and_write(
        from_atoms([atoms]), tmp_path / "bare.zarr", seed=0, fractions=fractions, attrs={"dataset_key": "k"}
    )
    path = report.write_report(tmp_path / "bare.zarr")
    assert path == tmp_path / "bare.report.html"
    page = Parsed(path)
    assert {"energies", "forces", "pairs", "map"}.isdisjoint(page.charts)
    assert "The dataset has no labels." in page.text
    assert "No two atoms are closer than 6 Å." in page.text


@pytest.mark.slow
def test_the_same_dataset_gives_the_same_page(hostile_dataset: Path, tmp_path: Path) -> None:
    pages = [report.write_report(hostile_dataset, tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]
    assert len(pages[0]) < MOST_BYTES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_where_the_page_goes(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    assert report.write_report(tmp_path / "run") == tmp_path / "run" / "report.html"
    assert report.write_report(str(tmp_path / "run"), tmp_path / "new" / "page.html").is_file()
    with pytest.raises(ConfigError, match=r"is a directory; give the name of a file, e.g. .*report.html"):
        report.write_report(tmp_path / "run", tmp_path)


def test_what_is_neither_a_run_nor_a_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; give a run or a dataset"):
        report.write_report(tmp_path / "nothing")
    with pytest.raises(InputError, match="neither a run directory .* nor a dataset; give a run"):
        report.write_report(tmp_path)


def test_an_attribute_that_is_no_json_is_refused(structures: list, tmp_path: Path) -> None:
    from daskpipe.core.structures import from_atoms
    from daskpipe.store import arrange_and_write

    attrs = {"dataset_key": "k", "selection": "{"}
    arrange_and_write(from_atoms(structures[:3]), tmp_path / "a.zarr", seed=0, fractions={"train": 1.0}, attrs=attrs)
    with pytest.raises(InputError, match="root attribute 'selection' is not JSON"):
        report.write_report(tmp_path / "a.zarr")
    attrs = {"dataset_key": "k", "versions": "[1]"}
    arrange_and_write(from_atoms(structures[:3]), tmp_path / "b.zarr", seed=0, fractions={"train": 1.0}, attrs=attrs)
    with pytest.raises(InputError, match=r"root attribute 'versions' is not a JSON object, received \[1\]"):
        report.write_report(tmp_path / "b.zarr")


def test_headings_are_in_order_and_pictures_have_words(run_page: Path) -> None:
    page = Parsed(run_page)
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    images = [attrs for tag, attrs in page.elements if tag == "img"]
    assert images
    assert all(" atoms, " in (attrs["alt"] or "") for attrs in images)
    assert all(len(attrs["aria-label"] or "") > 20 for _, attrs in page.elements if "data-chart" in attrs)


def test_importing_the_report_is_light() -> None:
    heavy = ("torch", "dask", "ase", "xarray", "zarr", "plotly", "jinja2", "matplotlib")
    code = f"import daskpipe.runs.report, sys; print([name for name in {heavy!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert loaded == "[]"
