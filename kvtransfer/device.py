"""CUDA in few words: nothing here happens for a pool in main memory."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """The calling thread works on a stream of its own, so that it does not wait for the engine's kernels."""
    if device.type == "cuda":
        with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
            yield
    else:
        yield


def wait_for_stream(device: torch.device) -> None:
    """Until everything the calling thread has asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
