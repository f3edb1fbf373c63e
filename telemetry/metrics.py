"""Every metric name, label and bucket of Serval, once.

Names follow vLLM's where it has one (dashboards know them), with the prefix `serval_`, Prometheus base units and suffixes.
Latency buckets are OpenTelemetry's GenAI semantic conventions. Every sample carries a constant `role` label (router, prefill,
decode), so one metric compares across pools.

A process makes exactly one `Metrics` and hands it down; nothing is global, so tests run many workers in one process.
"""

from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from telemetry.model_server import ModelServerMetrics
from telemetry.one_writer import OneWriterCounter, OneWriterHistogram
from telemetry.read_counter import ReadCounter

TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0)
"""Seconds. `gen_ai.server.time_to_first_token`, and two more for a laptop's CPU."""

ITL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
"""Seconds. `gen_ai.server.time_per_output_token`, with room below for fast models."""

E2E_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
TRANSFER_BUCKETS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
TPS_BUCKETS = (1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0)
TOKENS_BUCKETS = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

AnyMetric = TypeVar("AnyMetric", bound=MetricWrapperBase)


class Metrics:
    """All metrics of one process. Safe to use from any thread (prometheus_client's guarantee), but for those with one writer."""

    def __init__(self, role: str, name: str) -> None:
        self.registry = CollectorRegistry()
        self._constant = {"role": role, "worker": name}

        # ---- requests, as the router sees them
        self.requests = self._counter("requests", "Requests ended, by the one outcome of each", ["outcome", "tenant"])
        self.requests_within_objectives = self._counter(
            "requests_within_objectives",
            "Requests ended well whose first token came within router.slo_ttft_s and whose others came, on the mean, within "
            "router.slo_itl_s; an objective that is not set is kept",
        )
        self.rejections = self._counter(
            "rejections", "Requests refused before they were accepted, by outcome or by the limit reached", ["reason", "tenant"]
        )
        self.sheds = self._counter(
            "sheds",
            "Requests without capacity for them, by what said so: at the door, or once accepted (displaced, queue_timeout)",
            ["reason", "tenant"],
        )
        self.predicted_wait = self._gauge(
            "predicted_wait_seconds",
            "What who is last in the router's own line has to expect there; 0: nobody waits, or not known",
        )
        self.queue_length = self._gauge(
            "queue_length", "Requests in the router's own line, where tenants take turns", ["tenant"]
        )
        self.cost = self._counter(
            "cost_dollars",
            "Worker time at the configured prices; reason: served, failed, retried elsewhere, or lost with who could have told",
            ["pool", "tenant", "reason"],
        )
        self.pool_cost = ReadCounter(
            self.registry,
            "serval_pool_cost_dollars",
            "Time of all workers that have a stream to this router, busy or idle, at the configured prices",
            self._constant,
            ["pool"],
        )
        self.pool_busy = ReadCounter(
            self.registry,
            "serval_pool_busy_seconds",
            "Time in which the engines of a pool's workers computed, all together, as they report it to this router",
            self._constant,
            ["pool"],
        )
        self.worker_hour_cost = self._gauge("worker_hour_cost_dollars", "Configured price of one worker and hour", ["pool"])
        self.model_server = ModelServerMetrics(self.registry)
        self.requests_running = self._gauge("num_requests_running", "Requests being computed")
        self.requests_waiting = self._gauge("num_requests_waiting", "Requests accepted and not yet computed")
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "Arrival to the first token leaving the router", TTFT_BUCKETS, ["tenant"]
        )
        self.inter_token_latency = OneWriterHistogram(
            self.registry,
            "serval_inter_token_latency_seconds",
            "Between two tokens of one answer",
            self._constant,
            ITL_BUCKETS,
        )
        self.time_per_output_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean over one answer, the first token apart", ITL_BUCKETS
        )
        self.user_tokens_per_second = self._histogram(
            "user_tokens_per_second", "Per-user decode speed: 1 / time per output token of one answer", TPS_BUCKETS, ["tenant"]
        )
        self.e2e_latency = self._histogram("e2e_request_latency_seconds", "Arrival to the last token", E2E_BUCKETS)
        self.queue_time = self._histogram("request_queue_time_seconds", "Waiting before any work", E2E_BUCKETS)
        self.prefill_time = self._histogram("request_prefill_time_seconds", "Computing the prompt", E2E_BUCKETS)
        self.transfer_time = self._histogram("request_transfer_time_seconds", "First to last layer", TRANSFER_BUCKETS)
        self.request_transfer_bytes = self._counter("request_transfer_bytes", "KV bytes that moved for this router's requests")
        self.transfer_exposed_time = self._histogram(
            "request_transfer_exposed_seconds",
            "First token known to all layers verified: what of request_transfer_time_seconds computing did not hide",
            TRANSFER_BUCKETS,
        )
        self.decode_time = self._histogram("request_decode_time_seconds", "First decode step to the end", E2E_BUCKETS)
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens processed", ["tenant"])
        self.generation_tokens = OneWriterCounter(
            self.registry, "serval_generation_tokens", "Answer tokens produced", self._constant, ["tenant"]
        )
        self.request_prompt_tokens = self._histogram("request_prompt_tokens", "ISL of a request", TOKENS_BUCKETS)
        self.request_generation_tokens = self._histogram("request_generation_tokens", "OSL of a request", TOKENS_BUCKETS)
        self.workers = self._gauge("workers", "Live worker streams of this router", ["pool"])
        self.worker_losses = self._counter("worker_losses", "Worker streams that ended without a drain", ["pool"])
        self.retries = self._counter(
            "retries", "Requests that went on at another worker, by why: worker_lost, moved, or the outcome there", ["reason"]
        )
        self.placements = self._counter(
            "placements", "Requests placed, by what decided the pick in each pool", ["policy", "pool", "reason"]
        )
        self.prefix_index_entries = self._gauge(
            "prefix_index_entries", "Cached KV blocks of workers that this router remembers for placement"
        )

        # ---- scaling, where it is configured
        self.pool_load = self._gauge(
            "pool_load_workers",
            "What a pool has to do, in workers; kind: used, or queued (prefill: for one period)",
            ["pool", "kind"],
        )
        self.pool_needed = self._gauge("pool_needed_workers", "Workers that a pool's load asks for, before limits", ["pool"])
        self.pool_desired = self._gauge("pool_desired_workers", "Workers that a pool shall have, as last decided", ["pool"])
        self.scaling_decisions = self._counter("scaling_decisions", "Decisions on a pool's size, by reason", ["pool", "reason"])

        # ---- engine
        self.engine_steps = self._counter("engine_steps", "Forward passes")
        self.engine_step_time = self._histogram("engine_step_seconds", "One schedule-run-publish step", TRANSFER_BUCKETS)
        self.engine_batch_tokens = self._histogram("engine_batch_tokens", "Tokens in one forward pass", TOKENS_BUCKETS)
        self.kv_cache_usage = self._gauge("kv_cache_usage_perc", "Share of KV blocks held by live requests, 0 to 1")
        self.kv_blocks = self._gauge("kv_blocks", "KV blocks of the pool by state", ["state"])
        self.prefix_cache_queries = self._counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache")
        self.prefix_cache_hits = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache")
        self.preemptions = self._counter("num_preemptions", "Sequences put back for want of KV blocks")
        self.engine_busy = self._counter("engine_busy_seconds", "Time of steps that computed something")
        self.moe_assignments = ReadCounter(
            self.registry,
            "serval_moe_assignments",
            "Choices of an expert by a token in a layer, by kind: real, or zero, which gives back what it gets",
            self._constant,
            ["kind"],
        )
        self.moe_product_rows = ReadCounter(
            self.registry, "serval_moe_product_rows", "Rows that entered the experts' grouped matrix products", self._constant
        )
        self.grammar_requests = self._counter("grammar_requests", "Sequences whose answer keeps to a grammar")
        self.grammar_compile_time = self._histogram("grammar_compile_seconds", "Compiling one grammar", TRANSFER_BUCKETS)
        self.grammar_mask_time = self._counter("grammar_mask_seconds", "Engine time spent on grammars' masks")
        self.draft_tokens = self._counter("spec_decode_num_draft_tokens", "Guessed tokens that were computed", ["drafter"])
        self.accepted_tokens = self._counter("spec_decode_num_accepted_tokens", "Guessed tokens that were right", ["drafter"])
        self.accepted_tokens_by_position = self._counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Guessed tokens that were right, by their place after the last known token, from 0",
            ["drafter", "position"],
        )
        self.speculation_switched_off = self._counter(
            "spec_decode_switched_off", "Times that a request's guesses were left out because they did not pay", ["drafter"]
        )
        self.requests_waiting_for_blocks = self._gauge(
            "num_requests_waiting_for_blocks", "Requests in decode's admission line: they wait for KV blocks or a landing slot"
        )
        self.local_prefills = self._counter("local_prefills", "Prompts that decode computed by itself", ["reason"])
        self.pairs_avoided = self._gauge(
            "pairs_avoided", "Prefill workers that this decode worker asks for no prompt: transfers failed"
        )
        self.pair_probes = self._counter(
            "pair_probes", "Transfers of one block that test an avoided prefill worker", ["result"]
        )
        self.local_prefill_max_tokens = self._gauge(
            "local_prefill_max_tokens", "Longest uncached rest of a prompt that decode computes by itself, as learned"
        )
        self.health_checks = self._counter(
            "health_checks",
            "Looks at whether the engine and the transport make progress: steps made for it, writes seen, and failures",
            ["check", "result"],
        )
        self.router_stalls = self._counter(
            "router_stalls", "Streams to routers that were ended because more than link.outbox_max_bytes waited for them"
        )
        self.loop_lag = self._histogram("event_loop_lag_seconds", "How late the event loop runs", TRANSFER_BUCKETS)

        # ---- security
        self.tls_handshakes = self._counter("tls_handshakes", "TLS connections begun, accepted or not", ["surface"])
        self.tls_refusals = self._counter(
            "tls_refusals",
            "Handshakes that failed (http), calls with a certificate of another role (link, prefill)",
            ["surface"],
        )
        self.certificate_expiry = self._gauge(
            "certificate_expiry_timestamp_seconds", "When the certificate that is shown ends, in Unix time", ["surface"]
        )
        self.keys_reloads = self._counter(
            "keys_reloads", "Times that the keys file had changed, by what came of it", ["result"]
        )

        # ---- KV transfer
        self.kv_transfer_bytes = self._counter("kv_transfer_bytes", "KV bytes written (prefill) or landed (decode)")
        self.kv_transfer_time = self._histogram(
            "kv_transfer_seconds",
            "First post to last completion (prefill), first to last landing (decode)",
            TRANSFER_BUCKETS,
        )
        self.kv_transfer_exposed = self._histogram(
            "kv_transfer_exposed_seconds",
            "End of prefill compute to all layers landed and verified: the part that overlap did not hide",
            TRANSFER_BUCKETS,
        )
        self.kv_transfer_post_time = self._histogram("kv_transfer_post_seconds", "Posting one write", TRANSFER_BUCKETS)
        self.kv_transfer_writes = self._counter("kv_transfer_writes", "Writes posted")
        self.kv_transfer_descriptors = self._counter("kv_transfer_descriptors", "Contiguous runs written")
        self.kv_transfer_failures = self._counter("kv_transfer_failures", "Transfers that failed", ["reason"])
        self.kv_digest_mismatches = self._counter("kv_digest_mismatches", "Landed layers whose digest was wrong")
        self.kv_digest_time = self._counter("kv_digest_seconds", "Time spent on digests")
        self.kv_notifications_dropped = self._counter(
            "kv_notifications_dropped", "Notifications that matched no expected write", ["reason"]
        )
        self.kv_landing_blocks = self._gauge("kv_landing_blocks", "Landing zone blocks by state", ["state"])
        self.kv_zones_renewed = self._counter(
            "kv_zones_renewed", "Landing zones replaced because nobody could tell whether writes to them were over"
        )
        self.kv_slots_quarantined = self._counter("kv_slots_quarantined", "Slots set apart", ["reason"])

    def render(self) -> bytes:
        """The Prometheus text exposition of every metric."""
        return generate_latest(self.registry)

    def value(self, name: str, **labels: str) -> float:
        """The sum over the samples that carry these labels, whatever others they have (0 where there is none yet), for tests and
        status pages."""
        samples = (sample for metric in self.registry.collect() for sample in metric.samples if sample.name == name)
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> "Bound[Counter]":
        return Bound(Counter(f"serval_{name}", text, self._names(labels), registry=self.registry), self._constant)

    def _gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> "Bound[Gauge]":
        return Bound(Gauge(f"serval_{name}", text, self._names(labels), registry=self.registry), self._constant)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> "Bound[Histogram]":
        metric = Histogram(f"serval_{name}", text, self._names(labels), buckets=buckets, registry=self.registry)
        return Bound(metric, self._constant)

    def _names(self, labels: Sequence[str]) -> list[str]:
        return [*self._constant, *labels]


class Bound(Generic[AnyMetric]):
    """A metric with the process's constant labels filled in: `metrics.workers.of(pool="decode").set(1)`."""

    def __init__(self, metric: AnyMetric, constant: dict[str, str]) -> None:
        self._metric = metric
        self._constant = constant
        self._children: dict[tuple[tuple[str, str], ...], AnyMetric] = {}

    def of(self, **labels: str) -> AnyMetric:
        """The child for these labels; cached, so it costs a dict look-up per use."""
        key = tuple(labels.items())
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._metric.labels(**self._constant, **labels)
        return child

    def collect(self) -> Iterable[Metric]:
        """What is known now, as the registry would read it."""
        return self._metric.collect()
