"""A forward pass that was launched, and how its results come to the host."""

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from concurrent.futures import Future
from typing import Protocol

import torch

from engine.answered import Answered
from engine.batch import Span
from engine.host_copy import HostCopy
from engine.logprobs import TokenLogprobs
from engine.sampler import Drawn
from engine.speculation.verify import Verified


class Results(Protocol):
    """What one pass drew; on its way to the host."""

    def numbers(self) -> list[int]:
        """Tokens of all sampled rows, accepted guesses of all sampled spans, new guesses. Waits for the device."""

    def logprobs(self) -> Mapping[int, TokenLogprobs]:
        """By sampled row, where asked for. Waits for the device."""

    def last_tokens(self) -> torch.Tensor:
        """int64, of each sampled span what was drawn last: on the device, until the next pass has begun."""


class Computed:
    """Results of a pass whose tensors are its own."""

    def __init__(self, drawn: Drawn, verified: Verified, guesses: torch.Tensor | None) -> None:
        """`guesses`: int64 [sampled spans, n], for what follows."""
        self._drawn = drawn
        self._verified = verified
        parts = [verified.tokens, verified.accepted, *([] if guesses is None else [guesses.flatten()])]
        self._numbers = HostCopy(torch.cat(parts))

    def numbers(self) -> list[int]:
        return self._numbers.read()

    def logprobs(self) -> Mapping[int, TokenLogprobs]:
        return self._drawn.read_logprobs()

    def last_tokens(self) -> torch.Tensor:
        return self._verified.tokens[self._verified.last_rows]


class Launched:
    """Its tokens can be gone on from at once; its results are to be read once."""

    def __init__(
        self,
        spans: SequenceOf[Span],
        sampled_spans: SequenceOf[Span],
        device: torch.device,
        results: "Future[Results | None]",
    ) -> None:
        """`sampled_spans`: those of `spans` for which a token is drawn. `results`: None where there are none."""
        self.spans = spans
        self.sampled_spans = sampled_spans
        self._device = device
        self._results = results

    def places_of(self, spans: SequenceOf[Span]) -> list[int]:
        """Of each span's sequence, its place in `last_tokens`."""
        places = {span.sequence: place for place, span in enumerate(self.sampled_spans)}
        return [places[span.sequence] for span in spans]

    def last_tokens(self) -> torch.Tensor:
        """int64, one for each of `sampled_spans`, maybe more behind: what was drawn last, on the device. For whoever computes
        next."""
        results = self._results.result()
        assert results is not None
        return results.last_tokens()

    def wait(self) -> None:
        """Until it is over, well or not: it writes to no block any more."""
        self._results.exception()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def read(self) -> list[Answered]:
        """Waits for the device. One per span of `sampled_spans`. Raises what went wrong."""
        results = self._results.result()
        if results is None:
            return []
        spans, count = self.sampled_spans, sum(1 + len(span.drafts) for span in self.sampled_spans)
        numbers, logprobs = results.numbers(), results.logprobs()
        tokens, accepted, guesses = numbers[:count], numbers[count : count + len(spans)], numbers[count + len(spans) :]
        each = len(guesses) // len(spans)
        answered, first = [], 0
        for index, (span, holds) in enumerate(zip(spans, accepted, strict=True)):
            rows = range(first, first + holds + 1)
            shown = [logprobs[row] for row in rows if row in logprobs]
            launched = guesses[index * each : (index + 1) * each]
            answered.append(Answered(span, tokens[rows.start : rows.stop], shown, launched))
            first += 1 + len(span.drafts)
        return answered
