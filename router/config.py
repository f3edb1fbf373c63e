"""The router's settings."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

PolicyName = Literal["least_loaded", "round_robin"]


class RouterConfig(BaseModel):
    """Settings of one router process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="router-0", description="This router's name, in Welcome and in metrics.")
    host: str = Field(default="127.0.0.1", description="Address all servers listen on. Loopback: nothing here authenticates.")
    http_port: int = Field(default=8000, ge=0, le=65535, description="OpenAI HTTP port. 0: any free one.")
    grpc_port: int = Field(default=8001, ge=0, le=65535, description="gRPC port for clients. 0: any free one.")
    link_port: int = Field(
        default=8002,
        ge=0,
        le=65535,
        description="gRPC port that workers dial. Apart from the clients' one: other peers, other rights. 0: any free one.",
    )

    model: str = Field(min_length=1, description="The name clients use; workers must say the same one.")
    model_dir: Path = Field(description="Folder with tokenizer.json, tokenizer_config.json and config.json.")
    max_model_len: int | None = Field(
        default=None, ge=2, description="Tokens, prompt and answer together. None: what config.json says."
    )

    policy: PolicyName = Field(
        default="least_loaded",
        description="How workers of both pools are chosen. least_loaded: unequal requests and unequal workers even out.",
    )
    request_timeout_s: float = Field(
        default=600.0, gt=0, description="Seconds from arrival to the last token. Above any sane answer: a backstop."
    )
    worker_wait_s: float = Field(
        default=2.0,
        ge=0,
        description="Seconds an accepted request waits for a decode worker when there is none, before 503. "
        "Long enough for a worker that redials, short enough for a client that retries.",
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
        default=1,
        ge=0,
        description="How often a request that lost its worker goes on elsewhere. Bounded: one that kills workers must end.",
    )

    max_open_requests: int = Field(
        default=4096, ge=1, description="Accepted requests that have not ended; more are refused with 503. Bounds memory."
    )
    max_waiting: int = Field(
        default=1024, ge=1, description="Accepted requests without a first token yet; more are refused with 503."
    )
    max_body_bytes: int = Field(
        default=8 * 1024 * 1024, ge=1024, description="Bytes of an HTTP body or a gRPC message; more is refused with 413."
    )
    body_timeout_s: float = Field(default=30.0, gt=0, description="Seconds a client may take to send its HTTP body.")
    client_stall_s: float = Field(
        default=30.0,
        gt=0,
        description="Seconds a client may take no byte that waits for it before it is dropped (TCP_USER_TIMEOUT).",
    )
    long_prompt_characters: int = Field(
        default=2048,
        ge=0,
        description="Prompts above are tokenised in a thread (1 ms per 1,000 characters); below, the hop is not worth it.",
    )
