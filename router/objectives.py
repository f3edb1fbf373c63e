"""What users are promised about speed, and whether one answer kept it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Objectives:
    """Seconds; None: no such objective, which every answer keeps."""

    ttft_s: float | None = None
    itl_s: float | None = None

    def are_kept(self, ttft_s: float, itl_s: float | None) -> bool:
        """`itl_s`: the mean between two tokens of the answer; None for an answer of one token."""
        is_late = self.ttft_s is not None and ttft_s > self.ttft_s
        is_slow = self.itl_s is not None and itl_s is not None and itl_s > self.itl_s
        return not (is_late or is_slow)


NONE = Objectives()
