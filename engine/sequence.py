"""One request as the engine sees it, and what a step says about it."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Literal

from engine.grammar import Matcher
from engine.logprobs import TokenLogprobs
from protocol.errors import ServalError
from protocol.sampling import SamplingParams

FinishReason = Literal["stop", "length", "aborted", "error"]


@dataclass(eq=False)
class Sequence:
    """Tokens to compute and to go on from. Once submitted it belongs to the engine until its final update.

    Submit it with nothing (the engine looks up the prefix cache and allocates), or with `blocks` reserved by the submitter and
    `num_computed` tokens whose KV they hold already: a cached beginning, or a whole prompt that was transferred, with
    `output` the tokens of the answer that are known already: `params` count them as answer, and nothing tells an answer that goes
    on from one that was never interrupted. At least one known token must be left to compute.
    The submitter calls `Engine.release` exactly once, after the final update; the engine never frees an ended sequence's blocks.
    """

    request_id: str
    prompt: SequenceOf[int]
    params: SamplingParams
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    output: list[int] = field(default_factory=list)

    cached_tokens: int = field(default=0, init=False)
    """Leading tokens that were not computed because the prefix cache, or the submitter, had them."""
    started_s: float | None = field(default=None, init=False)
    """time.monotonic() of the first step that computed it."""
    first_token_s: float | None = field(default=None, init=False)
    """time.monotonic() of the first token sampled here."""
    num_preemptions: int = field(default=0, init=False)
    is_contiguous: bool = field(default=True, init=False)
    """Whether `blocks` is one ascending run."""
    looked_up: bool = field(default=False, init=False)
    """Whether the prefix cache was asked for it, so that repeated look-ups are counted once."""
    released: bool = field(default=False, init=False)
    in_flight: int = field(default=0, init=False)
    """Steps that were launched for it and whose results are not read yet: they may still write to its blocks."""
    matcher: Matcher | None = field(default=None, init=False)
    """Where the answer stands in `params.grammar`; made by Engine.prepare."""
    drafts: list[int] = field(default_factory=list, init=False)
    """Guesses for the positions after the last known token. They may be wrong; nobody is shown them."""
    drafted_tokens: int = field(default=0, init=False)
    """Guesses that were computed for it here, and how many of them were right."""
    accepted_tokens: int = field(default=0, init=False)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list, init=False)
    """Where asked for, one per prompt token computed so far. The first, which nothing precedes, has 0 and no top."""
    busy_s: float = field(default=0.0, init=False)
    """Its share of the engine's time: each step's, split over its sequences by their tokens."""
    prefill_busy_s: float = field(default=0.0, init=False)
    """The part of `busy_s` up to the first token sampled here."""

    def __post_init__(self) -> None:
        self.tokens: list[int] = [*self.prompt, *self.output]
        self.num_given = len(self.tokens)
        """Tokens known at submission."""
        self.cached_tokens = self.num_computed
        self._check_contiguous(0)

    @property
    def num_remaining(self) -> int:
        """Known tokens whose KV is not computed."""
        return len(self.tokens) - self.num_computed

    @property
    def wants_prompt_logprobs(self) -> bool:
        """They go out with the answer's first token: whoever has one has them."""
        return self.params.prompt_logprobs is not None and not self.output

    def take(self, blocks: list[int]) -> None:
        """Appends blocks."""
        first_new = len(self.blocks)
        self.blocks.extend(blocks)
        self._check_contiguous(first_new)

    def give_up_blocks(self) -> list[int]:
        """Removes and returns its blocks; everything has to be computed again."""
        blocks, self.blocks = self.blocks, []
        self.drafts = []
        self.num_computed = 0
        self.is_contiguous = True
        return blocks

    def append(self, token_id: int) -> None:
        """Adds a sampled token."""
        self.output.append(token_id)
        self.tokens.append(token_id)

    def _check_contiguous(self, first_new: int) -> None:
        new = range(max(1, first_new), len(self.blocks))
        self.is_contiguous = self.is_contiguous and all(self.blocks[i] == self.blocks[i - 1] + 1 for i in new)


@dataclass(frozen=True)
class SequenceUpdate:
    """What one step did to one sequence. The update with `finish` is its last."""

    request_id: str
    sequence: Sequence
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One per token where the request asked for them, else empty."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """With the first token of an answer whose request asked for them, one per prompt token."""
    finish: FinishReason | None = None
    error: ServalError | None = None
    """Set when `finish` is "error"."""
