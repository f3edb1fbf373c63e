"""Settings of what every worker does beside its role."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class LinkConfig(BaseModel):
    """How a worker keeps its streams to the routers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    load_report_period_s: float = Field(
        0.25, gt=0, le=10, description="Seconds between load reports; they are the heartbeat too. Routers allow several."
    )
    cache_report_period_s: float = Field(
        0.05,
        gt=0,
        le=10,
        description="Seconds between two messages about what the prefix cache holds; the first change after a pause goes at "
        "once. Shorter: routers know sooner where a prompt's beginning lies; longer: fewer messages under load.",
    )
    reconnect_min_s: float = Field(0.1, gt=0, description="Seconds before the first new try after a stream broke.")
    reconnect_max_s: float = Field(2.0, gt=0, description="Seconds at most between tries; doubled from the minimum, jittered.")
    connect_timeout_s: float = Field(5.0, gt=0, description="Seconds to wait for Welcome before the stream is given up.")
    outbox_max_bytes: int = Field(
        128 << 20,
        ge=1 << 20,
        description="Bytes that may wait for a router which takes nothing; with more its stream is ended, and its requests are "
        "given up. More than what a router that reads may find at once: three prompts of 128k tokens with 20 logprobs for each of "
        "them are 90 MiB. A megabyte at least, for one report of cached blocks is half of that.",
    )
    resolve_period_s: float = Field(
        2.0,
        gt=0,
        description="Seconds between two look-ups of a name behind which the routers are (dns:name:port). A new router waits that "
        "long for its workers, on top of what the DNS server remembers.",
    )
    resolve_timeout_s: float = Field(
        5.0, gt=0, description="Seconds for one look-up; then the routers known so far stay. Resolvers try again after 5 s."
    )
    hold_folder: Path | None = Field(
        None,
        description="Test fault: a folder in which a test says where requests are to be held, and is told which are "
        "(worker/hold.py). None (always, outside tests): nowhere.",
    )


class HealthConfig(BaseModel):
    """How a worker finds out that it makes no progress (worker/health.py)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    period_s: float = Field(
        10.0, gt=0, description="Seconds without an engine step after which an idle engine is given one of one token."
    )
    step_timeout_s: float = Field(
        60.0,
        gt=0,
        description="Seconds, beyond that, in which an engine that has work must make a step. Above the longest there is.",
    )
    blocked_timeout_s: float = Field(
        300.0,
        gt=0,
        description="The same while all that it has waits for KV blocks, which others may hold as long as their prompts take: "
        "above decode.first_token_timeout_s and decode.transfer_timeout_s together.",
    )
    transfer_timeout_s: float = Field(
        30.0, gt=0, description="Seconds in which a write must arrive, if only one to itself (transfer.self_check_s)."
    )
