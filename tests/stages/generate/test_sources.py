"""What a user types for a source, and what they are told."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel, ValidationError

from daskpipe.config.models import Generate
from daskpipe.stages.generate.sources import Source, SourceName, share_out

ALLOYS = {"generator": "alloys", "n": 4, "elements": {"Cu": 0.5, "Au": [0, 1]}, "n_atoms": [4, 16]}


class Config(BaseModel):
    """As the config holds them."""

    sources: dict[SourceName, Source]


def test_defaults_are_filled_in_and_survive_a_second_reading() -> None:
    source = Source.model_validate(ALLOYS)
    assert source.n == 4
    assert source.params == {
        "elements": {"Cu": [0.5, 0.5], "Au": [0, 1]},
        "n_atoms": [4, 16],
        "lattices": ["fcc", "bcc", "hcp"],
        "strain": 0.05,
        "rattle": 0.1,
        "grid": None,
        "order": "random",
        "short_range": -0.2,
    }
    assert Source.model_validate(source.model_dump(mode="json")) == source


@pytest.mark.parametrize(
    ("change", "location", "message"),
    [
        ({"strain": -1}, "sources.metal.strain", "greater than or equal to 0"),
        ({"strian": 0.1}, "sources.metal.strian", "Extra inputs are not permitted"),
        ({"elements": {"Cu": 0.5, "Au": 0.4}}, "sources.metal.elements", r"Cu, Au sum to 0\.9; they must sum to 1"),
        ({"elements": {"Cx": 1.0}}, r"sources.metal.elements.Cx", "unknown element 'Cx'"),
        ({"lattices": ["fcb"]}, "sources.metal.lattices.0", "'fcc', 'bcc' or 'hcp'"),
        ({"n_atoms": [9, 3]}, "sources.metal.n_atoms", r"expected a count .* received \[9, 3\]"),
        ({"generator": "aloys"}, "sources.metal.generator", "unknown generator 'aloys'. Did you mean 'alloys'"),
        ({"n": 0}, "sources.metal.n", "greater than or equal to 1"),
        ({"n": None}, "sources.metal", "n is missing: give the number of structures that 'alloys' is to make"),
    ],
)
def test_errors_name_the_key(change: dict[str, object], location: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        Config.model_validate({"sources": {"metal": {**ALLOYS, **change}}})
    (error,) = caught.value.errors()
    assert ".".join(map(str, error["loc"])).startswith(location)


def test_missing_parameter_is_named() -> None:
    with pytest.raises(ValidationError, match=r"n_atoms\n  Field required"):
        Source.model_validate({key: value for key, value in ALLOYS.items() if key != "n_atoms"})


def test_number_of_files_is_not_chosen() -> None:
    with pytest.raises(ValidationError, match="n does not apply to files"):
        Source.model_validate({"generator": "files", "paths": ["a.xyz"], "n": 3})


@pytest.mark.parametrize("name", ["two words", "", "a/b", "-x", "<b>", "a\n"])
def test_names_of_sources_are_words(name: str) -> None:
    with pytest.raises(ValidationError, match="String should"):
        Config.model_validate({"sources": {name: ALLOYS}})


def test_an_empty_list_is_not_a_choice() -> None:
    with pytest.raises(ValidationError, match=r"lattices\n  Value error, give at least one, or leave it out"):
        Source.model_validate({**ALLOYS, "lattices": []})


FILES = {"generator": "files", "paths": ["x"], "share": 1}
SHARED = {key: value for key, value in ALLOYS.items() if key != "n"}


SHARES = {"molecules": 50.0, "crystals": 33.0, "clusters": 10.0, "surfaces": 7.0}


@pytest.mark.parametrize("n", [14, 15, 99, 100, 101, 120_000])
def test_shares_give_exact_counts_by_largest_remainder(n: int) -> None:
    counts = share_out(n, SHARES)
    assert sum(counts.values()) == n
    assert all(abs(counts[name] - n * share / 100) < 1 for name, share in SHARES.items())


def test_a_source_without_any_structure_is_refused() -> None:
    with pytest.raises(ValueError, match="generate.n: of 4 structures none is left for surfaces; raise n or the share"):
        share_out(4, SHARES)


def test_a_mix_divides_its_number_and_reads_back() -> None:
    mix = Generate.model_validate(
        {"n": 10, "sources": {"a": {**SHARED, "share": 2}, "b": {**SHARED, "share": 1}, "c": ALLOYS}}
    )
    assert {name: source.n for name, source in mix.sources.items()} == {"a": 7, "b": 3, "c": 4}
    assert Generate.model_validate(mix.model_dump(mode="json")) == mix


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sources": {"a": {**SHARED, "share": 2}}}, "a have shares, but of what? Give generate.n"),
        ({"n": 5, "sources": {"a": ALLOYS}}, "generate.n is divided by shares, and no source has one"),
        ({"n": 5, "sources": {"a": {**ALLOYS, "share": 1}}}, "a: give n = 4 or share = 1, not both"),
        ({"n": 5, "sources": {"a": {**SHARED, "share": 0}}}, "greater than 0"),
        ({"n": 5, "sources": {"a": FILES}}, "share does not apply to files"),
    ],
)
def test_mixes_that_cannot_be_are_refused(content: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        Generate.model_validate(content)
