"""Which part of a model one of its processes holds. Pure arithmetic."""

from dataclasses import dataclass
from typing import Final, Literal

from protocol.errors import ConfigError

ROWS: Final = 0
COLUMNS: Final = 1


@dataclass(frozen=True)
class Part:
    """Of a stored tensor, what first ≤ index < first + count in one dimension; `of` is how long that dimension is stored."""

    dim: Literal[0, 1]
    first: int
    count: int
    of: int

    def stored_shape(self, kept: tuple[int, ...]) -> tuple[int, ...]:
        """Of the tensor, where its part has shape `kept`."""
        return tuple(self.of if dim == self.dim else size for dim, size in enumerate(kept))

    def in_blocks_of(self, size: int) -> "Part":
        """The same counted in blocks, on whose borders it begins and ends."""
        return Part(self.dim, self.first // size, self.count // size, self.of // size)


@dataclass(frozen=True)
class Share:
    """One of `size` processes that compute one model. Rank 0 is the leader."""

    rank: int = 0
    size: int = 1

    @property
    def is_whole(self) -> bool:
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """What all add up and only one may contribute is the first one's: biases after a sum, zero experts."""
        return self.rank == 0

    def of(self, count: int, what: str) -> range:
        """This process's of `count` equal things. Raises ConfigError where they cannot be shared out evenly; `what` names them."""
        if count % self.size:
            raise ConfigError(f"engine.tensor_parallel_size: {self.size} processes cannot share {count} {what} evenly")
        each = count // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def rows(self, count: int, what: str) -> Part | None:
        """This process's rows of a matrix, None for all. Raises ConfigError as `of` does."""
        return self._part(ROWS, count, what)

    def columns(self, count: int, what: str) -> Part | None:
        """As `rows`."""
        return self._part(COLUMNS, count, what)

    def _part(self, dim: Literal[0, 1], count: int, what: str) -> Part | None:
        own = self.of(count, what)
        return None if self.is_whole else Part(dim, own.start, len(own), count)


WHOLE = Share()
"""Of a model in one process."""
