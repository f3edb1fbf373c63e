"""Sends many requests, in a closed loop (so many open at any time) or an open one (at given times), behind a progress bar."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence

from benchmarks.completions import Answer, CompletionRequest, complete
from benchmarks.http_stream import OPEN, Access
from benchmarks.terminal import progress_bar

Report = Callable[[Answer], None]
Users = Callable[[Report], list[Coroutine[None, None, None]]]


class Drive:
    """One pass over `requests`. Either loop may be called once; cancelled (Ctrl-C), it returns at once with `interrupted` set
    and keeps what was answered until then."""

    def __init__(self, requests: Sequence[CompletionRequest], access: Access = OPEN) -> None:
        self._access = access
        self._requests = requests
        self.answers: list[Answer] = []
        self.interrupted = False
        self.duration_s = 0.0
        """From the first request to the last answer."""

    async def closed_loop(self, url: str, concurrency: int, timeout_s: float, what: str) -> None:
        """The next request leaves when one of `concurrency` has been answered."""
        waiting = iter(self._requests)

        async def user(report: Report) -> None:
            for request in waiting:
                report(await complete(url, request, timeout_s, access=self._access))

        await self._run(what, lambda report: [user(report) for _ in range(min(concurrency, len(self._requests)))])

    async def open_loop(self, url: str, arrivals_s: Sequence[float], timeout_s: float, what: str) -> None:
        """Request k leaves `arrivals_s[k]` seconds after the start, whatever has been answered by then."""
        started_s = time.perf_counter()

        async def user(report: Report, request: CompletionRequest, arrival_s: float) -> None:
            await asyncio.sleep(started_s + arrival_s - time.perf_counter())
            report(await complete(url, request, timeout_s, due_s=started_s + arrival_s, access=self._access))

        plan = list(zip(self._requests, arrivals_s, strict=True))
        await self._run(what, lambda report: [user(report, request, arrival_s) for request, arrival_s in plan])

    async def _run(self, what: str, users: Users) -> None:
        started_s = time.perf_counter()
        with progress_bar() as bar:
            task = bar.add_task(what, total=len(self._requests))

            def report(answer: Answer) -> None:
                self.answers.append(answer)
                bar.advance(task)

            tasks = [asyncio.create_task(user) for user in users(report)]
            try:
                await asyncio.gather(*tasks)
            except asyncio.CancelledError:
                self.interrupted = True
                for open_task in tasks:
                    open_task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                if current := asyncio.current_task():
                    current.uncancel()
        self.duration_s = time.perf_counter() - started_s
