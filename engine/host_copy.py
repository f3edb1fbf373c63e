"""A tensor on its way to the host."""

import torch


class HostCopy:
    """What int64 `numbers` held when this was made, whatever is written to them afterwards."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        if numbers.device.type != "cuda":
            self._numbers = numbers.clone()
            return
        # So that the reader waits for what was launched until now, and not for what comes after it.
        pinned = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        self._numbers = pinned.copy_(numbers, non_blocking=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record()

    def read(self) -> list[int]:
        """Waits for the device."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[int] = self._numbers.tolist()
        return numbers
