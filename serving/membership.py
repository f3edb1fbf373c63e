"""Asks a router who its workers are."""

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import Mapping, Set
from typing import Any

import httpx

POLL_PERIOD_S = 0.1
REQUEST_TIMEOUT_S = 5.0


async def workers_of(client: httpx.AsyncClient, router_url: str) -> set[str]:
    """Names of the workers that have joined; none while the router does not answer."""
    try:
        return {worker["name"] for worker in await _get(client, router_url)}
    except httpx.HTTPError:
        return set()


async def wait_until_joined(router_url: str, names: Set[str], trust: ssl.SSLContext | bool = False) -> None:
    """Returns once all `names` are among the router's workers. The caller sets the deadline. `trust`: httpx's `verify`."""
    async with httpx.AsyncClient(timeout=REQUEST_TIMEOUT_S, trust_env=False, verify=trust) as client:
        while True:
            if names <= await workers_of(client, router_url):
                return
            await asyncio.sleep(POLL_PERIOD_S)


async def wait_until_there_are(router_url: str, counts: Mapping[str, int], trust: ssl.SSLContext | bool = False) -> None:
    """Likewise, once so many workers of each role have joined."""
    async with httpx.AsyncClient(timeout=REQUEST_TIMEOUT_S, trust_env=False, verify=trust) as client:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                there = Counter(worker["role"] for worker in await _get(client, router_url))
                if all(there[role] >= count for role, count in counts.items()):
                    return
            await asyncio.sleep(POLL_PERIOD_S)


async def describe_workers(router_url: str, trust: ssl.SSLContext | bool = False) -> list[dict[str, Any]]:
    """What the router says of each worker, by name: role, address, metrics_address and more. Raises httpx.HTTPError."""
    async with httpx.AsyncClient(timeout=REQUEST_TIMEOUT_S, trust_env=False, verify=trust) as client:
        return sorted(await _get(client, router_url), key=lambda worker: str(worker["name"]))


async def _get(client: httpx.AsyncClient, router_url: str) -> list[dict[str, Any]]:
    response = await client.get(f"{router_url}/workers")
    response.raise_for_status()
    workers: list[dict[str, Any]] = response.json()
    return workers
