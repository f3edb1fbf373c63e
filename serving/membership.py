"""Asks a router who its workers are."""

import asyncio
from collections.abc import Set

import httpx

POLL_PERIOD_S = 0.1
REQUEST_TIMEOUT_S = 5.0


async def workers_of(client: httpx.AsyncClient, router_url: str) -> set[str]:
    """Names of the workers that have joined; none while the router does not answer."""
    try:
        response = await client.get(f"{router_url}/workers")
        response.raise_for_status()
    except httpx.HTTPError:
        return set()
    return {worker["name"] for worker in response.json()}


async def wait_until_joined(router_url: str, names: Set[str]) -> None:
    """Returns once all `names` are among the router's workers. The caller sets the deadline."""
    async with httpx.AsyncClient(timeout=REQUEST_TIMEOUT_S, trust_env=False) as client:
        while True:
            if names <= await workers_of(client, router_url):
                return
            await asyncio.sleep(POLL_PERIOD_S)
