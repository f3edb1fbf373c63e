"""A client that sends more than it may: a process of its own, so that what it takes is not taken from who is measured beside it.

Asked `{"rate": N}` it sends N requests per second from then on, whatever becomes of them, and answers what became of those
before. It is started by benchmarks/fairness.py.
"""

import argparse
import asyncio
from collections import Counter
from random import Random

import orjson

from benchmarks.completions import CompletionRequest
from benchmarks.http_stream import Access, ProtocolError, Refused, post
from benchmarks.router_cost.pipe import Json, serve
from benchmarks.workload import token_prompt

TICK_S = 0.01
ANSWER_TIMEOUT_S = 60.0


class Flood:
    """Open loop: nothing slows it down but the rate that it was told."""

    def __init__(self, url: str, model: str, access: Access, prompt_tokens: int, answer_tokens: int, vocabulary: int) -> None:
        self._url = url
        self._model = model
        self._access = access
        self._prompt_tokens = prompt_tokens
        self._answer_tokens = answer_tokens
        self._vocabulary = vocabulary
        self._random = Random(1)
        self._rate = 0.0
        self._open: set[asyncio.Task[None]] = set()
        self._ends: Counter[str] = Counter()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        due, owed = loop.time(), 0.0
        while True:
            due += TICK_S
            await asyncio.sleep(max(0.0, due - loop.time()))
            owed += self._rate * TICK_S
            while owed >= 1:
                owed -= 1
                task = asyncio.create_task(self._ask())
                self._open.add(task)
                task.add_done_callback(self._open.discard)

    async def change_rate(self, question: Json) -> Json:
        """At rate 0 it hangs up: what is still open is cancelled."""
        self._rate = float(question["rate"])
        if not self._rate:
            for task in list(self._open):
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)
        ends, self._ends = self._ends, Counter()
        return {"ends": ends}

    async def _ask(self) -> None:
        prompt = token_prompt(self._random, self._prompt_tokens, self._vocabulary)
        request = CompletionRequest(self._model, prompt, self._answer_tokens)
        self._ends["sent"] += 1
        try:
            async with (
                asyncio.timeout(ANSWER_TIMEOUT_S),
                post(self._url, "/v1/completions", orjson.dumps(request.body()), self._access) as pieces,
            ):
                async for _ in pieces:
                    pass
            self._ends["200"] += 1
        except Refused as refusal:
            self._ends[str(refusal.status)] += 1
        except (TimeoutError, OSError, asyncio.IncompleteReadError, ProtocolError) as error:
            self._ends[type(error).__name__] += 1


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--isl", type=int, required=True)
    parser.add_argument("--osl", type=int, required=True)
    parser.add_argument("--vocabulary", type=int, required=True)
    given = parser.parse_args()
    flood = Flood(given.url, given.model, Access(given.key), given.isl, given.osl, given.vocabulary)
    sending = asyncio.create_task(flood.run())
    await serve({}, flood.change_rate)
    sending.cancel()


if __name__ == "__main__":
    asyncio.run(main())
