"""One accepted request: where it stands, what has come, what the client has not taken yet."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from protocol import serval_pb2
from protocol.ids import RequestId
from protocol.lifecycle import Lifecycle, Role
from protocol.outcomes import Outcome
from protocol.sampling import SamplingParams
from router.losses import Suspicion
from router.tenants.caller import ANONYMOUS, Caller
from router.tenants.tenant import Charge
from router.text.answer_text import AnswerText
from router.turns import News
from telemetry.tracing import NO_CONTEXT

if TYPE_CHECKING:
    from router.placement.placer import Placement
    from router.workers import Worker


@dataclass(frozen=True)
class GenerateSpec:
    """A validated request: what is to be computed, whoever asked for it.

    `echo` is the prompt's text where the client wants it back before the answer. `is_prompt_only`: the client wants no answer at
    all, so the one token that has to be drawn is not shown. `session`: what a client calls several requests that belong together.
    `shown_tokens`: special tokens that have text in this answer.
    """

    prompt: tuple[int, ...]
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    echo: str | None = None
    is_prompt_only: bool = False
    session: str = ""
    shown_tokens: Mapping[int, str] = field(default_factory=dict)

    def end_tokens(self, eos_token_ids: frozenset[int]) -> frozenset[int]:
        """Tokens that end the answer. `eos_token_ids`: the model's."""
        own = frozenset(self.sampling.stop_token_ids)
        return own if self.sampling.ignore_eos else own | eos_token_ids


@dataclass
class Timeline:
    """Seconds on the event loop's clock; every latency is a difference of two of them."""

    arrived: float
    deadline: float
    submitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    ended: float | None = None


@dataclass(frozen=True)
class TokenInfo:
    """One token's logprobs and where its text begins in the answer, in characters."""

    logprobs: serval_pb2.TokenLogprobs
    text_offset: int


@dataclass
class Delta:
    """What the client has not got yet: everything since it last took."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenInfo] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.token_ids or self.text or self.logprobs)


@dataclass(frozen=True)
class End:
    """How a request ended. `message` is for the client; `field` names what to change in an invalid one; `retry_after_s` is when
    a retry is likely to be accepted, where that is known."""

    outcome: Outcome
    message: str = ""
    field: str | None = None
    retry_after_s: float | None = None


class Request:
    """Owned by the dispatcher, read by the one front that answers the client. Event loop only.

    Memory is bounded: an answer is no longer than the context, and what a slow client has not taken gathers in one Delta.
    """

    def __init__(
        self,
        request_id: RequestId,
        spec: GenerateSpec,
        text: AnswerText,
        timeline: Timeline,
        charge: Charge,
        caller: Caller = ANONYMOUS,
    ) -> None:
        self.request_id = request_id
        self.spec = spec
        self.charge = charge
        self.caller = caller
        self.sibling_of: Request | None = None
        """The request with the same prompt to which this is another answer."""
        self.siblings: list[Request] = []
        """Those that wait until this one's decode worker has the prompt."""
        self.text = text
        self.timeline = timeline
        self.lifecycle = Lifecycle(Role.ROUTER)
        self.output: list[int] = []
        self.attempts = 0
        """How often it was sent to a decode worker."""
        self.prefill_told_s = self.prefill_owed_s = 0.0
        """What the current attempt took of prefill, as far as it was told; and what of it is to be billed at the attempt's end."""
        self.retries = 0
        self.suspicion = Suspicion()
        self.cached_tokens = 0
        self.end: End | None = None
        self.figures = serval_pb2.Figures()
        """What the answer took; whole once `end` is set."""
        self.trace = NO_CONTEXT
        """What the workers' spans go below."""
        self.owes_figures = False
        """It ended here before its worker said what it took; `figures` and `cached_tokens` are not whole yet."""
        self.prompt_logprobs: Sequence[serval_pb2.TokenLogprobs] = ()
        """One per prompt token, where asked for; there before the first delta."""
        self.number = 0
        """The number of the current attempt at the current decode worker."""
        self.decode: Worker | None = None
        self.prefill: Worker | None = None
        """Where the current attempt was placed, or the last one; `is_at_*` while it counts there."""
        self.placement: Placement | None = None
        self.is_computing = False
        """Its prompt counts as work to be done at `placement.computing`."""
        self.prompt_hashes: Sequence[int] | None = None
        """The prompt's KV blocks as prefix caches know them, once they were asked for."""
        self.is_at_decode = False
        self.is_at_prefill = False
        self.avoided: set[int] = set()
        """Incarnations of workers that gave this request back."""
        self.timers: list[asyncio.TimerHandle] = []
        self.end_tokens: frozenset[int] = frozenset()
        """Tokens that end the answer and have no text in it."""
        self.is_read_by_token = bool(spec.stop) or spec.sampling.logprobs is not None
        """What a token says matters when it comes, not only when the client takes it."""
        self._delta = Delta()
        self._undecoded: list[int] = []
        self._held_logprobs: list[TokenInfo] = []
        self._is_cut = False
        self._news: News | asyncio.Event = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Request {self.request_id} {self.lifecycle.state} prompt={len(self.spec.prompt)} output={len(self.output)}>"

    @property
    def explanation(self) -> Mapping[str, Any]:
        """Why it was placed where it was, for people; empty until it is placed."""
        return self.placement.explanation if self.placement is not None else {}

    @property
    def asked_prefill(self) -> "Worker | None":
        """The prefill worker that the current attempt's decode worker may ask, or the last one's."""
        return self.prefill or (self.placement.standby if self.placement is not None else None)

    @property
    def total_tokens(self) -> int:
        return len(self.spec.prompt) + self.spec.sampling.max_tokens

    @property
    def has_prompt_at_decode(self) -> bool:
        """Its decode worker has shown that the prompt's KV is there: the first token may come from prefill, the second cannot. Or
        there is nothing to wait for any more."""
        return len(self.output) > 1 or self.end is not None

    def add_all(self, token_ids: list[int]) -> None:
        """Takes the answer's next tokens, where it is not `is_read_by_token`: their text is found out when it is taken."""
        self.output += token_ids
        self._undecoded += token_ids
        self._news.set()

    def add(self, token_id: int, logprobs: serval_pb2.TokenLogprobs | None) -> bool:
        """Takes the answer's next token; True when a stop string is complete."""
        self.output.append(token_id)
        self._delta.token_ids.append(token_id)
        if logprobs is not None:
            self._held_logprobs.append(TokenInfo(logprobs, self.text.characters))
        text, self._is_cut = self.text.push((token_id,)) if token_id not in self.end_tokens else ("", False)
        self._release(text)
        self._news.set()
        return self._is_cut

    def add_rest(self) -> bool:
        """Releases held text at the end of the answer; True when a stop string is complete, which cuts the rest off."""
        self._decode()
        if not self._is_cut:
            text, self._is_cut = self.text.finish()
            self._release(text)
        return self._is_cut

    def finish(self, end: End) -> None:
        """The dispatcher's last word. Wakes the front."""
        self.end = end
        self._news.set()

    def settle(self) -> None:
        """Nothing more will be known of it. Wakes the front."""
        self.owes_figures = False
        self._news.set()

    def tell(self, news: News) -> None:
        """From now on `news` is set when something comes; so one reader can wait for several requests."""
        if self._news.is_set():
            news.set()
        self._news = news

    def take(self) -> Delta:
        """Everything that has come since it was last taken; may be empty."""
        self._decode()
        delta = self._delta
        if delta:
            self._delta = Delta()
        return delta

    def _decode(self) -> None:
        if self._undecoded:
            token_ids, self._undecoded = self._undecoded, []
            self._delta.token_ids += token_ids
            if not self.end_tokens.isdisjoint(token_ids):
                token_ids = [token_id for token_id in token_ids if token_id not in self.end_tokens]
            self._delta.text += self.text.push(token_ids)[0]

    def _release(self, text: str) -> None:
        """A token's logprobs go out with its first character: those of a held-back token stay held."""
        self._delta.text += text
        ready = 0
        for info in self._held_logprobs:
            if info.text_offset >= self.text.released and self.text.characters > self.text.released:
                break
            ready += 1
        self._delta.logprobs += self._held_logprobs[:ready]
        del self._held_logprobs[:ready]
