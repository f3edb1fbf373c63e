"""Settings of the decode worker."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class DecodeConfig(BaseModel):
    """What a decode worker does beside computing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    local_prefill_max_tokens: int | Literal["auto"] = Field(
        "auto",
        description="Prompts whose uncached rest is at most this many tokens are computed here: a transfer would cost more. auto: "
        "learned from what both ways take, beginning with one block, at most one chunk (engine.max_batch_tokens). 0 sends every "
        "prompt to a prefill worker.",
    )
    max_waiting: int = Field(1024, ge=1, description="Requests waiting for KV blocks; more are refused as overloaded.")
    headroom_blocks: int = Field(
        1, ge=0, description="KV blocks reserved beyond the prompt at admission, so that decoding starts without a search."
    )
    first_token_timeout_s: float = Field(
        120.0,
        gt=0,
        description="Seconds a prefill worker may take to the first token before decode computes the prompt itself.",
    )
    transfer_timeout_s: float = Field(
        30.0, gt=0, description="Seconds from the first token to the last layer verified before the transfer is given up."
    )
    abort_timeout_s: float = Field(
        5.0,
        gt=0,
        description="Seconds to wait for a prefill worker to confirm that a lease is over; then the slot is quarantined.",
    )
    probe_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Seconds for one probe of a prefill worker whose transfers have failed: a prompt of one block, computed there "
        "and moved here.",
    )
    connect_timeout_s: float = Field(3.0, gt=0, description="Seconds to introduce ourselves to a prefill worker.")
    fence_slots: bool = Field(
        True,
        description="A landing slot is used again after its prefill worker confirmed that it writes no more. False is for "
        "measurement only (benchmarks.safety_cost): slots are used again at once, and late writes may land in another request's.",
    )
    quarantine_check_s: float = Field(
        0.5, gt=0, description="Seconds between looks at whether a peer that holds a quarantined slot is provably gone."
    )
    quarantine_ask_most_s: float = Field(
        15.0,
        gt=0,
        description="Seconds at most between two questions to a living peer whether a quarantined slot is free; the first comes "
        "after quarantine_check_s, and each unanswered one doubles the pause.",
    )

    @field_validator("local_prefill_max_tokens", mode="before")
    @classmethod
    def _is_count_or_auto(cls, value: Any) -> Any:
        """In one sentence; a union would complain once per member."""
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
            return value
        raise ValueError("must be auto or a number of tokens, 0 or more")
