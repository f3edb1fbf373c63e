"""What an endpoint picker of the Gateway API inference extension reads of a router."""

import asyncio
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from router_support import MODEL, Cluster, cluster, write_model_folder

from protocol import cluster_pb2


async def test_the_gauges_by_the_names_that_it_knows(tmp_path: Path) -> None:
    async with cluster(write_model_folder(tmp_path / "model")) as running:
        alone = await samples(running)
        assert alone["vllm:kv_cache_usage_perc"] == ({"model_name": MODEL}, 1.0)
        async with running.worker("prefill"), running.worker() as decode, running.worker(name="decode-1"):
            decode.load = cluster_pb2.LoadReport(kv_blocks_total=100, kv_blocks_used=50)
            await running.until(lambda: running.metrics.value("vllm:kv_cache_usage_perc") == 0.25)
            body = {"model": MODEL, "prompt": "hello", "max_tokens": 4}
            asking = asyncio.create_task(running.http.post("/v1/completions", json=body))
            await running.until(lambda: running.metrics.value("vllm:num_requests_waiting") == 1)
            waiting = await samples(running)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
    assert waiting["vllm:num_requests_running"][1] == 0
    blocks = {"model_name": MODEL, "block_size": "16", "num_gpu_blocks": "200"}
    assert waiting["vllm:cache_config_info"] == (blocks, 1.0)


async def samples(running: Cluster) -> dict[str, tuple[dict[str, str], float]]:
    """Of /metrics, those of the extension, by name."""
    text = (await running.http.get("/metrics")).raise_for_status().text
    return {
        sample.name: (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("vllm:")
    }
