"""Waiting for a state of another process."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

LOOK_PERIOD_S = 0.02


async def until(condition: Callable[[], Any], otherwise: Exception, timeout_s: float) -> None:
    """Polls `condition`, which returns a value or an awaitable; raises `otherwise` at the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if await result if isinstance(result, Awaitable) else result:
            return
        if time.monotonic() > deadline:
            raise otherwise
        await asyncio.sleep(LOOK_PERIOD_S)
