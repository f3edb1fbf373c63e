"""A conversation with a running cluster over its OpenAI HTTP front."""

import json
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from protocol.errors import ConfigError, ServalError, Unavailable

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 600.0
"""Longest silence within an answer: a long prompt on a CPU takes minutes to the first token."""


class AnswerFailed(ServalError):
    """The cluster refused the request, or the answer broke off; the message says why."""


@dataclass(frozen=True)
class AnswerFigures:
    """`tokens_per_second` is decode speed: the first token apart. None where an answer has a single token."""

    ttft_s: float
    tokens: int
    tokens_per_second: float | None

    def __str__(self) -> str:
        speed = f", {self.tokens_per_second:.1f} tokens/s" if self.tokens_per_second else ""
        return f"{self.tokens} tokens, first after {self.ttft_s * 1000:.0f} ms{speed}"


@dataclass(frozen=True)
class ChatOptions:
    """What every question of a conversation carries. `model` empty: whatever the cluster serves."""

    model: str = ""
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Cluster:
    """A running cluster as its clients see it. `ca` signs its certificate; None: an authority that this machine trusts."""

    url: str
    ca: Path | None = None
    api_key: str = field(default="", repr=False)


class Conversation:
    """Keeps the history. One answer at a time; `figures` are those of the last whole answer."""

    def __init__(self, client: httpx.Client, options: ChatOptions) -> None:
        self._client = client
        self._options = options
        self.figures: AnswerFigures | None = None
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self.messages = [{"role": "system", "content": self._options.system}] if self._options.system else []

    def ask(self, question: str) -> Iterator[str]:
        """Yields the answer's pieces. What has been yielded when the caller stops is kept as the answer; a question that
        failed is forgotten. Raises AnswerFailed."""
        self.figures = None
        self.messages.append({"role": "user", "content": question})
        pieces: list[str] = []
        try:
            for piece in self._stream():
                pieces.append(piece)
                yield piece
        except ServalError:
            self.messages.pop()
            raise
        except (KeyboardInterrupt, GeneratorExit):
            self._keep(pieces)
            raise
        self._keep(pieces)

    def _keep(self, pieces: list[str]) -> None:
        self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def _stream(self) -> Iterator[str]:
        asked = time.monotonic()
        first = last = None
        tokens = 0
        try:
            with self._client.stream("POST", "/v1/chat/completions", json=self._body()) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    raise AnswerFailed(_reason(response))
                for event in _events(response):
                    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                    for choice in event["choices"]:
                        if text := choice["delta"].get("content"):
                            last = time.monotonic()
                            first = first or last
                            yield text
        except httpx.HTTPError as error:
            raise AnswerFailed(f"the connection broke: {error or type(error).__name__}") from error
        if first is not None and last is not None:
            speed = (tokens - 1) / (last - first) if tokens > 1 and last > first else None
            self.figures = AnswerFigures(first - asked, tokens, speed)

    def _body(self) -> dict[str, Any]:
        options = {"temperature": self._options.temperature, "max_tokens": self._options.max_tokens}
        return {
            "model": self._options.model,
            "messages": self.messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in options.items() if value is not None},
        }


def connect(cluster: Cluster) -> httpx.Client:
    """A client for the cluster. The environment's proxies are not asked: the cluster is ours. Raises ConfigError."""
    timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    try:
        trust = _trust(cluster)
        headers = {"Authorization": f"Bearer {cluster.api_key}"} if cluster.api_key else {}
        return httpx.Client(base_url=cluster.url, headers=headers, timeout=timeout, trust_env=False, verify=trust)
    except httpx.InvalidURL as error:
        raise ConfigError(f"--url: {error}") from error


def _trust(cluster: Cluster) -> ssl.SSLContext | bool:
    """Reading the system's authorities takes longer than a short answer: only where they are needed."""
    if not cluster.url.startswith("https:"):
        return False
    try:
        return ssl.create_default_context(cafile=cluster.ca)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"--ca: {cluster.ca}: {error.strerror or 'holds no certificate in PEM'}") from error


def served_model(client: httpx.Client) -> str:
    """The name of the model that the cluster serves. Raises Unavailable when nothing answers there."""
    try:
        response = client.get("/v1/models")
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise AnswerFailed(f"{_reason(response)} (--api-key, SERVAL_API_KEY)")
        response.raise_for_status()
        return str(response.json()["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError) as error:
        raise Unavailable(f"no Serval cluster answers at {client.base_url}: {error}; {_advice(error)}") from error


def _advice(error: Exception) -> str:
    """What most likely helps: somebody who is there, but speaks or trusts otherwise, need not be started."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "its certificate is not trusted here: name its authority with --ca (SERVAL_CA)"
    if "SSL" in str(error):
        return "it speaks no TLS there: try http:// in --url"
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        return "it may speak TLS: try https:// in --url"
    return "start one with `serval up`"


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Server-sent events as objects, up to [DONE]. Raises AnswerFailed for an error event, and for a stream that is cut."""
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise AnswerFailed(event["error"]["message"])
        yield event
    raise AnswerFailed("the answer was cut off")


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"HTTP {response.status_code}"
