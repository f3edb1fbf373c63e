"""Seconds of processor time that other processes have spent: what they cost, whoever else uses the machine meanwhile."""

import ctypes
import os
import time
from collections.abc import Iterable


def processor_seconds(process_ids: Iterable[int]) -> float:
    """Of all threads of these processes together, since each began, to the nanosecond (/proc counts hundredths of a second).

    Raises ProcessLookupError for one that is gone.
    """
    return sum(time.clock_gettime(_clock(process_id)) for process_id in process_ids)


def _clock(process_id: int) -> int:
    """clock_getcpuclockid(3), which Python does not have."""
    clock = ctypes.c_int()
    error = ctypes.CDLL(None).clock_getcpuclockid(ctypes.c_int(process_id), ctypes.byref(clock))
    if error:
        raise ProcessLookupError(error, os.strerror(error), str(process_id))
    return clock.value
