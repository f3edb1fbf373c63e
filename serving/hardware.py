"""What this machine computes with, as far as the kernel tells."""

import shutil
from functools import cache
from pathlib import Path

BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""x86: AVX-512 BF16 or AMX; Arm: BF16. With any of them a bfloat16 product costs no more than a float32 one."""


@cache
def cpu_flags() -> frozenset[str]:
    """The CPU's features by the kernel's names; empty where the kernel does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA driver is loaded. Says nothing about torch: that needs a CUDA build too."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
