"""The short form of the matrix of faults on Slurm: what `test_slurm` does not do to jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from rows_slurm import drain, early_death
from slurm import Slurm
from strikes import Bench, Row

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(queue: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("faults"))
    yield bench
    bench.close()


@pytest.mark.parametrize("disturb", [early_death, drain])
def test_nothing_is_lost_and_nothing_doubled(
    disturb: Callable[[Bench, Slurm], list[Row]], bench: Bench, queue: Slurm
) -> None:
    rows = disturb(bench, queue)
    assert len(rows) == 1
    assert [row for row in rows if not row.good] == []
