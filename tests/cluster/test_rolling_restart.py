"""Every worker is replaced, one after the other, while clients ask: nobody notices anything but time."""

import asyncio
import dataclasses
import os
import signal

import pytest
from cluster_harness import ClusterSpec, until
from cluster_reference import Reference
from cluster_shared import Clusters
from test_survives_faults import Load, assert_works_again, new_outcomes

from protocol.outcomes import Outcome

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


@pytest.mark.long
async def test_of_every_worker_loses_no_request(clusters: Clusters, tiny_spec: ClusterSpec, tiny_reference: Reference) -> None:
    """SIGTERM to one worker at a time. The grace period is shorter than the answers, so that some have to move."""
    spec = dataclasses.replace(tiny_spec, prefill=2, decode=2).with_settings(
        router__policy="round_robin", cluster__drain_timeout_s=0.3
    )
    cluster = clusters.start(spec)
    try:
        before, asked = await cluster.outcomes(), 0
        for seed, name in enumerate(("decode-0", "prefill-0", "decode-1", "prefill-1"), start=60):
            (leaving,) = [worker for worker in await cluster.workers() if worker.name == name]
            async with Load(cluster, seed=seed, count=12) as load:
                await load.begun(6)
                os.kill(leaving.pid, signal.SIGTERM)
                await load.ended()
            asked += 12
            assert load.failed == []
            load.assert_right(tiny_reference)
            await until(lambda gone=leaving: cluster.all_joined(without=gone.incarnation), f"{name} is replaced", 60)
        assert await new_outcomes(cluster, before) == {Outcome.LENGTH: asked}
        router = (await cluster.scrape())["router"]
        assert router.sum("serval_retries_total", reason="moved") > 0, "no answer had to move"
        assert router.sum("serval_worker_losses_total") == 0, "each said that it stops"
        assert router.sum("serval_requests_total", outcome="unavailable") == 0
        log = cluster.log.read_text(errors="replace")
        assert log.count("exited with status 0; starting it again") == 4
        await cluster.assert_idle()
        await assert_works_again(cluster, tiny_reference, seed=70)
    finally:
        await asyncio.to_thread(cluster.stop)
