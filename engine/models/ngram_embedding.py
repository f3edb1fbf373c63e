"""LongCat-Flash-Lite's embedding: a token's own, and those of the n-grams that end with it, looked up by hash.

There are `splits` tables for each length of 2 … `longest` tokens. Table i has size + 2i + 1 rows, and the n-gram's row is

    (t₀ + t₁·V + t₂·V² + …) mod rows

with t₀ the token, t₁ the one before it, and V the vocabulary's size. A text begins anew after its end token, which still belongs to
what it ends: tokens up to there count as 0, like those before the beginning. Each row found is projected to the hidden size; the
result is the mean of these projections and the token's own embedding.

Sources: arXiv 2601.21204, and what vLLM, SGLang, mlx-lm and llama.cpp compute for the released checkpoint.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import embedding

from engine.batch import Batch
from engine.linear import Linear
from engine.models.config import required
from protocol.errors import ConfigError


@dataclass(frozen=True)
class NgramShape:
    """Which tables there are."""

    longest: int
    """Tokens of the longest n-grams."""
    splits: int
    size: int
    """Rows of all tables, before each adds its own."""
    width: int
    """Values of a row."""
    vocab_size: int
    end_token_id: int

    @property
    def history(self) -> int:
        """Tokens before a token that its embedding hangs on."""
        return self.longest - 1

    @property
    def rows(self) -> list[int]:
        """Of each table; shorter n-grams first."""
        return [self.size + 2 * index + 1 for index in range(self.history * self.splits)]


def read_ngram_shape(raw: dict[str, Any]) -> NgramShape:
    """From config.json's content. Raises ConfigError, one line."""
    longest, splits = required(raw, "emb_neighbor_num"), required(raw, "emb_split_num")
    vocab_size, hidden, end = required(raw, "vocab_size"), required(raw, "hidden_size"), required(raw, "eos_token_id")
    ratio = raw.get("ngram_vocab_size_ratio")
    if not isinstance(ratio, int | float) or ratio <= 0:
        raise ConfigError(f"model: config.json's ngram_vocab_size_ratio must be a positive number, not {ratio!r}")
    if longest < 2:
        raise ConfigError(f"model: config.json's emb_neighbor_num must be at least 2, not {longest}")
    if hidden % (splits * (longest - 1)):
        raise ConfigError(
            f"model: config.json's hidden_size {hidden} is not shared out evenly by {splits * (longest - 1)} tables"
        )
    return NgramShape(longest, splits, int(ratio * vocab_size), hidden // (splits * (longest - 1)), vocab_size, end)


class NgramEmbedding:
    """Adds n-grams to the embeddings of a batch."""

    def __init__(self, shape: NgramShape, tables: torch.Tensor, projections: Linear) -> None:
        """tables: one after another, [sum of rows, width]. projections: of a token's rows side by side, to the hidden size."""
        self._shape = shape
        self._tables = tables
        self._projections = projections
        rows, device = torch.tensor(shape.rows, dtype=torch.int64), tables.device
        self._rows = rows.to(device)
        self._first_rows = (rows.cumsum(0) - rows).to(device)
        self._powers = _powers(shape).to(device)

    def __call__(self, own: torch.Tensor, batch: Batch) -> torch.Tensor:
        """`own` [tokens, hidden]: the tokens' own embeddings. Returns the same shape, a new tensor."""
        found = embedding(self.table_rows(batch) + self._first_rows, self._tables).flatten(1)
        return (own + self._projections(found)) / (1 + self._rows.shape[0])

    def table_rows(self, batch: Batch) -> torch.Tensor:
        """[tokens, tables]: where each token's n-grams are."""
        return (self._ngrams(batch).unsqueeze(2) * self._powers).sum(dim=1) % self._rows

    def _ngrams(self, batch: Batch) -> torch.Tensor:
        """[tokens, longest]: each token, the one before it, and so on; 0 for what is before the beginning of a text."""
        flat, places = _with_history(batch, self._shape.history)
        columns, is_within = [flat[places]], torch.ones_like(places, dtype=torch.bool)
        for distance in range(1, self._shape.longest):
            before = flat[places - distance]
            is_within = is_within & (before != self._shape.end_token_id)
            columns.append(before.masked_fill(~is_within, 0))
        return torch.stack(columns, dim=1)


def _powers(shape: NgramShape) -> torch.Tensor:
    """[longest, tables]: V to the power of the distance, modulo the table's rows; 0 beyond the table's n-grams."""
    powers = torch.zeros(shape.longest, len(shape.rows), dtype=torch.int64)
    for table, rows in enumerate(shape.rows):
        for distance in range(table // shape.splits + 2):
            powers[distance, table] = pow(shape.vocab_size, distance, rows)
    return powers


def _with_history(batch: Batch, history: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch's token ids with `history` tokens before each span, 0 where there are none, and where in it the batch's own are."""
    before: list[int] = []
    places: list[int] = []
    gaps: list[int] = []
    for span in batch.spans:
        known = span.sequence.tokens[max(0, span.start - history) : span.start]
        before += [0] * (history - len(known)) + known
        gaps += range(len(gaps) + len(places), len(gaps) + len(places) + history)
        places += range(len(gaps) + len(places), len(gaps) + len(places) + span.length)
    own, between = (torch.tensor(each, device=batch.device) for each in (places, gaps))
    flat = batch.token_ids.new_zeros(len(places) + len(gaps))
    flat[own] = batch.token_ids
    flat[between] = torch.tensor(before, device=batch.device)
    return flat, own
