"""What the host tells a replayed step: one buffer for numbers and one for block tables, each refilled with one copy.

Torch's own copies of Python lists to a GPU wait until it has done what was launched before; copies from pinned memory do not. So a
step is filled in new pinned memory, and copied over when the device gets there.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import NamedTuple

import torch

from engine.attention.paged import BlockTables
from engine.batch import Span
from engine.decode_graph.block_rows import BlockRows
from engine.draws import uniform
from engine.paged_batch import PagedBatch
from engine.speculation.verify import NO_GUESS
from engine.truncation import MINUS_INFINITY, limit_of, margin_of
from protocol.sampling import SamplingParams

OF_ROWS = ("token_ids", "positions", "slots", "numbers", "temperatures", "margins", "masses", "limits", "is_random")
FLOATS = frozenset(("numbers", "temperatures", "margins", "masses"))
"""float64, in the same buffer of 64-bit numbers: they come to float32 as Python's own do."""


class Filled(NamedTuple):
    """One step's inputs, still on the host."""

    packed: torch.Tensor
    blocks: torch.Tensor


@dataclass(frozen=True)
class DrawInputs:
    """Of each row, [rows]: what SamplingPlan knows of it. `margins` minus infinity, `limits` 0 and `masses` 1 keep everything."""

    numbers: torch.Tensor
    temperatures: torch.Tensor
    margins: torch.Tensor
    limits: torch.Tensor
    masses: torch.Tensor
    is_random: torch.Tensor
    """int64: 0 or 1."""


class StepInputs:
    """Those of all steps of one size. Filled by the thread that decides, loaded by whoever computes."""

    def __init__(
        self, rows_each: int, blocks: torch.Tensor, host_blocks: BlockRows, block_size: int, vocab_size: int, *, shifted: bool
    ) -> None:
        """blocks: int32 [sequences, blocks of the longest], on the device, shared with other sizes. `shifted`: see PagedBatch."""
        sequences, device = blocks.shape[0], blocks.device
        self._sequences, self._rows_each = sequences, rows_each
        self._rows = rows = sequences * rows_each
        self._block_size, self._vocab_size = block_size, vocab_size
        self._blocks, self._host_blocks = blocks, host_blocks
        self._pins = device.type == "cuda"
        counts = {**dict.fromkeys(OF_ROWS, rows), "guesses": sequences * (rows_each - 1), "places": sequences}
        self._packed = torch.zeros(sum(counts.values()), dtype=torch.int64, device=device)
        self._sections: dict[str, slice] = {}
        views: dict[str, torch.Tensor] = {}
        begin = 0
        for name, count in counts.items():
            self._sections[name] = slice(begin, begin + count)
            view = self._packed[begin : begin + count]
            views[name] = view.view(torch.float64) if name in FLOATS else view
            begin += count
        views["temperatures"].fill_(1.0)  # nothing is divided by 0 before the first step
        tables = BlockTables(blocks, views["positions"])
        self.batch = PagedBatch(views["token_ids"], views["slots"], tables, block_size, shifted=shifted)
        self.draws = DrawInputs(
            *(views[name] for name in ("numbers", "temperatures", "margins", "limits", "masses", "is_random"))
        )
        self.guesses = views["guesses"].view(sequences, rows_each - 1)
        """int64 [sequences, rows each - 1]; NO_GUESS where there is none."""
        self._places = views["places"]

    def fill(self, spans: SequenceOf[Span], places: SequenceOf[int]) -> Filled:
        """`places`: of each span's sequence, where its last token stands among those that `load` will be given; empty where the
        host knows the tokens. Touches nothing of the device."""
        columns: dict[str, list[float]] = {name: [] for name in self._sections}
        for span in spans:
            self._add(columns, span)
        for name in OF_ROWS:
            column = columns[name]
            column += [column[-1]] * (self._rows - len(column))
        columns["guesses"] += [NO_GUESS] * (self.guesses.numel() - len(columns["guesses"]))
        columns["places"] += [*places, *[places[-1] if places else 0] * (self._sequences - len(places))]
        packed = torch.empty(self._packed.shape, dtype=torch.int64, pin_memory=self._pins)
        integers, floats = packed.numpy(), packed.view(torch.float64).numpy()
        for name, section in self._sections.items():
            (floats if name in FLOATS else integers)[section] = columns[name]
        used = max(-(-span.end // self._block_size) for span in spans)
        sequences = [span.sequence for span in spans]
        return Filled(packed, self._host_blocks.table(sequences, self._sequences, used, pinned=self._pins))

    def load(self, filled: Filled, drawn_last: torch.Tensor | None) -> None:
        """`drawn_last`: int64, for steps whose tokens only the device knows. Waits for nothing."""
        self._packed.copy_(filled.packed, non_blocking=True)
        self._blocks[:, : filled.blocks.shape[1]].copy_(filled.blocks, non_blocking=True)
        if drawn_last is not None:
            self.batch.token_ids.copy_(drawn_last[self._places])

    def _add(self, columns: dict[str, list[float]], span: Span) -> None:
        tokens, blocks, size, params = span.sequence.tokens, span.sequence.blocks, self._block_size, span.sequence.params
        first = 0 if span.unread else tokens[span.start]
        repeated = self._rows_each - span.length
        places = [*range(span.start, span.end), *[span.end - 1] * repeated]
        token_ids = [first, *span.drafts]
        columns["token_ids"] += token_ids + [token_ids[-1]] * repeated
        columns["positions"] += places
        columns["slots"] += [blocks[place // size] * size + place % size for place in places]
        # What is drawn after a token has the place after it.
        numbers = [0.0 if params.is_greedy else uniform(params.seed, place + 1) for place in places]
        columns["numbers"] += numbers
        columns["guesses"] += [*span.drafts, *[NO_GUESS] * repeated]
        for name, value in zip(("temperatures", "margins", "masses", "limits", "is_random"), self._rules(params), strict=True):
            columns[name] += [value] * self._rows_each

    def _rules(self, params: SamplingParams) -> tuple[float, float, float, int, bool]:
        if params.is_greedy:
            return 1.0, MINUS_INFINITY, 1.0, 0, False
        return params.temperature, margin_of(params), params.top_p, limit_of(params, self._vocab_size), True
