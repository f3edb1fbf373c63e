"""How many workers of each pool a workload needs, of how many GPUs each, and what a million tokens cost then."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, sqrt

from planner.decode_roofline import DecodeLoad, DecodeRoofline, NumberFormat
from planner.dollars import usd_per_million
from planner.gpus import Gpu
from planner.model_shape import ModelShape
from planner.overheads import Overheads
from planner.prefill_roofline import prompt_gpu_s
from planner.queueing import waiting_time_s
from planner.workload import Workload
from protocol.errors import ConfigError

SPLITS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""GPUs of one worker that are tried."""
SLO_SHARE = 0.95
"""Of requests that shall keep the TTFT."""
MAX_BUSY = 0.9
"""Of the prefill pool's time, however short its queue is then: estimates of a load are not better than this."""
SPARE_DEVIATIONS = 2.0
"""Of the number of requests in decode, which is Poisson's: 98% of the time no more are there."""


@dataclass(frozen=True)
class Slo:
    """What a reader shall see."""

    ttft_s: float
    tokens_per_s: float
    """Of one answer."""


@dataclass(frozen=True)
class Setting:
    """All that a plan is made for, but the workload and the SLO."""

    model: ModelShape
    gpu: Gpu
    number_format: NumberFormat
    overheads: Overheads
    gpu_hour_usd: float
    draft_acceptance: float = 0.0
    """Share of drafted tokens that are right, one being drafted per step; 0: none is drafted."""
    cached_share: float = 0.0
    """Of prompts' tokens, found in the prefix cache."""
    memory_share: float = 0.9
    """Of a GPU's memory, for weights and KV cache; activations and buffers need the rest."""


@dataclass(frozen=True)
class PoolPlan:
    """One pool with workers of one size. Times are the model's estimates at the busiest rate."""

    gpus_per_worker: int
    workers: int
    latency_s: float
    """TTFT that 95% of requests keep (prefill), or time per output token (decode)."""
    busy: float
    """Share of the pool's capacity that the workload takes."""
    tokens_per_s_per_gpu: float
    """That one GPU can do within the SLO: prompt tokens (prefill) or answer tokens (decode)."""
    usd_per_million: float
    """Tokens of the pool's own kind, at the trace's mean rate: idle time is paid for."""
    requests_per_gpu: float
    """At a time at most."""
    limit: str
    """What keeps a GPU from doing more."""

    @property
    def gpus(self) -> int:
        return self.workers * self.gpus_per_worker


@dataclass(frozen=True)
class Plan:
    """The cheapest pools that keep the SLO, and all the splits that keep it, cheapest first."""

    prefill: PoolPlan
    decode: PoolPlan
    prefill_choices: tuple[PoolPlan, ...]
    decode_choices: tuple[PoolPlan, ...]
    usd_per_hour: float
    usd_per_million_output: float
    """Both pools' dollars over answer tokens alone, at the mean rate."""


def make_plan(setting: Setting, workload: Workload, slo: Slo) -> Plan:
    """Raises ConfigError, naming the setting, where no split keeps the SLO."""
    fitting = [gpus for gpus in SPLITS if kv_tokens_per_gpu(setting, gpus) >= workload.context]
    if not fitting:
        needed = f"{setting.model.name} and one request of {workload.context:,.0f} tokens"
        raise ConfigError(f"gpu: {needed} do not fit on {SPLITS[-1]} of {setting.gpu.name} or fewer")
    prefill = _cheapest(plan for gpus in fitting if (plan := plan_prefill(setting, workload, slo.ttft_s, gpus)))
    if not prefill:
        fastest = min(_alone_s(setting, workload.long_isl, gpus) for gpus in fitting)
        told = f"a prompt of {workload.long_isl:,.0f} tokens takes {fastest:.3g} s alone"
        raise ConfigError(f"slo-ttft: no split keeps {slo.ttft_s:g} s; {told}")
    decode = _cheapest(plan for gpus in fitting if (plan := plan_decode(setting, workload, slo.tokens_per_s, gpus)))
    if not decode:
        fastest = max(1 / tpot_s(setting, gpus, _fewest(setting, gpus), workload.context) for gpus in fitting)
        raise ConfigError(f"slo-tps: no split keeps {slo.tokens_per_s:g} tokens/s; a request alone gets {fastest:.3g}")
    usd_per_hour = (prefill[0].gpus + decode[0].gpus) * setting.gpu_hour_usd
    per_output = usd_per_hour / 3600 / (workload.mean_rate * workload.osl) * 1e6
    return Plan(prefill[0], decode[0], tuple(prefill), tuple(decode), usd_per_hour, per_output)


def plan_prefill(setting: Setting, workload: Workload, ttft_s: float, gpus: int) -> PoolPlan | None:
    """With workers of `gpus`; None where that cannot keep `ttft_s`."""
    servers_each = _prompts_at_a_time(setting, gpus)
    service_s = _prompt_s(setting, workload.isl, gpus)
    alone_s = _alone_s(setting, workload.long_isl, gpus)
    if alone_s > ttft_s:
        return None
    offered = workload.rate * service_s
    workers = max(1, ceil(offered / servers_each / MAX_BUSY))

    def latency_s(workers: int) -> float:
        servers = workers * servers_each
        return alone_s + waiting_time_s(servers, workload.rate, service_s, workload.isl_variation, SLO_SHARE)

    while latency_s(workers) > ttft_s:  # ends: with more servers the wait goes to 0
        workers += 1
    per_gpu = workload.isl / (service_s * gpus / servers_each)
    return PoolPlan(
        gpus_per_worker=gpus,
        workers=workers,
        latency_s=latency_s(workers),
        busy=offered / (workers * servers_each),
        tokens_per_s_per_gpu=per_gpu,
        usd_per_million=usd_per_million(setting.gpu_hour_usd, workload.mean_rate * workload.isl / (workers * gpus)),
        requests_per_gpu=servers_each / gpus,
        limit="compute",
    )


def plan_decode(setting: Setting, workload: Workload, tokens_per_s: float, gpus: int) -> PoolPlan | None:
    """With workers of `gpus`; None where that cannot keep `tokens_per_s`."""
    room = kv_tokens_per_gpu(setting, gpus) / workload.context
    fewest = _fewest(setting, gpus)
    if room < fewest or tpot_s(setting, gpus, fewest, workload.context) > 1 / tokens_per_s:
        return None
    requests = _most_requests(setting, gpus, workload.context, 1 / tokens_per_s, fewest, room)
    tpot = tpot_s(setting, gpus, requests, workload.context)
    in_flight = workload.rate * workload.osl * tpot
    workers = ceil((in_flight + SPARE_DEVIATIONS * sqrt(in_flight)) / (requests * gpus))
    return PoolPlan(
        gpus_per_worker=gpus,
        workers=workers,
        latency_s=tpot,
        busy=in_flight / (workers * requests * gpus),
        tokens_per_s_per_gpu=requests / tpot,
        usd_per_million=usd_per_million(setting.gpu_hour_usd, workload.mean_rate * workload.osl / (workers * gpus)),
        requests_per_gpu=requests,
        limit="KV memory" if requests >= room else "tokens/s",
    )


def tpot_s(setting: Setting, gpus: int, requests: float, context: float) -> float:
    """Time per output token with so many requests on each of `gpus` GPUs."""
    drafts = setting.draft_acceptance > 0
    roofline = DecodeRoofline(setting.model, setting.gpu, gpus, setting.number_format)
    step_s = roofline.step_s(DecodeLoad(requests, context, positions=1 + drafts)) * setting.overheads.decode
    return step_s / (1 + setting.draft_acceptance)


def kv_tokens_per_gpu(setting: Setting, gpus: int) -> float:
    """Tokens whose KV entries fit beside the weights; 0 where not even these do."""
    number_format, model = setting.number_format, setting.model
    weights = model.weight_bytes_per_gpu(gpus, number_format.dense, number_format.experts)
    room = setting.gpu.memory_bytes * setting.memory_share - weights
    return max(0.0, room / (model.kv_values_per_token * number_format.kv))


def _most_requests(setting: Setting, gpus: int, context: float, tpot: float, fewest: float, room: float) -> float:
    """By bisection: the time per token only grows with the requests."""
    if tpot_s(setting, gpus, room, context) <= tpot:
        return room
    low, high = fewest, room
    while high - low > 1e-3 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if tpot_s(setting, gpus, middle, context) <= tpot else (low, middle)
    return low


def _fewest(setting: Setting, gpus: int) -> float:
    """Requests per GPU, if there is one: a dense model's GPUs share it, with experts each GPU has its own."""
    return 1 / gpus if setting.model.experts is None else 1.0


def _prompts_at_a_time(setting: Setting, gpus: int) -> int:
    return 1 if setting.model.experts is None else gpus


def _prompt_s(setting: Setting, tokens: float, gpus: int) -> float:
    """A prompt's time on the GPUs that compute it."""
    cached = tokens * setting.cached_share
    gpu_s = prompt_gpu_s(setting.model, setting.gpu, setting.number_format, tokens, cached) * setting.overheads.prefill
    return gpu_s * _prompts_at_a_time(setting, gpus) / gpus


def _alone_s(setting: Setting, tokens: float, gpus: int) -> float:
    """TTFT in an empty pool. The first token waits for no transfer; the second for the part that prefill does not hide, which a
    plan leaves out of both."""
    return _prompt_s(setting, tokens, gpus)


def _cheapest(plans: Iterable[PoolPlan]) -> list[PoolPlan]:
    """Of equal ones first the one with the smaller workers: it grows in smaller steps."""
    return sorted(plans, key=lambda plan: (plan.gpus, plan.gpus_per_worker))
