"""For tests of tools: a cluster whose context holds descriptions of tools, and workers that say what a test wants said."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from protocol import cluster_pb2
from tests.integration.router_support import EOS, Answer, Cluster, byte_level_tokenizer, cluster, write_model_folder

TOOLS_CONTEXT = 4096
WEATHER_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def said(text: str) -> Answer:
    """Says `text` and ends."""
    tokenizer = byte_level_tokenizer()
    tokens = [*tokenizer.encode(text).ids, tokenizer.token_to_id(EOS)]
    return lambda submit: tokens[: submit.sampling.max_tokens]


def call_text(name: str, arguments: Any) -> str:
    """As Hermes and Qwen models write it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


def prompt_of(submit: cluster_pb2.Submit) -> str:
    return str(byte_level_tokenizer().decode(list(submit.prompt), skip_special_tokens=False))


@contextlib.asynccontextmanager
async def tools_cluster(folder: Path, **config: object) -> AsyncIterator[Cluster]:
    write_model_folder(folder)
    words = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**words, "max_position_embeddings": TOOLS_CONTEXT}))
    async with cluster(folder, **config) as one, one.worker("prefill", max_model_len=TOOLS_CONTEXT):
        yield one
