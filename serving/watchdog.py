"""Asks a process over HTTP whether it goes on, and tells when it has not for too long: one that stands still cannot say so."""

import asyncio
import ssl

import httpx

LOOK_PERIOD_S = 1.0
ANSWER_TIMEOUT_S = 5.0


async def until_silent(url: str, timeout_s: float, trust: ssl.SSLContext | bool = False) -> str:
    """Returns once nobody has answered well at `url` for `timeout_s`, with what was the matter last. `trust`: httpx's `verify`.

    Time in which this process itself stood still does not count.
    """
    silent_s, reason = 0.0, ""
    async with httpx.AsyncClient(timeout=ANSWER_TIMEOUT_S, trust_env=False, verify=trust) as client:
        while silent_s < timeout_s:
            began = asyncio.get_running_loop().time()
            reason = await _why_not(client, url)
            await asyncio.sleep(LOOK_PERIOD_S)
            took_s = asyncio.get_running_loop().time() - began
            silent_s = silent_s + min(took_s, LOOK_PERIOD_S + ANSWER_TIMEOUT_S) if reason else 0.0
    return reason


async def _why_not(client: httpx.AsyncClient, url: str) -> str:
    """Empty: all is well."""
    try:
        answer = await client.get(url)
    except httpx.HTTPError as error:
        return f"it does not answer ({type(error).__name__})"
    return "" if answer.is_success else answer.text.strip()[:200]
