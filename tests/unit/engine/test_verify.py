"""Verification: exact in distribution, whatever was guessed (100,000 draws), and equal to what is drawn without guesses."""

import math
from typing import Any

import pytest
import torch

from engine.batch import Batch, Row, Span
from engine.sampler import Sampler
from engine.sequence import Sequence
from engine.speculation.verify import Verification
from protocol.sampling import SamplingParams

VOCABULARY = 8
CPU = torch.device("cpu")
NEXT = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(4)) * 1.5
"""A language of which the next token depends on the last one: logits by last token."""
LAST = 5
"""The prompt's last token."""


def probabilities(params: dict[str, Any]) -> torch.Tensor:
    """[last token, next token], written down independently of the sampler."""
    logits = NEXT.double() / params.get("temperature", 1.0)
    for row in logits:
        if top_k := params.get("top_k"):
            row[row.argsort(descending=True)[top_k:]] = -math.inf
        if top_p := params.get("top_p"):
            order = row.argsort(descending=True)
            before = torch.softmax(row, 0)[order].cumsum(0) - torch.softmax(row, 0)[order]
            row[order[before >= top_p]] = -math.inf
    return torch.softmax(logits, dim=-1)


def step(sequences: list[Sequence], guesses: list[tuple[int, ...]]) -> list[list[int]]:
    """What one forward pass of the language brings each sequence."""
    spans = []
    for sequence, guess in zip(sequences, guesses, strict=True):
        known = len(sequence.tokens)
        spans.append(Span(sequence, known - 1, known + len(guess), guess))
    batch = Batch(spans, 16, CPU)
    verified = Verification(batch).verify(
        Sampler(frozenset(), VOCABULARY).plan(batch.sampled, CPU).draw(NEXT[batch.token_ids]).tokens
    )
    tokens, accepted = verified.tokens.tolist(), verified.accepted.tolist()
    brought, first = [], 0
    for guess, holds, last_row in zip(guesses, accepted, verified.last_rows.tolist(), strict=True):
        assert last_row == first + holds
        brought.append(tokens[first : last_row + 1])
        first += 1 + len(guess)
    return brought


def check_chi_square(counts: torch.Tensor, expected: torch.Tensor) -> None:
    """p > 1e-4 by the Wilson-Hilferty approximation; nothing outside the support."""
    assert int(counts[expected == 0].sum()) == 0
    seen, expected = counts[expected > 0].double(), expected[expected > 0] * counts.sum()
    small = expected < 5  # too rare for the approximation one by one
    if small.any():
        seen = torch.cat([seen[~small], seen[small].sum().view(1)])
        expected = torch.cat([expected[~small], expected[small].sum().view(1)])
    statistic, freedom = float(((seen - expected) ** 2 / expected).sum()), len(seen) - 1
    assert (statistic / freedom) ** (1 / 3) < 1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))


LIKELIEST, UNLIKELY = int(NEXT[LAST].argmax()), int(NEXT[LAST].argmin())


@pytest.mark.parametrize(
    ("params", "guess", "draws"),
    [
        ({}, LIKELIEST, 50_000),
        ({}, UNLIKELY, 10_000),
        ({"temperature": 0.6}, LIKELIEST, 10_000),
        ({"temperature": 2.5, "top_p": 0.8}, LIKELIEST, 10_000),
        ({"top_k": 3}, int(NEXT[LAST].argsort(descending=True)[2]), 10_000),
        ({"top_k": 3}, UNLIKELY, 10_000),
    ],
    ids=["likely", "unlikely", "cool", "nucleus", "third of three", "impossible"],
)
def test_two_tokens_have_the_targets_distribution_whatever_was_guessed(params: dict[str, Any], guess: int, draws: int) -> None:
    exact = probabilities(params)
    sequences = [Sequence("r", [LAST], SamplingParams(seed=seed, **params), blocks=[0]) for seed in range(draws)]
    brought = step(sequences, [(guess,)] * draws)
    accepted = [tokens for tokens in brought if len(tokens) == 2]
    assert all(tokens[0] == guess for tokens in accepted)
    rate, deviation = float(exact[LAST, guess]), math.sqrt(float(exact[LAST, guess] * (1 - exact[LAST, guess])) / draws)
    assert abs(len(accepted) / draws - rate) <= 5 * deviation, "a guess is accepted as often as the target would have drawn it"

    refused = [(sequence, tokens) for sequence, tokens in zip(sequences, brought, strict=True) if len(tokens) == 1]
    for sequence, tokens in refused:
        sequence.append(tokens[0])
    for (_, tokens), more in zip(refused, step([sequence for sequence, _ in refused], [()] * len(refused)), strict=True):
        tokens += more
    pairs = torch.tensor(brought)
    counts = torch.bincount(pairs[:, 0] * VOCABULARY + pairs[:, 1], minlength=VOCABULARY**2)
    check_chi_square(counts, (exact[LAST].unsqueeze(1) * exact).flatten())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_are_those_drawn_without_guesses(temperature: float) -> None:
    def fresh() -> list[Sequence]:
        return [Sequence("r", [LAST], SamplingParams(seed=seed, temperature=temperature), blocks=[0, 1]) for seed in range(40)]

    plain = fresh()
    for _ in range(20):
        for sequence, tokens in zip(plain, step(plain, [()] * len(plain)), strict=True):
            sequence.append(*tokens)
    guessing, generator, widths = fresh(), torch.Generator().manual_seed(1), set()
    while any(len(sequence.output) < 20 for sequence in guessing):
        guesses = []
        for sequence, known in zip(guessing, plain, strict=True):
            width = int(torch.randint(0, 5, (), generator=generator))
            guess = known.output[len(sequence.output) :][:width]
            if guess and len(guess) > 2:
                guess[2] = (guess[2] + 1) % VOCABULARY
            guesses.append(tuple(guess))
        for sequence, guess, tokens in zip(guessing, guesses, step(guessing, guesses), strict=True):
            assert len(tokens) == min(len(guess), 2) + 1
            widths.add((len(guess), len(tokens)))
            for token in tokens:
                sequence.append(token)
    for sequence, known in zip(guessing, plain, strict=True):
        assert sequence.output[:20] == known.output
    assert widths >= {(0, 1), (1, 2), (2, 3), (3, 3), (4, 3)}


def test_rows_of_a_batch_of_prompts_and_guesses() -> None:
    def of(name: str, length: int, *drafts: int) -> Sequence:
        sequence = Sequence(name, list(range(length)), SamplingParams(), blocks=[3, 1])
        sequence.drafts = list(drafts)
        return sequence

    part, whole, guessed = of("part", 9), of("whole", 4), of("guessed", 7, 70, 71)
    spans = [Span(part, 2, 5), Span(guessed, 6, 9, (70, 71)), Span(whole, 1, 4)]
    batch = Batch(spans, 16, CPU, shifted=True)
    assert batch.token_ids.tolist() == [2, 3, 4, 6, 70, 71, 1, 2, 3]
    assert batch.positions.tolist() == [2, 3, 4, 6, 7, 8, 1, 2, 3]
    assert batch.slots.tolist() == [48 + position for position in batch.positions.tolist()]
    assert batch.sampled == [Row(guessed), Row(guessed, (70,)), Row(guessed, (70, 71)), Row(whole)]
    assert [row.position for row in batch.sampled] == [7, 8, 9, 4]
    assert batch.sampled_rows.tolist() == [3, 4, 5, 8]
    assert batch.sampled_spans == spans[1:]
    assert batch.next_token_ids is not None
    assert batch.next_token_ids.tolist() == [3, 4, 5, 0, 0, 0, 2, 3, 0]

    verify = Verification(batch).verify
    for drawn, accepted, last_rows in (
        ([70, 71, 9, 1], [2, 0], [2, 3]),
        ([70, 8, 9, 1], [1, 0], [1, 3]),
        ([8, 71, 9, 1], [0, 0], [0, 3]),
    ):
        verified = verify(torch.tensor(drawn))
        assert (verified.accepted.tolist(), verified.last_rows.tolist()) == (accepted, last_rows)
