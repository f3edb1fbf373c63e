"""Guessing by looking up: where the last tokens stood before, in the prompt or the answer, the same may follow again.

Source of the idea: Saxena, Prompt Lookup Decoding, 2023. It costs no model, and pays where an answer repeats what it was given:
code that is edited, text that is quoted or summarised, JSON.
"""

from collections.abc import Sequence as SequenceOf
from weakref import WeakKeyDictionary

import torch

from engine.batch import Batch
from engine.models.base import OnLayer
from engine.sequence import Sequence
from engine.speculation.verify import Verified

KEY_TOKENS = 3
"""Tokens that must agree. Two agree by chance all the time; four miss what follows a changed word one token longer."""

LONGEST_MATCH = 32
"""Of several places the one that agrees longest is taken; beyond this length they are alike."""

PLACES = 8
"""So many of a key's places are compared, the latest: in a text that repeats itself there may be thousands."""

INDEXED_AT_ONCE = 4096
"""Tokens. A long prompt is indexed over several steps, two milliseconds each, for no answer waits while another's is."""

TOKEN_BITS = 21
RUN_MASK = (1 << KEY_TOKENS * TOKEN_BITS) - 1


class NgramDrafter:
    """A Drafter over each sequence's own tokens."""

    name = "ngram"
    needs_hidden = False

    def __init__(self) -> None:
        self._indexes: WeakKeyDictionary[Sequence, _Index] = WeakKeyDictionary()

    def launch(
        self, batch: Batch, hidden: torch.Tensor | None, verified: Verified | None, on_layer: OnLayer | None
    ) -> torch.Tensor | None:
        """Nothing: tokens are enough, and the host has them."""
        return None

    def guess(self, sequence: Sequence, limit: int, launched: SequenceOf[int]) -> SequenceOf[int]:
        """What followed the last tokens where they stood before; the longest agreement wins, then the latest."""
        index = self._indexes.get(sequence)
        if index is None:
            index = self._indexes[sequence] = _Index(sequence.tokens)
        return index.continuation(limit)


class _Index:
    """Where every run of KEY_TOKENS tokens stands in one sequence's tokens, which grow."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._latest: dict[int, int] = {}
        """By run, the position after its latest place."""
        self._before: dict[int, int] = {}
        """By such a position, the one after the same run's place before it."""
        self._indexed = 0
        self._run = 0
        """The last tokens that are indexed, as one number."""

    def continuation(self, limit: int) -> list[int]:
        if not self._catch_up():
            return []
        tokens = self._tokens
        position = self._before.get(len(tokens))
        best, longest = None, 0
        for _ in range(PLACES):
            if position is None:
                break
            length = self._agreement(position)
            if length > longest:
                best, longest = position, length
            if length == LONGEST_MATCH:
                break
            position = self._before.get(position)
        return [] if best is None else _read_on(tokens, best, limit)

    def _catch_up(self) -> bool:
        """Indexes what has come since, or a part of it; whether that was all."""
        tokens, latest, before, run = self._tokens, self._latest, self._before, self._run
        begin = self._indexed
        end = min(len(tokens), begin + INDEXED_AT_ONCE)
        for position, token in enumerate(tokens[begin:end], begin + 1):
            run = (run << TOKEN_BITS | token) & RUN_MASK
            if position >= KEY_TOKENS:
                earlier = latest.get(run)
                if earlier is not None:
                    before[position] = earlier
                latest[run] = position
        self._indexed, self._run = end, run
        return end == len(tokens)

    def _agreement(self, position: int) -> int:
        """How many tokens before `position` are those before the end."""
        tokens, end = self._tokens, len(self._tokens)
        for length in range(KEY_TOKENS, min(LONGEST_MATCH, position)):
            if tokens[position - 1 - length] != tokens[end - 1 - length]:
                return length
        return min(LONGEST_MATCH, position)


def _read_on(tokens: list[int], position: int, count: int) -> list[int]:
    """`count` tokens from `position` on; behind the last one what was read first comes again, as in a text that repeats itself."""
    known = tokens[position : position + count]
    return [known[index % len(known)] for index in range(count)]
