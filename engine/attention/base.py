"""What the model asks of an attention backend."""

from typing import Any, Protocol

import torch

from engine.batch import Batch


class AttentionBackend(Protocol):
    """Causal attention of a batch's new tokens over all tokens of their sequences, whose KV the pool holds."""

    def plan(self, batch: Batch) -> Any:
        """What all layers of one forward share; passed to `attend`."""

    def attend(self, layer: int, query: torch.Tensor, plan: Any) -> torch.Tensor:
        """`query` [tokens, heads, head_dim] → [tokens, heads * head_dim]. The batch's own KV is in the pool already."""
