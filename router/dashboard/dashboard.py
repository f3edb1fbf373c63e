"""What the page needs of a running router."""

import asyncio
import time
from collections.abc import Callable
from importlib.metadata import version

from router.config import RouterConfig
from router.dashboard.state import RouterState, State
from router.dashboard.view import Patience, state_of
from router.workers import Membership
from telemetry.metrics import Metrics

SHARED_S = 0.5
"""So long a document serves all who look."""

LOOP_SHARE = 0.05
"""Of the event loop's time, at most, for making documents: with hundreds of tenants one takes tens of milliseconds."""


class Dashboard:
    """On the router's event loop. `why_not_ready`: None when all is well."""

    def __init__(
        self,
        config: RouterConfig,
        members: Membership,
        metrics: Metrics,
        why_not_ready: Callable[[], str | None],
        started_at: int,
    ) -> None:
        self._config = config
        self._members = members
        self._metrics = metrics
        self._why_not_ready = why_not_ready
        self._started_at = started_at
        # Half of what the router itself waits for: whoever looks sees it coming.
        self._patience = Patience(config.worker_silence_s / 2, config.worker_stall_s / 2)
        self._version = version("serval")
        self._document = b""
        self._good_until = 0.0

    def document(self) -> bytes:
        """The state as JSON, for everybody who asks; made anew so seldom that the loop has the rest of its time for answers."""
        now = asyncio.get_running_loop().time()
        if now >= self._good_until:
            self._document = self._state(now).model_dump_json().encode()
            took_s = asyncio.get_running_loop().time() - now
            self._good_until = now + max(SHARED_S, took_s / LOOP_SHARE)
        return self._document

    def _state(self, now: float) -> State:
        router = RouterState(
            name=self._config.name,
            model=self._config.model,
            serval_version=self._version,
            why_not_ready=self._why_not_ready(),
            slo_ttft_s=self._config.slo_ttft_s,
            slo_itl_s=self._config.slo_itl_s,
        )
        return state_of(self._metrics, self._members.all, router, self._patience, now, time.time(), self._started_at)
