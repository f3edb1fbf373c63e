"""Two seeded answers count as the same only where the draw lay at the boundary of the two tokens."""

import math

from matrix_ties import is_tied_draw

from engine.draws import uniform
from protocol.sampling import SamplingParams

POSITION = 17


def test_only_neighbours_at_the_drawn_number_are_tied() -> None:
    params = SamplingParams(max_tokens=4, temperature=1.0, top_k=2, seed=5)
    number = uniform(params.seed, POSITION)
    at_boundary = [(7, math.log(number)), (9, math.log(1 - number)), (3, -50.0)]
    assert is_tied_draw(params, POSITION, sorted(at_boundary, key=lambda one: -one[1]), (7, 9))
    assert not is_tied_draw(params, POSITION, sorted(at_boundary, key=lambda one: -one[1]), (7, 3))
    elsewhere = number / 2
    apart = [(7, math.log(elsewhere)), (9, math.log(1 - elsewhere)), (3, -50.0)]
    assert not is_tied_draw(params, POSITION, sorted(apart, key=lambda one: -one[1]), (7, 9))


def test_who_is_kept_can_be_a_tie_too() -> None:
    params = SamplingParams(max_tokens=4, temperature=1.0, top_k=2, seed=5)
    assert is_tied_draw(params, POSITION, [(7, -0.5), (9, -2.0), (3, -2.00001)], (3, 9))
    assert not is_tied_draw(params, POSITION, [(7, -0.5), (9, -2.0), (3, -2.00001)], (3, 8))
