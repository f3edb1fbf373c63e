"""GPUs that can be planned for. Figures are the makers', without sparsity; how much of them is reached is in overheads.py."""

from dataclasses import dataclass

from protocol.errors import ConfigError

GB = 10**9
TERA = 10**12


@dataclass(frozen=True)
class Gpu:
    """One GPU and its way to the others."""

    name: str
    bf16_flops: float
    """Per second."""
    fp8_flops: float
    """Per second; as bf16's where the GPU has no 8-bit products."""
    memory_bytes: float
    memory_bytes_per_s: float
    nvlink_bytes_per_s: float
    """To its neighbours in the node, in one direction."""
    network_bytes_per_s: float
    """To other nodes, in one direction: one 400 Gb/s card per GPU, as in the makers' own clusters."""

    def flops(self, value_bytes: int) -> float:
        """Per second for products of values of so many bytes."""
        return self.fp8_flops if value_bytes == 1 else self.bf16_flops


# NVIDIA's data sheets. The H800 is an H100 with less NVLink, the H20 one with less compute.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 312 * TERA, 312 * TERA, 80 * GB, 2039 * GB, 300 * GB, 25 * GB),
        Gpu("h20", 148 * TERA, 296 * TERA, 96 * GB, 4000 * GB, 450 * GB, 50 * GB),
        Gpu("h100", 989 * TERA, 1979 * TERA, 80 * GB, 3350 * GB, 450 * GB, 50 * GB),
        Gpu("h200", 989 * TERA, 1979 * TERA, 141 * GB, 4800 * GB, 450 * GB, 50 * GB),
        Gpu("h800", 989 * TERA, 1979 * TERA, 80 * GB, 3350 * GB, 200 * GB, 50 * GB),
        Gpu("b200", 2250 * TERA, 4500 * TERA, 180 * GB, 8000 * GB, 900 * GB, 50 * GB),
    )
}


def find_gpu(name: str) -> Gpu:
    """By name. Raises ConfigError."""
    if name.lower() not in GPUS:
        raise ConfigError(f"gpu: {name} is not known; known are {', '.join(GPUS)}")
    return GPUS[name.lower()]
