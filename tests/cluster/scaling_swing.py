"""Load that swings from prompt-heavy to answer-heavy and back, on a cluster whose pools scale; what the pools did meanwhile."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
from cluster_samples import Samples

POOLS = ("prefill", "decode")
WATCH_PERIOD_S = 1.0
ANSWER_TIMEOUT_S = 240.0


@dataclass(frozen=True)
class Shape:
    """Requests of one kind of phase: tokens in and out, and which pool they fill."""

    prompt_tokens: int
    answer_tokens: int
    fills: str


PROMPT_HEAVY = Shape(800, 16, "prefill")
ANSWER_HEAVY = Shape(60, 200, "decode")


@dataclass(frozen=True)
class Reading:
    """Both pools at one moment: asked for, and taking requests."""

    at_s: float
    desired: dict[str, int]
    ready: dict[str, int]


@dataclass
class Swing:
    """What was seen. Times count from the first request."""

    period_s: float
    phase_s: float
    phases: list[Shape] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    """Requests by what became of them: `whole`, or what was wrong."""
    decisions: dict[str, dict[str, float]] = field(default_factory=dict)
    """By pool and reason."""

    def sizes(self, pool: str, phase: int) -> list[int]:
        """What was asked for during a phase."""
        begin, end = phase * self.phase_s, (phase + 1) * self.phase_s
        return [reading.desired[pool] for reading in self.readings if begin <= reading.at_s < end]

    def moves(self, pool: str, phase: int) -> list[int]:
        """The changes of what was asked for, in their order."""
        return [after - before for before, after in pairwise(self.sizes(pool, phase)) if after != before]

    def turns(self, pool: str, phase: int) -> int:
        """How often a pool changed its direction within one phase."""
        return sum((one > 0) != (other > 0) for one, other in pairwise(self.moves(pool, phase)))

    def followed_after_s(self, phase: int, what: str = "desired") -> float | None:
        """From the swing until the pool that the phase fills had more than before."""
        pool, begin = self.phases[phase].fills, phase * self.phase_s
        before = [getattr(one, what)[pool] for one in self.readings if one.at_s < begin][-1:] or [1]
        later = (one.at_s - begin for one in self.readings if one.at_s >= begin and getattr(one, what)[pool] > before[0])
        return next(later, None)

    def to_json(self) -> dict[str, Any]:
        phases = [
            {
                "fills": shape.fills,
                "decided_after_s": self.followed_after_s(number),
                "there_after_s": self.followed_after_s(number, "ready"),
                "sizes": {pool: [self.sizes(pool, number)[0], *_turned(self.sizes(pool, number))] for pool in POOLS},
                "turns": {pool: self.turns(pool, number) for pool in POOLS},
            }
            for number, shape in enumerate(self.phases)
        ]
        return {
            "period_s": self.period_s,
            "phase_s": self.phase_s,
            "phases": phases,
            "requests": dict(self.ends),
            "decisions": self.decisions,
            "most": {pool: max(one.ready[pool] for one in self.readings) for pool in POOLS},
        }


async def swing(url: str, model: str, period_s: float, phase_s: float, shapes: list[Shape], rate: float, seed: int) -> Swing:
    """Sends Poisson arrivals at `rate` per second, `phase_s` of each shape in turn, and waits for every answer."""
    seen = Swing(period_s, phase_s, shapes)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=ANSWER_TIMEOUT_S, trust_env=False, limits=limits) as http:
        began = time.monotonic()
        async with _watched(http, url, seen, began), asyncio.TaskGroup() as asking:
            drawn, at_s = random.Random(seed), 0.0
            while (at_s := at_s + drawn.expovariate(rate)) < phase_s * len(shapes):
                await asyncio.sleep(max(0.0, began + at_s - time.monotonic()))
                asking.create_task(_ask(http, url, model, shapes[int(at_s // phase_s)], drawn.randrange(2**31), seen))
        metrics = Samples.parse((await http.get(f"{url}/metrics")).text)
    for pool in POOLS:
        name = "serval_scaling_decisions_total"
        seen.decisions[pool] = {
            reason: metrics.sum(name, pool=pool, reason=reason) for reason in metrics.by_label(name, "reason")
        }
    return seen


async def _ask(http: httpx.AsyncClient, url: str, model: str, shape: Shape, seed: int, seen: Swing) -> None:
    drawn = random.Random(seed)  # no two prompts have a beginning in common
    body = {
        "model": model,
        "prompt": [drawn.randrange(256) for _ in range(shape.prompt_tokens)],
        "max_tokens": shape.answer_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    try:
        response = await http.post(f"{url}/v1/completions", json=body)
    except httpx.HTTPError as error:
        seen.ends[type(error).__name__] += 1
        return
    if response.status_code != 200:
        seen.ends[f"status {response.status_code}"] += 1
    elif response.json()["usage"]["completion_tokens"] != shape.answer_tokens:
        seen.ends["cut"] += 1
    else:
        seen.ends["whole"] += 1


@contextlib.asynccontextmanager
async def _watched(http: httpx.AsyncClient, url: str, seen: Swing, began: float) -> AsyncIterator[None]:
    watching = asyncio.create_task(_watch(http, url, seen, began))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def _watch(http: httpx.AsyncClient, url: str, seen: Swing, began: float) -> None:
    while True:
        with contextlib.suppress(httpx.HTTPError):
            workers = (await http.get(f"{url}/workers")).json()
            metrics = Samples.parse((await http.get(f"{url}/metrics")).text)
            there = Counter(one["role"] for one in workers if not one["is_draining"])
            ready = {pool: there[pool] for pool in POOLS}
            desired = {pool: int(metrics.sum("serval_pool_desired_workers", pool=pool)) or ready[pool] for pool in POOLS}
            seen.readings.append(Reading(time.monotonic() - began, desired, ready))
        await asyncio.sleep(WATCH_PERIOD_S)


def _turned(sizes: list[int]) -> list[int]:
    """Each size that came after another."""
    return [after for before, after in pairwise(sizes) if after != before]
