"""Settings of KV transfer."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024 * 1024


class TransferConfig(BaseModel):
    """How one process moves KV. The defaults suit several processes on one host; each field says what to change elsewhere."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    net_device: str = Field(
        "lo",
        min_length=1,
        description="UCX network device (lo, eth0, mlx5_0:1). UCX listens on every interface without authentication unless "
        "this is set, so the default is loopback.",
    )
    transports: str | None = Field(
        None,
        description="UCX transports (UCX_TLS, e.g. tcp or rc,tcp). Default: UCX chooses; between processes of one host that is "
        "a direct copy into the peer's memory.",
    )
    landing_bytes: int = Field(
        256 * MIB, gt=0, description="Bytes of a decode worker's landing zone: bounds the prompts in transfer at one time."
    )
    min_write_bytes: int = Field(
        MIB,
        ge=0,
        description="Layers are gathered until a write has this many bytes, except at the end of a prompt: a smaller write "
        "costs more processor time on its two ends than its head start is worth (measured: docs/kvtransfer.md).",
    )
    max_write_bytes: int = Field(
        8 * MIB,
        gt=0,
        description="Layers are gathered up to this many bytes per write (at least one layer), so that the receiver checks one "
        "write while the next is on its way.",
    )
    mode: Literal["layerwise", "whole_prompt"] = Field(
        "layerwise",
        description="layerwise: a layer leaves while prefill computes the next. whole_prompt: nothing leaves before the end of "
        "compute; the baseline of benchmarks.",
    )
    lease_s: float = Field(
        180.0,
        gt=0,
        description="Seconds for which a prefill worker may write into a landing slot: its queue, its compute and the transfer lie "
        "within. Longer than decode.first_token_timeout_s and decode.transfer_timeout_s together, so that those come first.",
    )
    lease_margin_s: float = Field(
        0.25, ge=0, description="Seconds before the end of its lease at which the sender posts no more: its clock may differ."
    )
    write_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Seconds for one write. The transport never notices a stopped peer; this does.",
    )
    writes_in_flight: int = Field(
        4,
        gt=0,
        description="Writes of one transfer under way at once. More would only lengthen an abort.",
    )
    barrier_timeout_s: float = Field(
        3.0,
        gt=0,
        description="Seconds for the barrier write that proves that no earlier write is still under way. Less than "
        "prefill.abort_timeout_s, so that an abort is answered by it.",
    )
    pump_s: float = Field(
        1.0,
        ge=0,
        description="Seconds for which a dead peer's slot is pumped before reuse: the receiver's own library still holds data "
        "(measured: 10.8 MB without, 0 with 1 s).",
    )
    renew_after_s: float = Field(
        20.0,
        gt=0,
        description="Seconds for which a slot may wait for proof that nothing is written to it any more; then a new landing zone "
        "takes the place of the old one, whose memory is not used again. Longer than transfer.write_timeout_s and "
        "transfer.barrier_timeout_s together, so that a slow answer comes first. Not on a GPU, where memory cannot be given back.",
    )
    close_pump_s: float = Field(
        0.1,
        ge=0,
        description="Seconds of pumping before the agent is destroyed: right after a peer's death it would abort.",
    )
    active_poll_s: float = Field(
        200e-6, gt=0, description="Seconds between polls while something moves (median write of 290 us, no busy core)."
    )
    waiting_poll_s: float = Field(
        1e-3,
        gt=0,
        description="Seconds between polls when what is under way has not moved for a while: polls space out towards this.",
    )
    idle_poll_s: float = Field(20e-3, gt=0, description="Seconds between polls while nothing is under way.")
    self_check_s: float = Field(
        5.0,
        gt=0,
        description="Seconds without any write after which the process writes one word to itself, to see that its transport works.",
    )
    digest: bool = Field(True, description="Verify every layer on its copy in the pool. Both ends must agree.")
    corrupt_one_in: int = Field(
        0,
        ge=0,
        description="Test fault, for the receiver: flips one byte of one in this many landed writes before they are copied. "
        "0 (always, outside tests): never.",
    )
