"""A decode step as a CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch

WARM_UPS = 2
"""Calls before the capture: libraries choose and compile their kernels, which they cannot do in it."""

MemoryPool = Any
"""What torch.cuda.graph_pool_handle gives; torch names its type in a private module."""


class StepGraph:
    """Work over tensors that stay where they are. As long as it is not captured, a replay is a call."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._graph: torch.cuda.CUDAGraph | None = None

    def capture(self, memory: MemoryPool) -> None:
        """`memory`: shared with graphs that never run at the same time. Computes the work too: whatever it writes is written.

        Raises RuntimeError where something in it waits for the device.
        """
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # What other threads do meanwhile, such as registering memory with a transport, is none of the capture's business.
        with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
            self._work()
        self._graph = graph

    def replay(self) -> None:
        """Once more, over what the tensors hold when the device gets there. Returns at once where it is captured."""
        if self._graph is None:
            self._work()
        else:
            self._graph.replay()
