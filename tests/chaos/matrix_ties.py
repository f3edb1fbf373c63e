"""When two answers to one request are equally right: the choice between two tokens hung on less than float32 sums agree in. Pure.

Sums in another order, as another batch or another way to the KV brings them, differ in the last bits. A greedy choice hangs on them
when two logits are as good as equal (cluster_reference.py); a drawn one when its number lies at the boundary of two tokens.
"""

import itertools
import math
from collections.abc import Sequence

from engine.draws import uniform
from protocol.sampling import SamplingParams

TIE = 1e-4
"""Of a logit, or of a probability."""


def is_tied_draw(params: SamplingParams, position: int, top: Sequence[tuple[int, float]], tokens: tuple[int, int]) -> bool:
    """Whether the draw for the token at `position` could have brought either of `tokens`. `top`: the likeliest tokens there and
    their log-probabilities, likeliest first; at least one more than top_k keeps."""
    assert params.top_k and len(top) > params.top_k, "the whole distribution must be known"
    kept = top[: params.top_k]
    if top[params.top_k - 1][1] - top[params.top_k][1] < TIE:  # which is the last one kept hangs on the same bits
        return set(tokens) <= {token for token, _ in top}
    weights = {token: math.exp(logprob / params.temperature) for token, logprob in kept}
    total = sum(weights.values())
    in_order = sorted(weights)
    if not set(tokens) <= weights.keys() or abs(in_order.index(tokens[0]) - in_order.index(tokens[1])) != 1:
        return False
    upper_ends = dict(zip(in_order, itertools.accumulate(weights[token] / total for token in in_order), strict=True))
    return abs(upper_ends[min(tokens)] - uniform(params.seed, position)) < TIE
