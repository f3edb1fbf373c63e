"""Dollars per million tokens."""


def usd_per_million(gpu_hour_usd: float, tokens_per_s_per_gpu: float) -> float:
    """What a million tokens cost on GPUs that produce so many per second, all of the time."""
    return gpu_hour_usd * 1e6 / (3600 * tokens_per_s_per_gpu)
