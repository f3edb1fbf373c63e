"""Prompt look-up against a search that is plainly right, as a text grows."""

import random

from engine.sequence import Sequence
from engine.speculation.ngram import INDEXED_AT_ONCE, KEY_TOKENS, LONGEST_MATCH, NgramDrafter
from protocol.sampling import SamplingParams


def guesses(tokens: list[int], limit: int = 4) -> list[int]:
    return list(NgramDrafter().guess(Sequence("r", tokens, SamplingParams()), limit, ()))


def searched(tokens: list[int], limit: int) -> list[int]:
    """What follows the place that agrees longest, of those the latest; all places are compared."""
    best, longest = 0, KEY_TOKENS - 1
    for place in range(KEY_TOKENS, len(tokens)):
        length = 0
        while length < min(LONGEST_MATCH, place) and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        if length >= max(longest, KEY_TOKENS):
            best, longest = place, length
    known = tokens[best:][:limit]
    return [known[index % len(known)] for index in range(limit)] if longest >= KEY_TOKENS else []


def test_what_followed_last_time_is_guessed() -> None:
    assert guesses([1, 2, 3, 4, 5, 6, 7, 9, 1, 2, 3]) == [4, 5, 6, 7]
    assert guesses([1, 2, 3, 4, 5, 6, 7, 9, 1, 2, 3], limit=2) == [4, 5]
    assert guesses([1, 2, 3, 4, 9, 2, 3]) == [], "two tokens agree by chance"
    assert guesses([1, 2, 3]) == guesses([7]) == guesses([1, 2, 3, 4]) == []


def test_the_longest_agreement_wins_then_the_latest() -> None:
    assert guesses([8, 1, 2, 3, 50, 9, 1, 2, 3, 60, 8, 1, 2, 3], limit=1) == [50]
    assert guesses([7, 1, 2, 3, 50, 9, 1, 2, 3, 60, 8, 1, 2, 3], limit=1) == [60]


def test_a_text_that_repeats_itself_is_read_on_in_its_turns() -> None:
    assert guesses([5, 5, 5, 5], limit=6) == [5] * 6
    assert guesses([1, 2, 3, 1, 2, 3, 1, 2], limit=7) == [3, 1, 2, 3, 1, 2, 3]


def test_a_growing_text_is_searched_as_if_it_were_new() -> None:
    drawn = random.Random(3)
    sequence, drafter, found = Sequence("r", [drawn.randrange(3) for _ in range(5)], SamplingParams()), NgramDrafter(), 0
    for _ in range(60):
        for _ in range(drawn.randint(1, 3)):
            sequence.append(drawn.randrange(3))
        guess = list(drafter.guess(sequence, 5, ()))
        found += bool(guess)
        places = sum(sequence.tokens[i - 3 : i] == sequence.tokens[-3:] for i in range(3, len(sequence.tokens)))
        if places <= 8:
            assert guess == searched(sequence.tokens, 5)
        else:
            assert len(guess) == 5
    assert found > 40


def test_a_long_prompt_is_read_over_several_steps() -> None:
    tokens = [*range(1, 9 * INDEXED_AT_ONCE // 2), 7, 8, 9]
    drafter, sequence = NgramDrafter(), Sequence("r", tokens, SamplingParams())
    assert [list(drafter.guess(sequence, 2, ())) for _ in range(6)] == [[]] * 4 + [[10, 11]] * 2


def test_nothing_stays_of_a_sequence_that_is_gone() -> None:
    drafter, sequence = NgramDrafter(), Sequence("r", [1, 2, 3, 4, 1, 2, 3], SamplingParams())
    assert list(drafter.guess(sequence, 1, ())) == [4]
    del sequence
    assert not drafter._indexes
