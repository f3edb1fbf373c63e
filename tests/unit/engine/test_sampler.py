"""Sampling against exact distributions, and draws keyed by (seed, position)."""

import math
from collections import Counter
from typing import Any

import pytest
import torch

from engine.adjustments import Adjustments
from engine.batch import Row
from engine.draws import uniform
from engine.sampler import Drawn, Sampler
from engine.sequence import Sequence
from engine.truncation import NUCLEUS_CANDIDATES
from protocol.sampling import GREEDY_BELOW, MIN_REPETITION_PENALTY, SamplingParams

EOS = 7
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0, 1.5])
DRAWS = 4000


def make(prompt: list[int] | None = None, output: list[int] | None = None, **params: Any) -> Sequence:
    return Sequence("r", [0] if prompt is None else prompt, SamplingParams(**params), output=output or [])


def sample(logits: torch.Tensor, *sequences: Sequence) -> list[int]:
    return draw(logits, *sequences).tokens.tolist()


def draw(logits: torch.Tensor, *sequences: Sequence) -> Drawn:
    rows = [Row(sequence) for sequence in sequences]
    return Sampler(frozenset({EOS}), logits.shape[-1]).plan(rows, logits.device).draw(logits)


def distribution(**params: Any) -> Counter[int]:
    rows = LOGITS.expand(DRAWS, -1)
    return Counter(sample(rows, *(make(seed=seed, **params) for seed in range(DRAWS))))


def check_chi_square(counts: Counter[int], probabilities: torch.Tensor) -> None:
    """p > 1e-4 by the Wilson-Hilferty approximation; nothing outside the support."""
    assert all(probabilities[token] > 0 for token in counts)
    draws = counts.total()
    support = [(counts[token], float(p) * draws) for token, p in enumerate(probabilities) if p > 0]
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in support)
    freedom = len(support) - 1
    if freedom:
        z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
        assert z < 3.72


def kept(mask: list[int], logits: torch.Tensor = LOGITS) -> torch.Tensor:
    weights = logits.double().exp()
    chosen = torch.zeros_like(weights)
    chosen[mask] = weights[mask]
    return chosen / chosen.sum()


@pytest.mark.parametrize(
    ("params", "probabilities"),
    [
        ({}, torch.softmax(LOGITS.double(), 0)),
        ({"temperature": 0.5}, torch.softmax(LOGITS.double() / 0.5, 0)),
        ({"temperature": 3.0}, torch.softmax(LOGITS.double() / 3.0, 0)),
        ({"top_k": 3}, kept([0, 7, 1])),
        ({"top_k": 1}, kept([0])),
        ({"top_k": 100}, kept(list(range(8)))),
        ({"top_p": 0.5}, kept([0, 7])),
        ({"top_p": 0.01}, kept([0])),
        ({"top_p": 0.99}, kept([0, 1, 2, 3, 4, 5, 7])),
        ({"min_p": 0.3}, kept([0, 1, 7])),
        ({"top_k": 3, "top_p": 0.6}, kept([0, 7])),
        ({"logit_bias": {6: 3.0, 0: -100.0}}, torch.softmax(LOGITS.double() + torch.tensor([-100.0, 0, 0, 0, 0, 0, 3, 0]), 0)),
    ],
)
def test_distribution(params: dict[str, Any], probabilities: torch.Tensor) -> None:
    check_chi_square(distribution(**params), probabilities)


def test_draws_are_uniform_and_independent_over_seeds_and_positions() -> None:
    for numbers in ([uniform(seed, 5) for seed in range(DRAWS)], [uniform(5, position) for position in range(DRAWS)]):
        counts = Counter(int(number * 16) for number in numbers)
        check_chi_square(counts, torch.full((16,), 1 / 16))
        pairs = Counter(int(a * 4) * 4 + int(b * 4) for a, b in zip(numbers[::2], numbers[1::2], strict=True))
        check_chi_square(pairs, torch.full((16,), 1 / 16))
    assert all(0.0 <= uniform(seed, 0) < 1.0 for seed in (0, 2**63 - 1))


def test_known_draws_stay_what_they_are() -> None:
    # A request continued by a newer worker must draw what the older would have drawn.
    assert [uniform(0, 0), uniform(1, 0), uniform(0, 1)] == [0.6524484863740322, 0.36818951565166946, 0.7012121095215252]


def test_a_draw_depends_on_seed_and_absolute_position_only() -> None:
    logits = torch.randn(1, 500, generator=torch.Generator().manual_seed(0))
    prompt_only = sample(logits, make(prompt=[1, 2, 3, 4], seed=9))
    continued = sample(logits, make(prompt=[1, 2], output=[3, 4], seed=9))
    assert prompt_only == continued
    by_seed = {sample(logits, make(seed=seed))[0] for seed in range(30)}
    by_position = {sample(logits, make(prompt=[0] * (1 + n), seed=9))[0] for n in range(30)}
    assert len(by_seed) > 10
    assert len(by_position) > 10


def test_a_token_does_not_depend_on_its_batch() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(12, 1000, generator=generator) * 3
    sequences = [
        make(seed=1),
        make(temperature=0.0),
        make(seed=2, top_p=0.9),
        make(seed=3, top_k=40),
        make(seed=4, min_p=0.05, temperature=2.0),
        make(prompt=[1, 2, 3], output=[4, 5], seed=5, repetition_penalty=1.5, presence_penalty=1.0),
        make(seed=6, top_p=0.999, temperature=5.0),
        make(seed=7, logit_bias={3: 5.0}),
        make(seed=8, min_tokens=3),
        make(temperature=0.0, logprobs=3),
        make(seed=9, top_k=7, top_p=0.5),
        make(seed=10, logprobs=0),
    ]
    together = sample(logits, *sequences)
    alone = [sample(logits[row : row + 1], sequence)[0] for row, sequence in enumerate(sequences)]
    assert together == alone


def test_flat_distribution_pays_for_the_whole_vocabulary() -> None:
    vocabulary = NUCLEUS_CANDIDATES * 4
    logits = torch.linspace(0, 0.1, vocabulary).expand(2000, -1)
    tokens = sample(logits, *(make(seed=seed, top_p=0.5) for seed in range(2000)))
    boundary = vocabulary / 2
    assert min(tokens) > boundary * 0.9
    assert min(tokens) < boundary * 1.1


def test_penalties_follow_their_definitions() -> None:
    params = {"repetition_penalty": 2.0, "presence_penalty": 0.25, "frequency_penalty": 0.5}
    sequence = make(prompt=[0, 5], output=[1, 1, 6], **params)
    rows = LOGITS.repeat(2, 1)
    Adjustments([Row(sequence), Row(make())], frozenset({EOS}), None, rows.device).apply_(rows)
    assert torch.equal(rows[1], LOGITS)
    row = rows[0]
    expected = LOGITS.clone()
    expected[0] = 2.0 / 2
    expected[5] = -1.0 * 2
    expected[1] = 1.0 / 2 - 0.25 - 2 * 0.5
    expected[6] = -2.0 * 2 - 0.25 - 0.5
    assert torch.allclose(row, expected)


def test_greedy_obeys_bias_and_penalties() -> None:
    logits = LOGITS.unsqueeze(0)
    assert sample(logits, make(temperature=0.0)) == [0]
    assert sample(logits, make(temperature=0.0, logit_bias={4: 10.0})) == [4]
    assert sample(logits, make(temperature=0.0, repetition_penalty=2.0)) == [EOS]


def test_min_tokens_bans_every_way_to_stop() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 9.0]])
    assert sample(logits, make(temperature=0.0, min_tokens=2)) == [3]
    assert sample(logits, make(temperature=0.0, min_tokens=2, stop_token_ids=(3,))) == [2]
    assert sample(logits, make(temperature=0.0, min_tokens=2, output=[1, 1])) == [EOS]
    assert sample(logits, make(temperature=0.0, min_tokens=2, ignore_eos=True)) == [EOS]


def test_logprobs_are_those_of_the_untouched_logits() -> None:
    logits = LOGITS.expand(3, -1).clone()
    sequences = [make(temperature=0.0, logprobs=2, logit_bias={4: 50.0}), make(temperature=0.0), make(top_k=1, logprobs=0)]
    drawn = draw(logits, *sequences)
    exact = torch.log_softmax(LOGITS, 0)
    logprobs = drawn.read_logprobs()
    assert logprobs.keys() == {0, 2}
    first, last = logprobs[0], logprobs[2]
    assert int(drawn.tokens[0]) == first.token_id == 4
    assert first.logprob == pytest.approx(float(exact[4]))
    assert first.top == ((0, pytest.approx(float(exact[0]))), (7, pytest.approx(float(exact[7]))))
    assert (last.token_id, last.top) == (0, ())
    assert torch.equal(logits, LOGITS.expand(3, -1)), "the caller's logits were changed"


def test_half_precision_ties_are_broken_alike_in_any_batch() -> None:
    logits = (torch.randn(6, 3000, generator=torch.Generator().manual_seed(2))).to(torch.bfloat16)
    sequences = [make(seed=seed, top_p=0.8, top_k=50 + seed) for seed in range(6)]
    assert sample(logits, *sequences) == [sample(logits[i : i + 1], s)[0] for i, s in enumerate(sequences)]


@pytest.mark.parametrize("banned", [False, True])
@pytest.mark.parametrize("temperature", [5e-324, 1e-6, GREEDY_BELOW, 1.0, 100.0])
@pytest.mark.parametrize("repetition_penalty", [MIN_REPETITION_PENALTY, 100.0])
@pytest.mark.parametrize("nucleus", [{"top_p": 5e-324}, {"min_p": 5e-324}, {"min_p": 1.0, "top_p": 1.0 - 2**-53}])
def test_every_accepted_extreme_draws_a_token(
    banned: bool, temperature: float, repetition_penalty: float, nucleus: dict[str, float]
) -> None:
    """The edges of what validation lets in; `banned`: all but one token are forbidden already."""
    params = SamplingParams(
        temperature=temperature,
        repetition_penalty=repetition_penalty,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        logit_bias={0: -100.0, 1: 100.0},
        **nucleus,
    )
    params.validate(len(LOGITS))
    logits = 50 * LOGITS
    if banned:
        logits = torch.full_like(LOGITS, float("-inf")).index_fill_(0, torch.tensor([3]), 0.0)
    (token,) = sample(logits.expand(1, -1), Sequence("r", [0, 1, 2], params, output=[1, 4] * 10))
    assert token == 3 if banned else 0 <= token < len(LOGITS)
