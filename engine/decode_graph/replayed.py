"""What a replayed step drew."""

from collections.abc import Mapping, Sequence

import torch

from engine.batch import Span
from engine.decode_graph.step import DecodeStep
from engine.host_copy import HostCopy
from engine.logprobs import TokenLogprobs


class Replayed:
    """The Results of a DecodeStep that was replayed last; the next replay writes over its tensors."""

    def __init__(self, step: DecodeStep, spans: Sequence[Span]) -> None:
        self._lengths = [span.length for span in spans]
        self._sequences = step.last_tokens.shape[0]
        self._rows_each = step.rows_each
        self._last_tokens = step.last_tokens
        self._numbers = HostCopy(step.numbers)

    def numbers(self) -> list[int]:
        """Without the rows that only repeat others."""
        numbers, each, count = self._numbers.read(), self._rows_each, len(self._lengths)
        rows = self._sequences * each
        tokens = [
            token for place, length in enumerate(self._lengths) for token in numbers[place * each : place * each + length]
        ]
        accepted = numbers[rows : rows + count]
        guesses = numbers[rows + self._sequences :][:count]
        return [*tokens, *accepted, *guesses]

    def logprobs(self) -> Mapping[int, TokenLogprobs]:
        return {}

    def last_tokens(self) -> torch.Tensor:
        return self._last_tokens
