"""Synthetic prompts and arrivals."""

from itertools import pairwise

import pytest

from benchmarks.workload import poisson_arrivals_s, prompts


def test_same_seed_same_prompts_and_another_seed_others() -> None:
    assert prompts(1, 3, 50, 1000) == prompts(1, 3, 50, 1000)
    assert prompts(1, 3, 50, 1000) != prompts(2, 3, 50, 1000)
    assert prompts(1, 3, 50, None) == prompts(1, 3, 50, None)


def test_token_prompts_have_the_length_and_stay_in_the_middle_of_the_vocabulary() -> None:
    for prompt in prompts(0, 20, 100, 1000):
        assert isinstance(prompt, list)
        assert len(prompt) == 100
        assert all(250 <= token < 750 for token in prompt)


def test_no_two_prompts_share_a_block_of_prefix() -> None:
    made = prompts(0, 200, 16, 49_152)
    assert len({tuple(prompt[:16]) for prompt in made}) == 200


def test_text_prompts_have_so_many_words() -> None:
    (prompt,) = prompts(0, 1, 40, None)
    assert isinstance(prompt, str)
    assert len(prompt.split()) == 40


def test_arrivals_are_poisson() -> None:
    arrivals_s = poisson_arrivals_s(3, 4001, 20.0)
    gaps_s = [after - before for before, after in pairwise(arrivals_s)]
    mean_s = sum(gaps_s) / len(gaps_s)
    deviation_s = (sum((gap_s - mean_s) ** 2 for gap_s in gaps_s) / len(gaps_s)) ** 0.5
    assert arrivals_s[0] == 0.0
    assert all(gap_s >= 0 for gap_s in gaps_s)
    assert mean_s == pytest.approx(1 / 20, rel=0.1)
    assert deviation_s == pytest.approx(mean_s, rel=0.1)  # an exponential distribution's


def test_a_rate_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        poisson_arrivals_s(0, 1, 0.0)
