"""Synthetic traces in the manner of the public ones: a day's and a week's rhythm, lengths with long tails, mixes that swing."""

from collections.abc import Iterator
from math import cos, log, pi
from random import Random

from planner.trace import Arrival

DAY_S = 86_400.0


def week(seed: int, mean_rate: float, days: float = 7.0) -> Iterator[Arrival]:
    """`days` of traffic. As in Azure's traces of 2024 working hours have several times the night's traffic, weekends half; and
    code-like requests (long prompts, short answers) follow the working day, while chat (short prompts, long answers) lasts into the
    evening, so that the best split of the pools changes twice a day."""
    random = Random(seed)
    now, top = 0.0, 4 * mean_rate
    while (now := now + random.expovariate(top)) < days * DAY_S:
        code, chat = _rates(now, mean_rate)
        drawn = random.random() * top
        if drawn < code:
            yield Arrival(now, _length(random, 3000, 16_000), _length(random, 60, 1000))
        elif drawn < code + chat:
            yield Arrival(now, _length(random, 600, 8000), _length(random, 350, 4000))


def swing(seed: int, rate: float, phase_s: float, phases: int) -> Iterator[Arrival]:
    """Prompt-heavy and answer-heavy phases in turn, at one rate."""
    random = Random(seed)
    now = 0.0
    while (now := now + random.expovariate(rate)) < phases * phase_s:
        prompt_heavy = int(now // phase_s) % 2 == 0
        yield Arrival(now, 4000, 50) if prompt_heavy else Arrival(now, 400, 500)


def _rates(time_s: float, mean_rate: float) -> tuple[float, float]:
    """Of code and chat at a moment; the week's mean of both together is near `mean_rate`, and never above four times it."""
    day, hour = int(time_s // DAY_S) % 7, time_s % DAY_S / 3600
    weekend = 0.5 if day >= 5 else 1.0
    code = max(0.0, 1 + 1.2 * cos((hour - 14) / 24 * 2 * pi)) * (0.3 if day >= 5 else 1.0)
    chat = 1 + 0.7 * cos((hour - 20) / 24 * 2 * pi)
    return 0.6 * mean_rate * code, 0.6 * mean_rate * chat * weekend


def _length(random: Random, median: int, longest: int) -> int:
    """Log-normal, as lengths in the public traces are."""
    return max(2, min(longest, round(random.lognormvariate(log(median), 0.7))))
