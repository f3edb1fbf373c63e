"""The KV pool: one tensor that holds every layer's KV entries in blocks."""

import torch


class KVPool:
    """One contiguous tensor `data[layer, block, token in block, entry]`.

    An entry is what one layer keeps of one token: its K heads, then its V heads, flattened. One block of one layer is contiguous
    memory of `block_bytes`; the block with the same number holds the same tokens in every layer. The whole pool is one
    allocation that never moves, so a transfer library registers it once.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        entry_width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_layers = num_layers
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.entry_width = entry_width
        self.dtype = dtype
        # Zeroed, so that every page is touched at start and none fails or stalls under load.
        self.data = torch.zeros(num_layers, num_blocks, block_size, entry_width, dtype=dtype, device=device)
        self.layer_tokens: list[torch.Tensor] = [layer.view(num_blocks * block_size, entry_width) for layer in self.data]
        """Per layer, the pool as [slots, entry_width]; slot = block * block_size + position within the block."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of one layer."""
        return self.block_size * self.entry_width * self.dtype.itemsize

    @property
    def layer_bytes(self) -> int:
        """Bytes from one layer's block to the same block of the next layer."""
        return self.num_blocks * self.block_bytes

    def write(self, layer: int, slots: torch.Tensor, entries: torch.Tensor) -> None:
        """Stores `entries` [n, entry_width] at `slots` [n]."""
        self.layer_tokens[layer].index_copy_(0, slots, entries)

    def read(self, layer: int, blocks: torch.Tensor) -> torch.Tensor:
        """A copy of `blocks` [n] as [n * block_size, entry_width]."""
        return self.data[layer].index_select(0, blocks).view(-1, self.entry_width)
