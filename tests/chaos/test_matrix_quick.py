"""The quickest cells of the matrix, as part of `make test`; all of them: `make chaos-matrix`."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from matrix_cells import LAYERS, Cell, Fault, State, Victim
from matrix_cluster import MatrixCluster
from matrix_expected import Expected
from matrix_nursery import Nursery
from matrix_trial import run_trial

from engine.tiny import write_tiny_llama

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

QUICK = (
    Cell(Victim.PREFILL, State.SECOND_THIRD, Fault.KILL),
    Cell(Victim.DECODE, State.FIRST_TOKEN, Fault.KILL),
    Cell(Victim.ROUTER, State.DECODING, Fault.KILL),
)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[MatrixCluster]:
    with Nursery() as nursery:
        cluster = MatrixCluster(nursery, write_tiny_llama(tmp_path / "tiny", layers=LAYERS), tmp_path / "cluster")
        try:
            await cluster.start()
            yield cluster
        finally:
            await cluster.stop()


async def test_a_process_killed_in_the_middle(cluster: MatrixCluster) -> None:
    """One cluster, one cell after the other: each leaves it whole."""
    expected = Expected(cluster.model)
    try:
        for cell in QUICK:
            trial = await run_trial(cell, 1, cluster, expected)
            assert trial.wrong == [], cell
            assert trial.hits > 0
    finally:
        expected.close()
