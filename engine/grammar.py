"""Structured output: which tokens an answer may go on with. The only file that knows llguidance.

A grammar is llguidance's (Lark, or serialised JSON), made and validated by the router. A matcher walks it with one answer's
tokens, so its state is a pure function of them: an answer that another worker began, or that was put back for want of blocks,
goes on as it would have.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer
from torch.nn.functional import embedding

from protocol.errors import ConfigError, InvalidRequest
from telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

KEPT_GRAMMARS = 64
"""Compiled grammars kept for the next request with the same one: siblings, and applications that ask for one form all day."""

FIELD = "response_format"
"""What a client changes when its grammar cannot be followed."""


class Matcher:
    """Where one answer stands in its grammar. For one thread at a time."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.inner = matcher
        self._followed = 0

    def follow(self, output: Sequence[int]) -> None:
        """Walks on to the end of `output`: the whole answer so far, of which it has seen a beginning already."""
        new = list(output[self._followed :])
        self._followed = len(output)
        if new and not self.inner.is_stopped():
            self.inner.consume_tokens(new)

    @property
    def forced(self) -> Sequence[int]:
        """Tokens that spell what must come next, where there is no choice: a key's name, a comma. Maybe not those that the answer
        goes on with, for the same text can be spelt in several ways."""
        if self.inner.is_stopped():
            return ()
        forced: list[int] = self.inner.compute_ff_tokens()
        return forced

    def allowed(self, guesses: Sequence[int]) -> int:
        """How many of `guesses`, from the first on, the answer may go on with. It is not moved."""
        if not guesses or self.inner.is_stopped():
            return 0
        return int(self.inner.validate_tokens(list(guesses)))

    @property
    def is_complete(self) -> bool:
        """The grammar is fulfilled and nothing can follow, or the answer was ended where it may end."""
        return bool(self.inner.is_stopped()) and self.error is None

    @property
    def error(self) -> InvalidRequest | None:
        """Set for good once the answer left the grammar, or the grammar proved too complex on the way."""
        if not self.inner.is_error():
            return None
        return InvalidRequest(f"the grammar cannot be followed: {_first_line(self.inner.get_error())}", FIELD)


class Grammars:
    """The grammars of one model's answers. `matcher` from any thread, `masks` and `biases` from the engine's."""

    def __init__(
        self,
        tokenizer_file: Path,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        metrics: Metrics,
        *,
        threads: int | None = None,
    ) -> None:
        """Reads nothing yet. `threads` compute the masks of one step; None: llguidance's own choice."""
        self._tokenizer_file = tokenizer_file
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._metrics = metrics
        self._threads = threads
        self._limits = LLParserLimits(verbose_errors=False)  # an error must not quote the answer
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._executor: LLExecutor | None = None
        self._octets: torch.Tensor | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def prepare(self) -> None:
        """Reads the tokenizer now, where there is one that can be read. That takes seconds and holds the interpreter lock all the
        while (measured: 2 s for a vocabulary of 49,152): done for the first grammar, it would keep a worker from its heartbeats.
        """
        if not self._tokenizer_file.is_file():
            return
        try:
            with self._lock:
                self._tokenizer = self._tokenizer or self._read_tokenizer()
        except ConfigError as error:
            logger.warning("%s", error)

    def matcher(self, grammar: str) -> Matcher:
        """At the beginning of `grammar`. Takes milliseconds where it was not compiled lately. Raises InvalidRequest for what is
        no grammar, ConfigError without a tokenizer."""
        self._metrics.grammar_requests.of().inc()
        with self._lock:
            compiled = self._compiled.get(grammar)
            if compiled is not None:
                self._compiled.move_to_end(grammar)
                return Matcher(compiled.deep_copy())
            if self._tokenizer is None:
                self._tokenizer = self._read_tokenizer()
        compiled = self._compile(grammar, self._tokenizer)
        with self._lock:
            self._compiled[grammar] = compiled
            while len(self._compiled) > KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
            return Matcher(compiled.deep_copy())

    def masks(self, asked: Sequence[tuple[Matcher, Sequence[int]]]) -> torch.Tensor:
        """Per matcher, one mask for what may come next, the end among them where the answer may end, and one more after each of its
        guesses: int32 [masks, words], on the host, a token's bit in word token // 32. No matcher is moved. Behind a guess that the
        grammar does not allow, or that ends the answer, everything is allowed: nobody gets there.
        """
        started_s = time.monotonic()
        if self._executor is None:
            self._executor = LLExecutor(self._threads)
        plain, guessed, count = [], [], 0
        for matcher, guesses in asked:
            if guesses:
                guessed.append((matcher.inner, count, list(guesses)))
            else:
                plain.append((matcher.inner, count))
            count += 1 + len(guesses)
        words = torch.full((count, -(-self._vocab_size // 32)), -1, dtype=torch.int32)
        target = (words.data_ptr(), words.shape[1] * 4, count)
        if plain:
            self._executor.unsafe_compute_mask_ptr(plain, *target)
        if guessed:
            self._executor.unsafe_compute_mask_ptr_with_draft_token(guessed, *target)
        self._metrics.grammar_mask_time.of().inc(time.monotonic() - started_s)
        return words

    def biases(self, masks: torch.Tensor, device: torch.device) -> torch.Tensor:
        """What to add to logits, float32 [masks, vocab_size] on `device`: 0 for what may come, minus infinity for all others."""
        if self._octets is None:
            self._octets = _biases_of_octets().to(device)
        # A look-up of 8 biases per octet: measured at 40 us for a vocabulary of 49,152, half of unpacking and masked_fill.
        biases = embedding(masks.view(torch.uint8).to(device).int(), self._octets).flatten(1)
        return biases[:, : self._vocab_size]

    def _compile(self, grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
        started_s = time.monotonic()
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=self._limits)
        self._metrics.grammar_compile_time.of().observe(time.monotonic() - started_s)
        if matcher.is_error():
            raise InvalidRequest(f"the grammar cannot be compiled: {_first_line(matcher.get_error())}", FIELD)
        return matcher

    def _read_tokenizer(self) -> LLTokenizer:
        try:
            tokenizer = Tokenizer.from_file(str(self._tokenizer_file))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            # A model's vocabulary is often padded beyond its tokenizer's; no grammar allows what has no text.
            size = max(self._vocab_size, tokenizer.get_vocab_size(with_added_tokens=True))
            return LLTokenizer(tokenizer.to_str(), n_vocab=size, eos_token=sorted(self._eos_token_ids) or None)
        except Exception as error:  # tokenizers raises no narrower class
            raise ConfigError(f"model: {self._tokenizer_file} is of no use for structured output: {error}") from error


def _biases_of_octets() -> torch.Tensor:
    """[256, 8]: for each octet of a mask, 0 for its bits that are set and minus infinity for the others, lowest bit first."""
    bits = torch.arange(256).unsqueeze(1).bitwise_right_shift(torch.arange(8)).bitwise_and(1)
    return torch.where(bits == 1, 0.0, float("-inf"))


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0]
