"""A decode step's input in tensors that stay where they are: refilled, whatever computed over them once computes the next step."""

import torch

from engine.attention.paged import BlockTables
from engine.batch import Batch


class PagedBatch(Batch):
    """Has no spans: each of `sequences` sequences has as many rows, a token is drawn after each of them, and where their KV lies is
    in `tables` alone."""

    def __init__(
        self, token_ids: torch.Tensor, slots: torch.Tensor, tables: BlockTables, block_size: int, *, shifted: bool
    ) -> None:
        """`shifted`: make `next_token_ids` too."""
        super().__init__([], block_size, token_ids.device)
        self.tables = tables
        self.num_tokens = self.num_sampled = token_ids.shape[0]
        self.token_ids = token_ids
        self.positions = tables.positions
        self.slots = slots
        self.sampled_rows = torch.arange(self.num_tokens, device=token_ids.device)
        self.next_token_ids = torch.zeros_like(token_ids) if shifted else None
