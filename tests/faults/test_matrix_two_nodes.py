"""The short form of the matrix of faults on two nodes: a node that is cut off for good, and orders without keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import two_nodes
from rows_two_nodes import intruders, node_cut
from strikes import Bench, Row
from two_nodes import TwoNodes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def queue() -> Iterator[TwoNodes]:
    if reason := two_nodes.missing():
        pytest.skip(reason)
    with two_nodes.running() as running:
        yield running


@pytest.fixture(scope="module")
def bench(queue: TwoNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("faults"))
    yield bench
    bench.close()


@pytest.mark.parametrize("disturb", [node_cut, intruders])
def test_nothing_is_lost_and_nothing_doubled(
    disturb: Callable[[Bench, TwoNodes], list[Row]], bench: Bench, queue: TwoNodes
) -> None:
    rows = disturb(bench, queue)
    assert len(rows) == 1
    assert [row for row in rows if not row.good] == []
