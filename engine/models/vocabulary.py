"""The tables with a row per token, which a split model shares out by rows: looking tokens up, and making logits.

Shares are equally long: the last ones may end in rows of zeros that no token has.
"""

import torch
from torch.nn.functional import embedding, pad

from engine.linear import Product
from engine.models.weights import WeightReader
from engine.split.ranks import Ranks
from engine.split.share import ROWS, Part


class Embedding:
    """Rows of a table by token id. Of a shared table, zeros for others' tokens: the sum over all processes is what is meant."""

    def __init__(self, table: torch.Tensor, ranks: Ranks) -> None:
        """`table`: as `read_table` gives it."""
        self.table = table
        self._share = ranks.share

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[tokens] → [tokens, hidden], a new tensor."""
        if self._share.is_whole:
            return embedding(token_ids, self.table)
        count = self.table.shape[0]
        own = token_ids - self._share.rank * count
        elsewhere = (own < 0) | (own >= count)
        return embedding(own.clamp(0, count - 1), self.table).masked_fill_(elsewhere.unsqueeze(1), 0.0)


class Head:
    """Logits [rows, vocab_size], whole on every process."""

    def __init__(self, product: Product, ranks: Ranks, vocab_size: int) -> None:
        """`product`: with this process's rows of the table."""
        self._product = product
        self._ranks = ranks
        self._vocab_size = vocab_size

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        logits = self._product(x)
        if self._ranks.share.is_whole:
            return logits
        return self._ranks.gather(logits)[:, : self._vocab_size]


def read_table(weights: WeightReader, name: str, vocab_size: int, width: int) -> torch.Tensor:
    """This process's rows of a table [vocab_size, width]."""
    share = weights.share
    if share.is_whole:
        return weights.tensor(name, vocab_size, width)
    each = -(-vocab_size // share.size)
    first = min(share.rank * each, vocab_size)
    count = min(each, vocab_size - first)
    rows = weights.tensor(name, vocab_size, width, part=Part(ROWS, first, count, vocab_size))
    return rows if count == each else pad(rows, (0, 0, 0, each - count))
