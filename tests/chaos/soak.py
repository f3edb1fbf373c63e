"""A soak: thousands of requests of every kind, through clusters whose workers are killed and stopped and whose KV is spoiled.

    make chaos-soak                                        at most 15 minutes; the report goes to chaos/soak.json
    PYTHONPATH=.:tests/cluster python tests/chaos/soak.py --requests 3000 --seed 7 --out chaos

After a warm-up, in waves. After each the cluster must be idle and balanced (free + cached = all), the bill must be what the engines
computed, and every answer, also the beginning of one that was cancelled, must be what one process says that moves no KV, guesses
nothing and is never disturbed. The same seed asks the same and draws the same faults. Ends with 0 when all of it is so, 1 when not.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from chaos_asks import ChaosAsk, OneProcess, mixed_ask
from chaos_bill import Bill, settled_bill
from chaos_clients import Clients, Said
from chaos_watch import Trend, Watch
from cluster_harness import ClusterSpec, RunningCluster, until
from tokenizers import Tokenizer

from benchmarks.paired import Machine
from engine.tiny import write_tiny_llama

WAVE = 250
AT_ONCE = 64
PREFIXES = 12
IDLE_TIMEOUT_S = 60.0
BACK_TIMEOUT_S = 120.0
STOPPED_S = 5.0
WANTED_SUCCESS = 0.999
WARM_UP = 600
"""Requests before memory is looked at. What a worker makes for the first of each kind and for each size of a batch stays: machine
code of matrix products above all, half a MiB for each size. One prefill worker measured alone grew by 100 MiB in its first 600
mixed requests, by 12 in the next and by 1 in the 600 after them (docs/reliability.md)."""
GROWN_RSS_MIB = 24.0
"""From the second quarter of a part to its last. Of 1,800 requests a worker of two has 450 between them: 55 KiB kept of each. A
worker meets some sizes late, most of all a decode worker that computes a prompt because a prefill worker died."""
GROWN_DESCRIPTORS = 8
FAULTS = ("none", "kill", "kill", "stop")
VICTIMS = ("prefill-1", "decode-1")
"""The others live all along: what they keep of peers that come and go is to show."""

SETTINGS: dict[str, Any] = {
    "engine__dtype": "float32",
    "engine__kv_memory_bytes": "12MiB",
    "engine__max_sequences": 32,
    "engine__max_batch_tokens": 64,  # prompts in up to eight chunks; and few sizes of a step, see WARM_UP
    "engine__check_integrity": True,
    "transfer__landing_bytes": "4MiB",
    "transfer__corrupt_one_in": 40,
    "decode__first_token_timeout_s": 8,
    "cluster__deaths_per_minute": 1000,
}


@dataclass(frozen=True)
class Part:
    """A share of the requests, through a cluster of its own."""

    name: str
    share: float
    settings: dict[str, Any]


PARTS = (
    Part("every prompt moves, layer by layer", 0.6, {"decode__local_prefill_max_tokens": 0}),
    Part(
        "n-grams guess, whole prompts move or none",
        0.4,
        {"engine__speculation": "ngram", "transfer__mode": "whole_prompt", "router__policy": "round_robin"},
    ),
)


@dataclass
class Soaked:
    """What came of one part."""

    part: str
    requests: int = 0
    answers: int = 0
    tokens: int = 0
    kinds: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    ended: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    faults: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    outcomes: dict[str, int] = field(default_factory=dict)
    idle_moments: int = 0
    mismatches_caught: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    processes: list[Trend] = field(default_factory=list)
    bill: Bill = field(default_factory=dict)
    """At the last idle moment."""
    wrong: list[str] = field(default_factory=list)


class Soak:
    """One part, wave by wave."""

    def __init__(self, part: Part, cluster: RunningCluster, one_process: OneProcess, draw: Random, until_s: float) -> None:
        self._cluster = cluster
        self._one_process = one_process
        self._draw = draw
        self._until_s = until_s
        self._tokenizer = Tokenizer.from_file(str(cluster.spec.model / "tokenizer.json"))
        self.found = Soaked(part.name)

    async def run(self, requests: int, show: Callable[[Soaked], None]) -> Soaked:
        found, started_s = self.found, time.monotonic()
        await self._cluster.assert_idle(IDLE_TIMEOUT_S)
        async with Clients(self._cluster.grpc, self._cluster.url, self._cluster.model) as clients:
            await self._warm_up(clients)
            async with Watch(self._cluster) as watch:
                while found.requests < requests and time.monotonic() < self._until_s and len(found.wrong) < 20:
                    await self._wave(clients, min(WAVE, requests - found.requests))
                    found.seconds = round(time.monotonic() - started_s, 1)
                    show(found)
        if found.requests < requests:
            found.wrong.append(f"{found.requests} of {requests} requests only: out of time, or too much was wrong")
        found.processes = [trend for trend in watch.trends() if trend.name not in VICTIMS]
        found.wrong += [each for trend in found.processes for each in trend.grown(GROWN_RSS_MIB, GROWN_DESCRIPTORS)]
        scraped = await self._cluster.scrape()
        found.mismatches_caught = int(sum(each.sum("serval_kv_digest_mismatches_total") for each in scraped.values()))
        found.cached_tokens = int(sum(each.sum("serval_prefix_cache_hits_total") for each in scraped.values()))
        return found

    async def _warm_up(self, clients: Clients) -> None:
        """Requests of every kind, not compared and with no fault beside the flipped bits, so that what is made once is there."""
        turn = asyncio.Semaphore(AT_ONCE)

        async def ask_in_turn(ask: ChaosAsk) -> Said:
            async with turn:
                return await clients.ask(ask)

        said = await asyncio.gather(*(ask_in_turn(ask) for ask in _asks(Random("warm-up"), WARM_UP, first=0)))
        self.found.wrong += [f"warming up: {one.ended}" for one in said if one.ended not in ("done", "cancelled")][:5]
        await self._cluster.assert_idle(IDLE_TIMEOUT_S)

    async def _wave(self, clients: Clients, count: int) -> None:
        found, draw = self.found, self._draw
        asks = _asks(draw, count, first=found.requests)
        fault, victim = draw.choice(FAULTS), draw.choice(VICTIMS)
        over_http = [draw.random() < 0.4 and _fits_http(ask) for ask in asks]
        await until(self._cluster.all_joined, "every worker is there", BACK_TIMEOUT_S)
        before = await self._cluster.outcomes()

        turn = asyncio.Semaphore(AT_ONCE)
        begun = asyncio.Event()

        async def ask_in_turn(number: int) -> Said:
            async with turn:
                if number >= count // 3:
                    begun.set()
                return await clients.ask(asks[number], over_http=over_http[number])

        asking = [asyncio.create_task(ask_in_turn(number)) for number in range(count)]
        await begun.wait()
        await self._hit(fault, victim)
        said = await asyncio.gather(*asking)
        found.faults[f"{fault} {victim}" if fault != "none" else "none"] += 1
        await self._check(said, before)

    async def _hit(self, fault: str, victim: str) -> None:
        if fault == "none":
            return
        (pid,) = [worker.pid for worker in await self._cluster.workers() if worker.name == victim]
        self._cluster.note_pids()
        if fault == "kill":
            os.kill(pid, signal.SIGKILL)
            await until(lambda: self._is_gone(pid), "the router noticed", 30)
            return
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(STOPPED_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _is_gone(self, pid: int) -> bool:
        return all(worker.pid != pid for worker in await self._cluster.workers())

    async def _check(self, said: list[Said], before: dict[str, int]) -> None:
        """At an idle moment: balance, outcomes, every answer."""
        found = self.found
        try:
            await until(self._cluster.all_joined, "every worker is there", BACK_TIMEOUT_S)
            await self._cluster.assert_idle(IDLE_TIMEOUT_S)
            found.idle_moments += 1
        except AssertionError as error:
            found.wrong.append(str(error)[:2000])
        found.bill, unbalanced = await settled_bill(self._cluster)
        found.wrong += unbalanced
        after = await self._cluster.outcomes()
        grown = {outcome: count - before.get(outcome, 0) for outcome, count in after.items()}
        found.outcomes = after
        found.wrong += _outcomes_wrong(said, grown)
        found.wrong += await asyncio.to_thread(self._differences, said)
        for one in said:
            found.requests += 1
            found.answers += one.ask.answers
            found.tokens += one.num_tokens
            found.ended[one.ended] += 1
            for kind in _kinds(one):
                found.kinds[kind] += 1

    def _differences(self, said: list[Said]) -> list[str]:
        singles = [one.ask.single(index) for one in said for index in range(one.ask.answers)]
        wanted = iter(self._one_process.answers(singles))
        wrong = []
        for one in said:
            for index in range(one.ask.answers):
                expected, single = next(wanted), one.ask.single(index)
                if one.over_http:
                    text, got = (each.rstrip("\ufffd") for each in (self._tokenizer.decode(list(expected.token_ids)), one.text))
                    is_right = text == got if one.is_success else text.startswith(got)
                    difference = None if is_right else f"{got[-40:]!r} where one process has {text[-40:]!r}"
                else:
                    is_whole = index in one.finishes
                    got_tokens = one.tokens.get(index, [])
                    difference = self._one_process.difference(single, got_tokens, expected, is_whole=is_whole)
                    if difference is None and is_whole and one.finishes[index] != expected.finish:
                        difference = f"finish {one.finishes[index]} where one process has {expected.finish}"
                if difference:
                    wrong.append(f"request {one.ask.number} answer {index} ({', '.join(_kinds(one))}): {difference}")
        return wrong


def _asks(draw: Random, count: int, first: int) -> list[ChaosAsk]:
    """So many, numbered from `first` on; some of them begin alike."""
    prefixes = [tuple(draw.randrange(256) for _ in range(draw.choice((16, 64, 160)))) for _ in range(PREFIXES)]
    return [mixed_ask(draw, first + number, prefixes) for number in range(count)]


def _fits_http(ask: ChaosAsk) -> bool:
    """The client over HTTP says no more than this."""
    params = ask.params
    is_plain = params.repetition_penalty == 1.0 and not ask.structure and params.logprobs is None
    return is_plain and ask.answers == 1 and ask.cancel_after is None


def _kinds(said: Said) -> list[str]:
    ask, params = said.ask, said.ask.params
    named = {
        "greedy": params.is_greedy,
        "seeded": not params.is_greedy,
        "over HTTP": said.over_http,
        "cancelled": ask.cancel_after is not None,
        "several answers": ask.answers > 1,
        "penalties": params.repetition_penalty != 1.0,
        "logprobs": params.logprobs is not None,
        ask.structure: bool(ask.structure),
    }
    return [name for name, holds in named.items() if holds]


def _outcomes_wrong(said: list[Said], grown: dict[str, int]) -> list[str]:
    """Every answer is counted once. One whose client left may have ended before the router heard of it, or never have begun."""
    left = sum(one.ask.answers for one in said if one.ended == "cancelled")
    served = sum(one.ask.answers for one in said if one.is_success)
    failed = sum(one.ask.answers for one in said if not one.is_success and one.ended != "cancelled")
    successes = grown.get("stop", 0) + grown.get("length", 0)
    others = sum(count for outcome, count in grown.items() if outcome not in ("stop", "length", "cancelled"))
    total = sum(grown.values())
    if (
        served <= successes <= served + left + failed
        and others <= failed
        and served + failed <= total <= served + failed + left
    ):
        return []
    return [f"served {served}, failed {failed}, left {left}, but the router counted {grown}"]


def run(requests: int, minutes: float, seed: int, out: Path, settings: list[str]) -> int:
    machine, ends_s = Machine.here(), time.monotonic() + minutes * 60
    out.mkdir(parents=True, exist_ok=True)
    model = write_tiny_llama(out / "model", layers=2)
    one_process = OneProcess(model)
    parts = []
    for number, part in enumerate(PARTS):
        left_s = ends_s - time.monotonic()
        until_s = time.monotonic() + left_s * part.share / sum(each.share for each in PARTS[number:])
        spec = ClusterSpec(model, 2, 2).with_settings(**SETTINGS, **part.settings)
        spec = dataclasses.replace(spec, settings=(*spec.settings, *(tuple(each.split("=", 1)) for each in settings)))
        cluster = RunningCluster.start(spec, out / f"soak-{number}.log")
        try:
            soak = Soak(part, cluster, one_process, Random(f"{seed} {part.name}"), until_s)
            found = asyncio.run(soak.run(round(requests * part.share), _show))
            try:
                cluster.stop()
            except AssertionError as error:
                found.wrong.append(str(error)[:2000])
        except BaseException:
            cluster.kill()
            raise
        parts.append(found)
    return _report(machine, seed, parts, one_process.ties, out)


def _show(found: Soaked) -> None:
    print(
        f"{found.part}: {found.requests} requests, {found.seconds:.0f} s, {sum(found.faults.values()) - found.faults['none']} "
        f"waves with a fault, {len(found.wrong)} wrong",
        flush=True,
    )


def _as_json(part: Soaked) -> dict[str, Any]:
    plain = {name: dict(value) if isinstance(value, dict) else value for name, value in vars(part).items()}
    return plain | {"processes": [dataclasses.asdict(trend) for trend in part.processes]}


def _report(machine: Machine, seed: int, parts: list[Soaked], ties: int, out: Path) -> int:
    ended = sum((Counter(part.ended) for part in parts), Counter[str]())
    tried = ended.total() - ended["cancelled"]
    success_rate = ended["done"] / max(1, tried)
    wrong = [f"{part.part}: {each}" for part in parts for each in part.wrong]
    if success_rate < WANTED_SUCCESS:
        wrong.append(f"success rate {success_rate:.5f}, wanted {WANTED_SUCCESS}")
    found = {
        "machine": machine.model_dump(),
        "seed": seed,
        "requests": sum(part.requests for part in parts),
        "answers": sum(part.answers for part in parts),
        "tokens": sum(part.tokens for part in parts),
        "success_rate": success_rate,
        "ties": ties,
        "parts": [_as_json(part) for part in parts],
        "wrong": wrong,
    }
    (out / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name not in ("machine",)}, indent=1))
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=15.0, help="the soak ends then, however far it got, and says so")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the clusters")
    parser.add_argument("--out", type=Path, default=Path("chaos"), help="folder of the report")
    given = parser.parse_args()
    return run(given.requests, given.minutes, given.seed, given.out, given.set)


if __name__ == "__main__":
    sys.exit(main())
