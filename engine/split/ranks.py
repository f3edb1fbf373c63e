"""What the processes of a split model compute together: sums and gathers inside its layers, by torch.distributed.

All of them call the same things in the same order, each for the same tokens.
"""

from typing import Any, Protocol

import torch
from torch import distributed

from engine.linear import Product
from engine.split.share import WHOLE, Share


class Group(Protocol):
    """What is used of torch's process groups."""

    def allreduce(self, tensors: list[torch.Tensor]) -> Any: ...

    def broadcast(self, tensors: list[torch.Tensor], options: Any) -> Any: ...

    def _allgather_base(self, output: torch.Tensor, given: torch.Tensor) -> Any: ...


class Ranks:
    """Without a group (one process, or a model that is only counted) every method gives back what it gets."""

    def __init__(self, share: Share = WHOLE, group: Group | None = None) -> None:
        self.share = share
        self._group = group

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Adds up everybody's `x`, in its own place. Raises RuntimeError when one of the others is gone or late."""
        if self._group is not None:
            self._group.allreduce([x]).wait()
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Everybody's `x` [rows, columns] side by side, [rows, size · columns]."""
        if self._group is None:
            return x
        rows, columns = x.shape
        together = x.new_empty(self.share.size * rows, columns)
        self._group._allgather_base(together, x.contiguous()).wait()
        return together.view(self.share.size, rows, columns).transpose(0, 1).reshape(rows, -1)

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        """The leader's `x`, in its own place."""
        if self._group is not None:
            self._group.broadcast([x], distributed.BroadcastOptions()).wait()
        return x

    def summed(self, product: Product) -> Product:
        """`product` of a matrix whose columns are shared out, added up over all."""
        return product if self.share.is_whole else _Summed(product, self)


ALONE = Ranks()
"""Of a model in one process."""


class _Summed:
    def __init__(self, product: Product, ranks: Ranks) -> None:
        self._product = product
        self._ranks = ranks

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._ranks.sum(self._product(x))
