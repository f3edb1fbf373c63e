"""Generated JSON schemas through the unmodified `openai` client, a disaggregated cluster and a real model: every answer is valid.

`make structured` takes 500 schemas; SERVAL_JSON_SCHEMAS says how many.
"""

import asyncio
import json
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jsonschema
import openai
import pytest
from cluster_harness import ClusterSpec, RunningCluster
from cluster_moves import Moves
from cluster_shared import Clusters

from tests.json_schemas import Schema, json_schemas

SCHEMAS = int(os.environ.get("SERVAL_JSON_SCHEMAS", "16"))
AT_ONCE = 8
MAX_TOKENS = 2048

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


async def test_every_answer_is_valid(clusters: Clusters, embedded_spec: ClusterSpec) -> None:
    cluster: RunningCluster = clusters.get(embedded_spec)
    schemas = json_schemas(SCHEMAS, seed=3)
    client = openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0, timeout=300)
    async with client as api, Moves(cluster) as moves:
        asking = Asking(api, cluster.model)
        await asking.ask_all(schemas)

    print(f"\n{len(schemas)} schemas, {asking.answers.total()} answers, {asking.tokens} tokens: {dict(asking.answers)}")
    assert not asking.wrong, f"{len(asking.wrong)} of {asking.answers.total()} answers\n" + "\n".join(asking.wrong[:10])
    assert set(asking.answers) == {way.name for way in WAYS}
    assert asking.answers.total() == len(schemas) + len(schemas) // len(WAYS)
    assert moves.of("decode", "bytes") > 0, "the prompts were not computed by the prefill worker"
