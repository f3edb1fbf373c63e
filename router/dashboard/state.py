"""What /dashboard/state.json says: the document that the page is drawn from, version 1.

Counters and histograms count since `started_at`; whoever wants the last minute subtracts two documents. Within a version fields are
only ever added.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """What all parts share."""

    model_config = ConfigDict(frozen=True)


class RouterState(Part):
    name: str
    model: str
    serval_version: str
    why_not_ready: str | None = Field(description="Why no request can be answered now; null when all is well.")
    slo_ttft_s: float | None = Field(description="Objective in seconds, router.slo_ttft_s; null where there is none.")
    slo_itl_s: float | None = Field(description="Objective in seconds, router.slo_itl_s; null where there is none.")


class WorkerState(Part):
    """`running`, `waiting` and blocks are the worker's own words, of its last report; they count every router's requests."""

    name: str
    pool: str
    health: Literal["live", "draining", "silent", "stalled"] = Field(
        description="silent: not heard of for a while, soon given up; stalled: has work and makes no step."
    )
    silent_s: float = Field(description="Seconds since it was heard last; a live worker speaks ten times a second.")
    running: int
    waiting: int
    in_flight: int = Field(description="This router's requests there; of a prefill worker, its prompts on their way.")
    kv_blocks_used: int = Field(description="Held by live requests; cached blocks count as free.")
    kv_blocks_total: int
    prefill_tokens_per_s: float = Field(description="Lately; 0 where it was not measured.")
    step_s: float = Field(description="Between two tokens of one answer, lately; 0 where it was not measured.")


class Histogram(Part):
    buckets: tuple[tuple[float, int], ...] = Field(
        description="(inclusive upper end, observations up to it), rising. Those above the last end are in `count` alone."
    )
    count: int
    sum: float


class Requests(Part):
    running: int = Field(description="Open requests with a first token.")
    waiting: int = Field(description="Open requests without one.")
    outcomes: dict[str, int] = Field(description="Ended requests by outcome.")
    refusals: dict[str, int] = Field(description="Requests that were not accepted, by reason.")
    within_objectives: int = Field(description="Ended well, and within the objectives of `router`.")


class Latency(Part):
    time_to_first_token_s: Histogram
    inter_token_latency_s: Histogram
    user_tokens_per_second: Histogram


class Tokens(Part):
    prompt: int = Field(description="Of requests that ended well.")
    generated: int


class Transfers(Part):
    """KV caches that moved from prefill to decode workers for this router's requests."""

    count: int
    bytes: int
    seconds: float = Field(description="First to last layer landed, added up.")
    exposed_seconds: float = Field(description="From the first token on: the part that computing the prompt did not hide.")


class PoolCost(Part):
    pool: str
    workers: int
    worker_hour_usd: float
    paid_usd: float = Field(description="All workers' time, busy or idle. Every router counts all workers.")
    computing_usd: float = Field(description="Of it, the time that this router's requests took.")


class TenantCost(Part):
    tenant: str
    requests: int
    generated_tokens: int
    usd: float = Field(description="Worker time that its requests took.")


class Cost(Part):
    pools: tuple[PoolCost, ...]
    by_reason: dict[str, float] = Field(description="Dollars of requests by what came of them: served, failed, retried.")
    tenants: tuple[TenantCost, ...] = Field(description="Those with the most dollars first; not more than 20.")
    tenants_left_out: int


class State(Part):
    version: Literal[1] = 1
    at: float = Field(description="Unix time by the router's clock.")
    started_at: int = Field(description="Unix time of the router's start; with another one all counters began anew.")
    router: RouterState
    workers: tuple[WorkerState, ...]
    workers_lost: dict[str, int] = Field(description="By pool: streams that ended without a drain.")
    requests: Requests
    latency: Latency
    tokens: Tokens
    transfers: Transfers
    cost: Cost
