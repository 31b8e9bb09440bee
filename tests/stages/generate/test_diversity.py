"""The diversity of seeds: figures that were worked out by hand, whatever the partitions."""

from __future__ import annotations

import pytest
from ase import Atoms
from ase.build import bulk, molecule

from daskpipe.core.structures import from_atoms, take
from daskpipe.stages.generate.diversity import format_diversity, measure_diversity


def seeds() -> list[Atoms]:
    made = [bulk("NaCl", "rocksalt", a=5.64, cubic=True), molecule("H2O"), molecule("H2O"), Atoms("He")]
    for atoms, kind, source in zip(made, ("crystal", "molecule", "molecule", "molecule"), "cmmm", strict=True):
        atoms.info = {"system_type": kind, "generator": source}
    made[2].positions *= 1.1
    return made


def test_figures_are_those_worked_out_by_hand() -> None:
    report = measure_diversity([from_atoms(seeds())], 4, {"c": 3, "m": 3})
    # Of 15 atoms: Na 4, Cl 4, H 4, O 2, He 1.
    assert report["elements"] == {"H": 0.2667, "He": 0.0667, "O": 0.1333, "Na": 0.2667, "Cl": 0.2667}
    assert report["presence"] == {"H": 0.5, "He": 0.25, "O": 0.5, "Na": 0.25, "Cl": 0.25}
    assert report["entropy_bits"] == pytest.approx(2.174, abs=1e-3)
    assert report["entropy_presence_bits"] == pytest.approx(2.236, abs=1e-3)
    assert report["n_compositions"] == 3
    assert report["size"] == {"mean": 3.75, "cv": pytest.approx(0.6896, abs=1e-4), "least": 1, "most": 8}
    assert report["types"] == {"molecule": 3, "crystal": 1}
    assert report["types_cv"] == 0.5
    assert report["missing"] == {"c": 2}
    # The shortest bond over its sum of covalent radii: O-H 0.9689 Å of 0.97 Å; Na-Cl 2.82 Å of 2.68 Å.
    assert report["nearest"]["least"] == pytest.approx(0.999, abs=1e-3)


def test_partitions_make_no_difference() -> None:
    ds = from_atoms(seeds())
    whole = measure_diversity([ds], 4)
    assert measure_diversity([take(ds, [0]), take(ds, [1, 2]), take(ds, [3])], 4) == whole


def test_distances_are_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskpipe.stages.generate.diversity.SAMPLE", 2)
    ds = from_atoms(seeds())
    # Every second structure: the crystal, and the longer water.
    report = measure_diversity([take(ds, [0]), take(ds, [1, 2]), take(ds, [3])], 4)
    assert report["nearest"]["least"] == pytest.approx(1.052, abs=2e-3)


def test_lines_tell_all_of_it() -> None:
    lines = format_diversity(measure_diversity([from_atoms(seeds())], 4, {"c": 3}))
    assert lines[0] == "4 structures of 3 compositions, 1 to 8 atoms (mean 4, CV 0.69)"
    shares = "H 26.7%, Na 26.7%, Cl 26.7%, O 13.3%, He 6.7%"
    assert lines[1] == f"elements by share of atoms: {shares}; entropy 2.17 of at most 2.32 bits"
    assert "types: molecule 3, crystal 1" in lines
    assert lines[-1] == "c: 2 fewer than asked for"
