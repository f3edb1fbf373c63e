"""What a cluster did between two looks at its counters."""

from pathlib import Path

from cluster_clients import Ask
from cluster_harness import RunningCluster

from engine.models.registry import read_model_config

BLOCK = 16
"""Tokens per KV block, the default."""

COUNTERS = {
    "bytes": "serval_kv_transfer_bytes_total",
    "cached": "serval_prefix_cache_hits_total",
    "outcomes": "serval_requests_total",
    "rejections": "serval_rejections_total",
    "prefilled": "serval_local_prefills_total",
    "mismatches": "serval_kv_digest_mismatches_total",
    "failures": "serval_kv_transfer_failures_total",
    "first_tokens": "serval_time_to_first_token_seconds_count",
    "assignments": "serval_moe_assignments_total",
    "product_rows": "serval_moe_product_rows_total",
    "drafted": "serval_spec_decode_num_draft_tokens_total",
    "accepted": "serval_spec_decode_num_accepted_tokens_total",
}


class Moves:
    """`async with Moves(cluster) as moves`: the cluster is idle before and after; then `moves.of("decode", "bytes")`, or of one
    worker by its name. Counters of a process that was replaced meanwhile begin at 0 again."""

    def __init__(self, cluster: RunningCluster) -> None:
        self._cluster = cluster
        self._before: dict[tuple[str, str], float] = {}
        self._after: dict[tuple[str, str], float] = {}

    async def __aenter__(self) -> "Moves":
        await self._cluster.assert_idle()
        self._before = await self._look()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self._cluster.assert_idle()
            self._after = await self._look()

    def of(self, process: str, counter: str) -> float:
        """By how much a counter of a process, or of all of a role together, has grown."""
        return sum(
            value - self._before.get((name, kind), 0.0)
            for (name, kind), value in self._after.items()
            if kind == counter and process in (name, name.partition("-")[0])
        )

    async def _look(self) -> dict[tuple[str, str], float]:
        return {
            (name, counter): samples.sum(metric)
            for name, samples in (await self._cluster.scrape()).items()
            for counter, metric in COUNTERS.items()
        }


def kv_bytes(model: Path, blocks: int, *, with_draft_head: bool = False) -> int:
    """Of so many blocks, all layers, in float32."""
    config = read_model_config(model)
    if with_draft_head:
        drafting = config.with_draft_head()
        assert drafting is not None
        config = drafting
    return config.kv_bytes_per_token(4) * BLOCK * blocks


def blocks_of(asks: list[Ask]) -> int:
    """KV blocks of all prompts."""
    return sum(-(-len(ask.prompt) // BLOCK) for ask in asks)
