"""/openapi.json as clients get it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from router_support import cluster, write_model_folder


async def test_every_reference_leads_somewhere(tmp_path: Path) -> None:
    async with cluster(write_model_folder(tmp_path / "model")) as running:
        document = (await running.http.get("/openapi.json")).raise_for_status().json()
    names = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    references = set(_references(document))
    assert references <= names
    assert "#/components/schemas/ChatRequest" in references


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)
