"""A forward pass that was launched, and how its results come to the host."""

from concurrent.futures import Future

import torch

from engine.answered import Answered
from engine.batch import Batch, Span
from engine.sampler import Drawn
from engine.speculation.verify import Verified


class Computed:
    """What one pass drew, on the device; its copy for the host is on its way from here on."""

    def __init__(self, drawn: Drawn, verified: Verified, guesses: torch.Tensor | None) -> None:
        """`guesses`: int64 [sampled spans, n], for what follows."""
        self.drawn = drawn
        self.verified = verified
        parts = [verified.tokens, verified.accepted, *([] if guesses is None else [guesses.flatten()])]
        self._numbers = torch.cat(parts)
        self._copied: torch.cuda.Event | None = None
        if self._numbers.device.type == "cuda":
            # So that the reader waits for this pass, and not for those that were launched after it.
            pinned = torch.empty(self._numbers.shape, dtype=self._numbers.dtype, pin_memory=True)
            self._numbers = pinned.copy_(self._numbers, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def numbers(self) -> list[int]:
        """Tokens of all rows, accepted guesses of all sampled spans, new guesses. Waits for the device."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[int] = self._numbers.tolist()
        return numbers


class Launched:
    """Its tokens can be gone on from at once; its results are to be read once."""

    def __init__(self, batch: Batch, computed: "Future[Computed | None]") -> None:
        self.batch = batch
        self._computed = computed

    def rows_of(self, spans: list[Span]) -> torch.Tensor:
        """Of each span's sequence, its place in `last_tokens`."""
        places = {span.sequence: place for place, span in enumerate(self.batch.sampled_spans)}
        return torch.tensor([places[span.sequence] for span in spans], device=self.batch.device)

    def last_tokens(self) -> torch.Tensor:
        """int64 [sampled spans]: what was drawn last for each, on the device. For whoever computes after it."""
        computed = self._computed.result()
        assert computed is not None
        return computed.verified.tokens[computed.verified.last_rows]

    def wait(self) -> None:
        """Until it is over, well or not: it writes to no block any more."""
        self._computed.exception()
        if self.batch.device.type == "cuda":
            torch.cuda.synchronize(self.batch.device)

    def read(self) -> list[Answered]:
        """Waits for the device. One per span of `batch.sampled_spans`. Raises what went wrong."""
        computed = self._computed.result()
        if computed is None:
            return []
        spans, count = self.batch.sampled_spans, len(self.batch.sampled)
        numbers = computed.numbers()
        tokens, accepted, guesses = numbers[:count], numbers[count : count + len(spans)], numbers[count + len(spans) :]
        each = len(guesses) // len(spans)
        logprobs = computed.drawn.read_logprobs()
        answered, first = [], 0
        for index, (span, holds) in enumerate(zip(spans, accepted, strict=True)):
            rows = range(first, first + holds + 1)
            shown = [logprobs[row] for row in rows if row in logprobs]
            launched = guesses[index * each : (index + 1) * each]
            answered.append(Answered(span, tokens[rows.start : rows.stop], shown, launched))
            first += 1 + len(span.drafts)
        return answered
