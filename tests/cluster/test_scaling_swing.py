"""Pools under Ray follow a load that swings from prompt-heavy to answer-heavy: soon, without flapping, and no request is lost.

Short by itself; `make swing` runs ten minutes of it. SERVAL_SWING_PHASES and SERVAL_SWING_PHASE_S say how many phases of how many
seconds, SERVAL_SWING_REPORT where the figures go.
"""

import json
import os
from pathlib import Path

import pytest
from cluster_harness import ClusterSpec, RunningCluster
from paced_workers import pace
from scaling_swing import ANSWER_HEAVY, POOLS, PROMPT_HEAVY, Swing, swing

pytest.importorskip("ray", reason="needs the extra `ray`")
pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(1800)]

PERIOD_S = 20.0
RATE = 1.0
"""Requests per second: at the pace below 1.6 prefill workers' prompts in one kind of phase, 1.25 decode workers' answers in the
other. As slow as that, for six workers, Ray and the clients share the machine's cores, and must not be what the pools follow."""


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> None:
    pace(monkeypatch, prompt_tokens_per_s=500, step_s=0.1)


async def test_pools_follow_a_swing_and_lose_nobody(paced: None, tiny_spec: ClusterSpec, tmp_path: Path) -> None:
    spec = ClusterSpec(tiny_spec.model, ray=True).with_settings(
        engine__dtype="float32",
        engine__kv_memory_bytes="16MiB",
        engine__max_sequences=16,
        decode__local_prefill_max_tokens=0,
        router__queue_timeout_s=200,
        scaling__period_s=PERIOD_S,
        scaling__slo_ttft_s=10,
        scaling__slo_tokens_per_s=5,
        scaling__prefill={"max": 3},
        scaling__decode={"max": 3},
    )
    phase_s = float(os.environ.get("SERVAL_SWING_PHASE_S", 75))
    phases = int(os.environ.get("SERVAL_SWING_PHASES", 3))
    shapes = [(PROMPT_HEAVY, ANSWER_HEAVY)[number % 2] for number in range(phases)]
    cluster = RunningCluster.start(spec, tmp_path / "log")
    try:
        seen = await swing(cluster.url, cluster.model, PERIOD_S, phase_s, shapes, RATE, seed=1)
    finally:
        print("\n".join(line for line in cluster.log.read_text().splitlines() if "scaling" in line))
        cluster.stop()
    publish(seen)
    assert set(seen.ends) == {"whole"}, "nobody was lost"
    for number in range(phases):
        after_s = seen.followed_after_s(number)
        assert after_s is not None and after_s <= 2 * PERIOD_S + 2.0, f"phase {number}: decided after {after_s} s"
        for pool in POOLS:
            assert seen.turns(pool, number) <= 1, f"phase {number}: {pool} flapped: {seen.sizes(pool, number)}"
    assert all(any(move < 0 for number in range(1, phases) for move in seen.moves(pool, number)) for pool in POOLS), (
        "and shrank"
    )


def publish(seen: Swing) -> None:
    report = json.dumps(seen.to_json(), indent=2)
    print(report)
    if path := os.environ.get("SERVAL_SWING_REPORT"):
        Path(path).write_text(report + "\n")
