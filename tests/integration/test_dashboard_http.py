"""/dashboard over HTTP: its files, their headers, and its document."""

import asyncio
import re
from pathlib import Path

from router_support import WAIT_S, Cluster, cluster, positional_answer, write_model_folder

from router.dashboard.state import State
from serving.keys import add_key


async def test_the_page_and_all_that_it_loads_come_from_here(tmp_path: Path) -> None:
    async with cluster(write_model_folder(tmp_path / "model")) as running:
        page = (await running.http.get("/dashboard")).raise_for_status()
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        loaded = set(re.findall(r'(?:src|href)="([^"]+)"', page.text))
        assert {"dashboard/page.js", "dashboard/page.css", "dashboard/state.json"} <= loaded
        modules = (await running.http.get("/dashboard/page.js")).text + (await running.http.get("/dashboard/sections.js")).text
        loaded |= {f"dashboard/{name}" for name in re.findall(r'from "\./([^"]+)"', modules)}
        for path in loaded:
            assert "//" not in path
            (await running.http.get(f"/{path}")).raise_for_status()


async def test_nothing_foreign_may_run_and_nothing_old_is_shown(tmp_path: Path) -> None:
    async with cluster(write_model_folder(tmp_path / "model")) as running:
        for path in ("/dashboard", "/dashboard/page.js", "/dashboard/icon.svg"):
            first = (await running.http.get(path)).raise_for_status()
            policy = first.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert first.headers["x-content-type-options"] == "nosniff"
            assert first.headers["cache-control"] == "no-cache"
            again = await running.http.get(path, headers={"if-none-match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        document = await running.http.get("/dashboard/state.json")
        assert document.headers["cache-control"] == "no-store"


async def test_the_document_follows_the_router(tmp_path: Path) -> None:
    async with cluster(write_model_folder(tmp_path / "model"), slo_ttft_s=60.0) as running:
        before = await document(running)
        assert "no live prefill" in (before.router.why_not_ready or "")
        async with running.worker("prefill"), running.worker(answer=positional_answer("the stop")):
            body = {"model": "test-model", "prompt": "hello", "max_tokens": 5, "ignore_eos": True}
            (await running.http.post("/v1/completions", json=body)).raise_for_status()
            after = await document(running, ended=1)
    assert after.router.why_not_ready is None
    assert [(worker.pool, worker.health) for worker in after.workers] == [("prefill", "live"), ("decode", "live")]
    assert after.requests.outcomes == {"length": 1}
    assert after.requests.within_objectives == 1
    assert after.transfers.bytes == 1000
    assert after.tokens.generated == 5
    assert [tenant.tenant for tenant in after.cost.tenants] == ["default"]


async def test_keys_are_asked_of_callers_and_not_of_operators(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    add_key(keys, "laptop", "research")
    async with cluster(write_model_folder(tmp_path / "model"), keys_file=keys) as running:
        assert (await running.http.get("/v1/models")).status_code == 401
        assert (await running.http.get("/dashboard")).status_code == 200
        assert (await running.http.get("/dashboard/state.json")).status_code == 200


async def document(running: Cluster, ended: int = 0) -> State:
    """One in which so many requests have ended: a document is shared for half a second."""
    async with asyncio.timeout(WAIT_S):
        while True:
            answer = (await running.http.get("/dashboard/state.json")).raise_for_status()
            state = State.model_validate_json(answer.content)
            if sum(state.requests.outcomes.values()) >= ended:
                return state
