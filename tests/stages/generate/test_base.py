"""What derived structures start from: a generator, files, or a formula."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk

from daskpipe.core.errors import InputError
from daskpipe.stages.generate.base import check_base, draw_base, hash_base

ALLOY = {"generator": "alloys", "elements": {"Cu": 1}, "n_atoms": 8}


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_generator_is_checked_and_its_defaults_are_filled_in() -> None:
    base = check_base(ALLOY)
    assert (base["generator"], base["n_atoms"], base["rattle"]) == ("alloys", [8, 8], 0.1)
    assert check_base(base) == base
    assert len(draw_base(base, rng=rng(), index=5)) == 8
    assert hash_base({"of": base}) == ""


def test_a_file_is_gone_through_in_turn_and_its_bytes_count(tmp_path: Path) -> None:
    path = tmp_path / "own.extxyz"
    ase.io.write(path, [bulk("Cu"), bulk("Au"), bulk("Ag")])
    base = check_base(str(path))
    assert base["generator"] == "files"
    symbols = [str(draw_base(base, rng=rng(), index=index).symbols) for index in range(4)]
    assert symbols == ["Cu", "Au", "Ag", "Cu"]
    before = hash_base({"of": base})
    ase.io.write(path, [bulk("Pt")])
    assert hash_base({"of": base}) not in ("", before)
    assert str(draw_base(base, rng=rng(), index=1).symbols) == "Pt"


def test_each_base_is_a_structure_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "own.extxyz"
    ase.io.write(path, bulk("Cu"))
    base = check_base(str(path))
    draw_base(base, rng=rng(), index=0).positions += 1
    assert draw_base(base, rng=rng(), index=0).positions[0].tolist() == [0, 0, 0]


def test_a_base_of_a_base_counts_its_files(tmp_path: Path) -> None:
    path = tmp_path / "own.extxyz"
    ase.io.write(path, bulk("Cu"))
    inner = {"generator": "no matter", "of": check_base(str(path))}
    assert hash_base({"of": {**check_base(ALLOY), "of": inner["of"]}}) == hash_base({"of": inner["of"]}) != ""


def test_what_cannot_be_a_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a formula, a file or .* received 3; e.g. of: MgO"):
        check_base(3)
    with pytest.raises(ValueError, match="unknown generator 'aloys'. Did you mean 'alloys'"):
        check_base({**ALLOY, "generator": "aloys"})
    with pytest.raises(ValueError, match="n_atoms\n  Field required"):
        check_base({"generator": "alloys", "elements": {"Cu": 1}})
    with pytest.raises(ValueError, match="'gone.cif' does not exist"):
        check_base("gone.cif")
    (tmp_path / "bad.cif").write_text("no CIF")
    with pytest.raises(ValueError, match=r"of: files has no structure that can be used: .*bad.cif"):
        draw_base(check_base(str(tmp_path / "bad.cif")), rng=rng(), index=0)


def test_a_file_that_changes_or_goes_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "base.extxyz"
    ase.io.write(file, bulk("Cu"))
    of = check_base(str(file))
    assert draw_base(of, rng=rng(), index=0).get_chemical_formula() == "Cu"
    ase.io.write(file, bulk("Ni", cubic=True))
    assert draw_base(of, rng=rng(), index=0).get_chemical_formula() == "Ni4"
    file.unlink()
    with pytest.raises(InputError, match=r"of: .*base.extxyz cannot be read: No such file or directory; put it back"):
        draw_base(of, rng=rng(), index=0)
