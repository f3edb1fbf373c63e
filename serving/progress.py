"""How long work tells the outside where it stands."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, units done, units in all). Cheap, safe to call often, never raises."""


def silent(what: str, done: int, total: int) -> None:
    """Nobody is watching."""
