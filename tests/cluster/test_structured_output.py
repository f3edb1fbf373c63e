"""Generated JSON schemas through the unmodified `openai` client, a disaggregated cluster and a real model: every answer is valid.

Its workers guess by n-grams, and one of the two that decode is killed in the middle, again and again. `make structured` takes 500
schemas; SERVAL_JSON_SCHEMAS says how many.
"""

import asyncio
import dataclasses
import json
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jsonschema
import openai
import pytest
from cluster_harness import ClusterSpec, RunningCluster, until
from cluster_shared import Clusters

from tests.json_schemas import Schema, json_schemas

SCHEMAS = int(os.environ.get("SERVAL_JSON_SCHEMAS", "8"))
AT_ONCE = 8
MAX_TOKENS = 2048
FIRST_KILL, KILL_EVERY = 4, 64
"""Answers before the first kill, and between two of them."""
VICTIM = "decode-1"
RESTART_TIMEOUT_S = 60.0

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300 + 6 * SCHEMAS)]


@dataclass(frozen=True)
class Way:
    """How a schema is asked for."""

    name: str
    temperature: float
    streams: bool = False
    n: int = 1


WAYS = (
    Way("greedy", 0.0),
    Way("random", 1.0),
    Way("greedy, streamed", 0.0, streams=True),
    Way("random, streamed", 1.0, streams=True),
    Way("two answers", 1.0, n=2),
)


class Asking:
    """Each schema in one of the ways, a few at once; gathers what is wrong."""

    def __init__(self, api: openai.AsyncOpenAI, model: str) -> None:
        self._api = api
        self._model = model
        self._turn = asyncio.Semaphore(AT_ONCE)
        self.wrong: list[str] = []
        self.answers: Counter[str] = Counter()
        self.tokens = 0

    async def ask_all(self, schemas: list[Schema]) -> None:
        await asyncio.gather(*(self._ask(index, schema) for index, schema in enumerate(schemas)))

    async def _ask(self, index: int, schema: Schema) -> None:
        way = WAYS[index % len(WAYS)]
        async with self._turn:
            for text, finish_reason in await self._answers(index, schema, way):
                self.answers[way.name] += 1
                if problem := _problem(schema, text, finish_reason):
                    self.wrong.append(f"{index} ({way.name}): {problem}\n  schema {json.dumps(schema)}\n  answer {text!r}")

    async def _answers(self, index: int, schema: Schema, way: Way) -> list[tuple[str, str | None]]:
        ask: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": f"Write an example document, number {index}, as JSON."}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "document", "schema": schema, "strict": True}},
            "temperature": way.temperature,
            "seed": index,
            "n": way.n,
            "max_tokens": MAX_TOKENS,
        }
        if not way.streams:
            answer = await self._api.chat.completions.create(**ask)
            self.tokens += answer.usage.completion_tokens
            return [(choice.message.content or "", choice.finish_reason) for choice in answer.choices]
        text, finish_reason = "", None
        stream = await self._api.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
        async for chunk in stream:
            self.tokens += chunk.usage.completion_tokens if chunk.usage else 0
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish_reason = choice.finish_reason or finish_reason
        return [(text, finish_reason)]


def _problem(schema: Schema, text: str, finish_reason: str | None) -> str | None:
    if finish_reason != "stop":
        return f"finish_reason {finish_reason}"
    try:
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
    except (json.JSONDecodeError, jsonschema.ValidationError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None


class Killer:
    """Kills one of the decode workers while it answers, and again when it is back and enough has been answered."""

    def __init__(self, cluster: RunningCluster, asking: Asking) -> None:
        self._cluster = cluster
        self._asking = asking
        self.kills = 0

    async def run(self) -> None:
        await self._kill_after(FIRST_KILL)
        while True:
            await self._kill_after(self._asking.answers.total() + KILL_EVERY)

    async def _kill_after(self, answers: int) -> None:
        await until(lambda: self._asking.answers.total() >= answers, f"{answers} answers", 6.0 * SCHEMAS)
        await until(self._victim_answers, f"{VICTIM} answers somebody", RESTART_TIMEOUT_S)
        killed = await self._cluster.kill_worker(VICTIM)
        self.kills += 1
        await until(lambda: self._cluster.all_joined(without=killed.incarnation), "it is back", RESTART_TIMEOUT_S)

    async def _victim_answers(self) -> bool:
        found = await self._cluster.scrape()
        return VICTIM in found and found[VICTIM].sum("serval_num_requests_running") > 0


async def placed_and_ended(cluster: RunningCluster) -> tuple[float, float]:
    """How often a decode worker was chosen, and how many requests have ended."""
    router = (await cluster.scrape())["router"]
    return router.sum("serval_placements_total", pool="decode"), router.sum("serval_requests_total")


@pytest.mark.long
async def test_every_answer_is_valid(clusters: Clusters, embedded_spec: ClusterSpec) -> None:
    cluster: RunningCluster = clusters.get(dataclasses.replace(embedded_spec, decode=2))
    schemas = json_schemas(SCHEMAS, seed=3)
    client = openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0, timeout=300)
    placed_before, ended_before = await placed_and_ended(cluster)
    async with client as api:
        asking = Asking(api, cluster.model)
        killer = Killer(cluster, asking)
        killing = asyncio.create_task(killer.run())
        try:
            await asking.ask_all(schemas)
        finally:
            killing.cancel()
            await asyncio.wait({killing})
    await until(cluster.all_joined, "all are back", RESTART_TIMEOUT_S)
    await cluster.assert_idle()

    placed, ended = await placed_and_ended(cluster)
    went_on = (placed - placed_before) - (ended - ended_before)
    found = await cluster.scrape()
    guessed = found["decode-0"].sum("serval_spec_decode_num_draft_tokens_total")
    right = found["decode-0"].sum("serval_spec_decode_num_accepted_tokens_total")
    print(f"\n{len(schemas)} schemas, {asking.answers.total()} answers, {asking.tokens} tokens: {dict(asking.answers)}")
    print(
        f"{killer.kills} kills, {went_on:.0f} answers went on elsewhere; at decode-0 {right:.0f} of {guessed:.0f} guesses held"
    )
    assert not asking.wrong, f"{len(asking.wrong)} of {asking.answers.total()} answers\n" + "\n".join(asking.wrong[:10])
    assert set(asking.answers) == {way.name for way in WAYS}
    assert asking.answers.total() == len(schemas) + len(schemas) // len(WAYS)
    assert killer.kills > 0
    assert went_on > 0, "nobody was being answered there"
    assert right > 0, "no guess held"
    assert found["prefill-0"].sum("serval_kv_transfer_bytes_total") > 0, "the prompts were not computed by the prefill worker"
