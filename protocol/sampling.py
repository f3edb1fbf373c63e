"""Sampling parameters: one frozen value, validated once at the door, the same on every worker."""

from dataclasses import dataclass, field
from typing import Any

from protocol import serval_pb2
from protocol.errors import InvalidRequest

MAX_LOGPROBS = 20
"""As in OpenAI's API."""

GREEDY_BELOW = 1e-5
"""A temperature at which nothing but the likeliest token could be drawn, and logits would no longer be finite. As in vLLM."""

MIN_REPETITION_PENALTY = 0.01
"""Below, penalised logits would no longer be finite."""


@dataclass(frozen=True)
class SamplingParams:
    """How to draw tokens. Draws are keyed by (seed, position): the token at a position never depends on batching or on which
    worker draws it.

    `max_tokens` counts answer tokens. `logprobs`: None for none, N for the chosen token's and the N likeliest; `prompt_logprobs`
    likewise for the prompt. `grammar` is llguidance's (Lark or serialised), empty for none: the answer's text keeps to it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    grammar: str = ""
    prompt_logprobs: int | None = None

    def validate(self, vocab_size: int) -> None:
        """Raises InvalidRequest naming the first field that is out of range."""
        _require(0.0 <= self.temperature <= 100.0, "temperature", "must be between 0 and 100")
        _require(0.0 < self.top_p <= 1.0, "top_p", "must be greater than 0 and at most 1")
        _require(0 <= self.top_k < 2**32, "top_k", "must be 0 (off) or positive, below 2^32")
        _require(0.0 <= self.min_p <= 1.0, "min_p", "must be between 0 and 1")
        penalty_fits = MIN_REPETITION_PENALTY <= self.repetition_penalty <= 100.0
        _require(penalty_fits, "repetition_penalty", f"must be between {MIN_REPETITION_PENALTY} and 100")
        _require(-2.0 <= self.presence_penalty <= 2.0, "presence_penalty", "must be between -2 and 2")
        _require(-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty", "must be between -2 and 2")
        _require(self.max_tokens >= 1, "max_tokens", "must be at least 1")
        _require(0 <= self.min_tokens <= self.max_tokens, "min_tokens", "must be between 0 and max_tokens")
        _require(0 <= self.seed < 2**63, "seed", "must be between 0 and 2^63 - 1")
        for name, count in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            _require(count is None or 0 <= count <= MAX_LOGPROBS, name, f"must be between 0 and {MAX_LOGPROBS}")
        for token_id, bias in self.logit_bias.items():
            _require(0 <= token_id < vocab_size, "logit_bias", f"token id {token_id} is not in the vocabulary")
            _require(-100.0 <= bias <= 100.0, "logit_bias", f"the bias of token {token_id} must be between -100 and 100")
        for token_id in self.stop_token_ids:
            _require(0 <= token_id < vocab_size, "stop_token_ids", f"token id {token_id} is not in the vocabulary")

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def is_penalised(self) -> bool:
        """Whether a draw hangs on which tokens came before it."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    def to_proto(self) -> serval_pb2.Sampling:
        return serval_pb2.Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            seed=self.seed,
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
            stop_token_ids=self.stop_token_ids,
            structured_output=serval_pb2.StructuredOutput(grammar=self.grammar) if self.grammar else None,
            prompt_logprobs=self.prompt_logprobs,
        )

    @classmethod
    def from_proto(cls, message: serval_pb2.Sampling, default_max_tokens: int, default_seed: int = 0) -> "SamplingParams":
        """Absent fields take their defaults; nothing is validated here. Of structured outputs only a grammar is read: the router
        makes one of the other kinds."""

        def given(name: Any, default: Any) -> Any:
            return getattr(message, name) if message.HasField(name) else default

        return cls(
            temperature=given("temperature", 1.0),
            top_p=given("top_p", 1.0),
            top_k=message.top_k,
            min_p=message.min_p,
            repetition_penalty=given("repetition_penalty", 1.0),
            presence_penalty=message.presence_penalty,
            frequency_penalty=message.frequency_penalty,
            logit_bias=dict(message.logit_bias),
            seed=given("seed", default_seed),
            max_tokens=given("max_tokens", default_max_tokens),
            min_tokens=message.min_tokens,
            ignore_eos=message.ignore_eos,
            logprobs=given("logprobs", None),
            stop_token_ids=tuple(message.stop_token_ids),
            grammar=message.structured_output.grammar,
            prompt_logprobs=given("prompt_logprobs", None),
        )


def _require(condition: bool, name: str, requirement: str) -> None:
    # NaN compares false with everything, so it is refused by every range check.
    if not condition:
        raise InvalidRequest(f"{name} {requirement}", name)
