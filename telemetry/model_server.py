"""The load of a whole server, in the words of Kubernetes' Gateway API inference extension.

Its endpoint picker reads these gauges of every endpoint to choose one. The names are vLLM's, known to it unless it is told others.
Source: the extension's model server protocol (docs/proposals/003-model-server-protocol), version 1 of InferencePool.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry


@dataclass(frozen=True)
class ServerLoad:
    """Of one endpoint. KV blocks are those of all workers behind it, and `kv_usage` the share that live requests hold, 0 to 1."""

    model: str
    waiting: int
    running: int
    kv_usage: float
    block_size: int
    kv_blocks: int


class ModelServerMetrics(Collector):
    """Shows nothing until it is told where to read."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._read: Callable[[], ServerLoad] | None = None
        registry.register(self)

    def read_from(self, read: Callable[[], ServerLoad]) -> None:
        """`read` is called in whatever thread asks."""
        self._read = read

    def collect(self) -> Iterable[Metric]:
        if self._read is None:
            return
        load = self._read()
        yield _gauge("vllm:num_requests_waiting", "TotalQueuedRequests: accepted and not yet answering", load, load.waiting)
        yield _gauge("vllm:num_requests_running", "TotalRunningRequests: answering", load, load.running)
        yield _gauge("vllm:kv_cache_usage_perc", "KVCacheUtilization of the decode workers, 0 to 1", load, load.kv_usage)
        blocks = {"block_size": str(load.block_size), "num_gpu_blocks": str(load.kv_blocks)}
        yield _gauge("vllm:cache_config_info", "Tokens of a KV block, and blocks of all decode workers", load, 1, **blocks)


def _gauge(name: str, text: str, load: ServerLoad, value: float, **labels: str) -> Metric:
    labels = {"model_name": load.model, **labels}
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family
