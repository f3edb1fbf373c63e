"""When a prefill worker is avoided, and when it is asked again."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decode import pairs as module
from decode.pair_health import AVOIDED_FROM, LONGEST_PAUSE_S, MOST_PROBES, PairHealth
from decode.pairs import Pairs
from protocol import cluster_pb2
from protocol.errors import InvalidRequest, Overloaded, TransferFailed
from telemetry.metrics import Metrics

PEER = cluster_pb2.Peer(name="prefill-0", incarnation=7)


def test_one_failure_avoids_nobody_and_old_ones_fade() -> None:
    health = PairHealth()
    for now in (0.0, 60.0, 120.0):
        health.failed(now)
        assert not health.is_avoided
    assert health.is_forgotten(300.0)


def test_two_in_a_row_do_until_a_probe_works() -> None:
    health = PairHealth(draw=max)
    health.failed(0.0)
    health.failed(1.0)
    assert health.is_avoided and not health.is_due(1.9) and health.is_due(2.1)
    health.probe_failed(2.1)
    assert not health.is_due(4.0) and health.is_due(4.2), "the pause doubles"
    health.worked()
    assert not health.is_avoided
    health.failed(5.0)
    assert not health.is_avoided, "it begins anew"


@given(st.lists(st.floats(0.01, 100), max_size=60))
def test_probes_never_cease_before_they_are_hopeless(pauses: list[float]) -> None:
    health, now = PairHealth(), 0.0
    while not health.is_avoided:
        health.failed(now)
    for pause in pauses:
        now += pause
        if health.is_due(now):
            health.probe_failed(now)
        assert health.is_due(now + LONGEST_PAUSE_S)
        assert not health.is_forgotten(now + 1e6)
    for _ in range(MOST_PROBES):
        health.probe_failed(now)
    assert health.is_hopeless
    assert AVOIDED_FROM > 1


@pytest.mark.parametrize("error", [InvalidRequest("x"), Overloaded("x")])
async def test_what_says_nothing_of_the_pair_is_not_held_against_it(error: InvalidRequest | Overloaded) -> None:
    async def probe(peer: cluster_pb2.Peer, name: str) -> None: ...

    pairs = Pairs(probe, Metrics("decode", "d"))
    for _ in range(5):
        pairs.failed(PEER, error)
    assert pairs.avoided == []


async def test_an_avoided_pair_is_probed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.005)
    monkeypatch.setattr("decode.pair_health.FIRST_PAUSE_S", 0.01)
    metrics, results = Metrics("decode", "d"), [TransferFailed("still broken"), None]

    async def probe(peer: cluster_pb2.Peer, name: str) -> None:
        assert peer is PEER
        if (error := results.pop(0)) is not None:
            raise error

    pairs = Pairs(probe, metrics)
    janitor = asyncio.create_task(pairs.run())
    for _ in range(2):
        pairs.failed(PEER, TransferFailed("broken"))
    assert pairs.is_avoided(PEER) and pairs.avoided == [7]
    assert metrics.value("serval_pairs_avoided") == 1
    async with asyncio.timeout(5):
        while pairs.avoided:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert results == []
    assert metrics.value("serval_pair_probes_total", result="failed") == 1
    assert metrics.value("serval_pair_probes_total", result="passed") == 1
    janitor.cancel()
