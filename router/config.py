"""The router's settings."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from protocol.tls import PeerTlsFiles, TlsFiles
from router.tenants.tenant import TenantLimits
from router.tool_calls.formats import ParserName
from telemetry.cost import CostConfig

PolicyName = Literal["prefix_aware", "least_loaded", "round_robin"]


class RouterConfig(BaseModel):
    """Settings of one router process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="router-0", description="This router's name, in Welcome and in metrics.")
    host: str = Field(default="127.0.0.1", description="Address all servers listen on. Loopback, unless told otherwise.")
    http_port: int = Field(default=8000, ge=0, le=65535, description="OpenAI HTTP port. 0: any free one.")
    grpc_port: int = Field(default=8001, ge=0, le=65535, description="gRPC port for clients. 0: any free one.")
    link_port: int = Field(
        default=8002,
        ge=0,
        le=65535,
        description="gRPC port that workers dial. Apart from the clients' one: other peers, other rights. 0: any free one.",
    )

    tls: TlsFiles | None = Field(
        default=None, description="Certificate and key of HTTP and gRPC towards clients. None: plain text."
    )
    link_tls: PeerTlsFiles | None = Field(
        default=None, description="Certificate, key and authority towards workers. None: what cluster.tls says."
    )
    keys_file: Path | None = Field(
        default=None,
        description="YAML file of API keys' hashes and tenants (`serval keys new`); read again when it changes. None: no key is "
        "asked for.",
    )

    model: str = Field(min_length=1, description="The name clients use; workers must say the same one.")
    model_dir: Path = Field(description="Folder with tokenizer.json, tokenizer_config.json and config.json.")
    max_model_len: int | None = Field(
        default=None, ge=2, description="Tokens, prompt and answer together. None: what config.json says."
    )

    tool_parser: ParserName = Field(
        default="auto",
        description="How the model writes tool calls. auto: as its chat template shows, or as Hermes and Qwen do. none: tools are "
        "refused.",
    )

    policy: PolicyName = Field(
        default="prefix_aware",
        description="How workers of both pools are chosen. prefix_aware: the least predicted time, by what each has cached, its "
        "queue and its speed. least_loaded: the fewest requests. round_robin: in turn.",
    )
    slo_ttft_s: float | None = Field(
        default=None,
        gt=0,
        description="Seconds to the first token that prefix_aware tries to keep: workers predicted to miss it come last. None: no "
        "such objective.",
    )
    slo_itl_s: float | None = Field(
        default=None,
        gt=0,
        description="Seconds between two tokens of one answer that prefix_aware tries to keep, likewise. None: no such objective.",
    )
    prefix_index_entries: int = Field(
        default=1 << 18,
        ge=1024,
        description="Cached KV blocks of workers that are remembered for placement; about 200 bytes each. The default covers 4 "
        "million tokens in blocks of 16.",
    )
    prefix_expected_s: float = Field(
        default=5.0,
        gt=0,
        description="Seconds, beyond twice its predicted time to the first token, for which workers are expected to hold a prompt "
        "that was just sent there. Until they confirm it or the time is over, later prompts count on it.",
    )
    request_timeout_s: float = Field(
        default=600.0, gt=0, description="Seconds from arrival to the last token. Above any sane answer: a backstop."
    )
    worker_wait_s: float = Field(
        default=20.0,
        ge=0,
        description="Seconds an accepted request waits for a decode worker when there is none, before 503. "
        "Long enough for a small worker to be replaced on a busy machine (measured: 5 to 17 s), shorter than a person's patience.",
    )
    worker_return_s: float = Field(
        default=60.0,
        ge=0,
        description="The same for a request that has lost its worker: its client may have a part of the answer, which "
        "nobody else can go on with. Within the request's deadline.",
    )
    worker_silence_s: float = Field(
        default=3.0,
        gt=0,
        description="Seconds without any message from a worker before its stream is cut. Several heartbeats (100 ms each).",
    )
    worker_stall_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds a decode worker may report running requests and no engine step. Above the longest step there is.",
    )
    max_retries: int = Field(
        default=8,
        ge=0,
        description="How often a request that lost its worker, or was refused there, goes on elsewhere within its deadline. With "
        "one loss expected per answer (a worker killed every 5 s) one answer in a million is lost more often. One that kills "
        "workers ends sooner (router/losses.py); one that a stopping worker hands back is not counted.",
    )

    max_open_requests: int = Field(
        default=4096, ge=1, description="Accepted requests that have not ended; more are refused with 503. Bounds memory."
    )
    max_waiting: int = Field(
        default=1024, ge=1, description="Accepted requests without a first token yet; more are refused with 503."
    )
    shedding: Literal["predicted_wait", "line_length"] = Field(
        default="predicted_wait",
        description="What refuses requests at the door when more comes than workers can do. predicted_wait: the wait that is "
        "predicted for each, and the bounds above. line_length: those bounds alone; others learn it after queue_timeout_s.",
    )
    max_predicted_wait_s: float | None = Field(
        default=None,
        gt=0,
        description="Seconds that a request may be predicted to wait for a worker, by who is before it and how fast places came "
        "free lately; more is refused at once with 503. None: queue_timeout_s, which it would not outlast. Where an answer that "
        "begins late is worth nothing: what its objective leaves for waiting.",
    )
    queue_timeout_s: float = Field(
        default=30.0,
        gt=0,
        description="Seconds that a request waits for a worker to have room before 503. Longer than a burst, shorter than a "
        "person's patience.",
    )
    priority_turns: int = Field(
        default=16,
        ge=1,
        description="Requests of higher priority that may go before a waiting one of a lower class in a row; then that one goes.",
    )
    decode_overcommit: int = Field(
        default=4,
        ge=0,
        description="Requests sent to a decode worker beyond those it can compute at once, so that it never idles. More wait in "
        "the router's line, where tenants take turns; a worker's own line is first come, first served.",
    )
    prefill_window_s: float = Field(
        default=0.05,
        gt=0,
        description="Seconds of computing, at its own recent speed, that prompts waiting at one worker may take before more wait "
        "in the router's line. So long somebody whose turn it is may still have to wait there. Long beside the time from a first "
        "token to the next prompt's arrival (milliseconds), so that no worker idles.",
    )
    tenants: dict[str, TenantLimits] = Field(
        default={},
        description="Limits by tenant. Callers of tenants that are not named here or in the keys file share the one named "
        "default, which is without limits if it is not named either.",
    )
    expected_answer_tokens: int = Field(
        default=256,
        ge=1,
        description="Tokens that an answer is charged with at the door until its tenant's answers show what is usual.",
    )
    cost: CostConfig = Field(default=CostConfig(), description="Prices of workers, from which a request's cost follows.")
    max_answers_per_call: int = Field(
        default=128,
        ge=1,
        description="Answers that one call may ask for, prompts times n; more is refused with 400.",
    )
    max_body_bytes: int = Field(
        default=8 * 1024 * 1024, ge=1024, description="Bytes of an HTTP body or a gRPC message; more is refused with 413."
    )
    max_connections: int = Field(
        default=8192, ge=1, description="HTTP connections open at a time; more are answered with 503 and closed. Bounds memory."
    )
    max_header_bytes: int = Field(
        default=64 * 1024, ge=1024, description="Bytes of a request's line and headers; more is refused with 431."
    )
    header_timeout_s: float = Field(
        default=10.0,
        gt=0,
        description="Seconds a client may take for a request's line and headers, and for a TLS handshake over gRPC.",
    )
    keep_alive_s: float = Field(
        default=75.0, ge=1, description="Seconds an HTTP connection may stay idle after an answer. As nginx: proxies expect it."
    )
    max_streams_per_connection: int = Field(
        default=1024, ge=1, description="Calls open at a time on one gRPC connection of a client; more wait at the client."
    )
    body_timeout_s: float = Field(default=30.0, gt=0, description="Seconds a client may take to send its HTTP body.")
    client_stall_s: float = Field(
        default=30.0,
        gt=0,
        description="Seconds a client may take no byte that waits for it before it is dropped: over HTTP its connection "
        "(TCP_USER_TIMEOUT), over gRPC the call.",
    )
    long_prompt_characters: int = Field(
        default=2048,
        ge=0,
        description="Prompts above are tokenised in a thread (1 ms per 1,000 characters); below, the hop is not worth it.",
    )
