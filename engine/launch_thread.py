"""A thread that computes what another launches, as a GPU does by itself: so on a CPU, too, the engine has its hands free."""

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

Work = tuple[Future[Any], Callable[[], Any]]


class LaunchThread:
    """Computes in the order of `launch`. Torch and the native kernels compute without the interpreter lock."""

    def __init__(self, threads: int | None) -> None:
        """`threads`: of one matrix product; OpenMP keeps that number per thread. None: torch's own choice."""
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        # A daemon: whoever ends the process does not wait for a forward pass. It ends by itself with its last user.
        threading.Thread(target=_compute, args=(self._queue, threads), name="model", daemon=True).start()
        weakref.finalize(self, self._queue.put, None)

    def launch(self, work: Callable[[], Result]) -> "Future[Result]":
        future: Future[Result] = Future()
        self._queue.put((future, work))
        return future


def _compute(launched: "queue.SimpleQueue[Work | None]", threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    with torch.inference_mode():
        while (item := launched.get()) is not None:
            future, work = item
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)
            del item, future, work  # what was computed is its reader's alone
