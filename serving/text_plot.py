"""Plots of characters, for a terminal."""

from collections.abc import Sequence
from itertools import pairwise

EIGHTHS = " ▏▎▍▌▋▊▉"
LEVELS = "▁▂▃▄▅▆▇█"


def bar(value: float, largest: float, width: int) -> str:
    """A bar of at most `width` characters, in eighths of one."""
    eighths = round(8 * width * value / largest) if largest > 0 else 0
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def sparkline(values: Sequence[float], width: int) -> str:
    """One character per value, or per group of neighbours (their largest) where there are more than `width`."""
    if not values:
        return ""
    columns = min(width, len(values))
    edges = [round(i * len(values) / columns) for i in range(columns + 1)]
    peaks = [max(values[start:end]) for start, end in pairwise(edges)]
    low, high = min(peaks), max(peaks)
    return "".join(LEVELS[round((len(LEVELS) - 1) * (peak - low) / (high - low)) if high > low else 0] for peak in peaks)
