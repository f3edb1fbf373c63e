"""Uniform random numbers keyed by (seed, position): the same on every machine, in any batch, in any order."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def uniform(seed: int, position: int) -> float:
    """A number 0 ≤ u < 1 with 53 random bits for the token at `position` (0 is the prompt's first) of a request with `seed`.

    SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014): the seed is mixed into a stream of its
    own, of which `position` is the index, so neighbouring seeds share nothing.
    """
    return (_mix(_mix(seed + _GOLDEN) + (position + 1) * _GOLDEN) >> 11) * 2.0**-53


def _mix(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
