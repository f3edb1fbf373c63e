"""Text that comes in pieces: what of its end could be the beginning of something awaited."""

from collections.abc import Iterable


def possible_beginning(text: str, wholes: Iterable[str]) -> int:
    """How many of the last characters of `text` could begin one of `wholes`, which `text` does not hold."""
    longest = 0
    for whole in wholes:
        for length in range(min(len(whole) - 1, len(text)), longest, -1):
            if text.endswith(whole[:length]):
                longest = length
                break
    return longest
