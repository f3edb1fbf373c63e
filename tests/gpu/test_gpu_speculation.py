"""Drawing, verifying and drafting on a GPU."""

from pathlib import Path

import pytest
import torch
from gpu_support import load, logits, sequence

from engine.batch import Batch, Span
from engine.sampler import Sampler
from engine.sequence import Sequence
from engine.speculation.verify import Verification
from engine.tiny_longcat import write_tiny_longcat
from protocol.sampling import SamplingParams
from tests.unit.engine.conftest import EngineUnderTest, greedy

VOCABULARY = 260
RULES = (
    {"temperature": 0.0},
    {"seed": 5},
    {"seed": 6, "top_p": 0.9},
    {"seed": 7, "top_k": 5, "temperature": 0.7},
    {"seed": 8, "min_p": 0.1},
    {"seed": 9, "repetition_penalty": 1.2},
)


def test_the_same_draws_and_the_same_guesses_hold(gpu: torch.device) -> None:
    """As on the CPU, from the same logits: 200 sequences with up to three guesses each, some of them right."""
    drawn = torch.Generator().manual_seed(0)
    spans = []
    for number in range(200):
        params = SamplingParams(**RULES[number % len(RULES)])  # type: ignore[arg-type]
        guesses = tuple(torch.randint(0, VOCABULARY, (number % 4,), generator=drawn).tolist())
        one = Sequence(str(number), [1, 2, 3], params, output=[number % VOCABULARY], blocks=[0])
        spans.append(Span(one, 3, 4 + len(guesses), guesses))
    rows = sum(1 + len(span.drafts) for span in spans)
    values = torch.randn(rows, VOCABULARY, generator=drawn) * 3
    row = 0
    for span in spans:  # so that some guesses are what is drawn
        for index, guess in enumerate(span.drafts):
            values[row + index, guess] += 12.0 if index == 0 else 4.0
        row += 1 + len(span.drafts)

    results = []
    for device in (torch.device("cpu"), gpu):
        batch = Batch(spans, 16, device)
        plan, verification = Sampler(frozenset(), VOCABULARY).plan(batch.sampled, device), Verification(batch)
        verified = verification.verify(plan.draw(values.to(device)).tokens)
        results.append([verified.tokens.tolist(), verified.accepted.tolist(), verified.last_rows.tolist()])
    assert results[0] == results[1]
    assert 0 < sum(results[0][1]) < sum(len(span.drafts) for span in spans)


@pytest.mark.parametrize("speculation", ["off", "ngram", "mtp"])
def test_answers_are_of_the_likeliest_tokens(tmp_path: Path, gpu: torch.device, speculation: str) -> None:
    """Each is, by the CPU's float32 logits after what came before it, as likely as the likeliest but for rounding; whoever guesses.
    Rounding hangs on how many tokens are computed at once, so answers need not be the same token for token."""
    folder = write_tiny_longcat(tmp_path, dtype=torch.bfloat16)
    engine = load(folder, gpu.type, "bfloat16", speculation=speculation, draft_tokens=4)
    prompt = [4 + place % 30 for place in range(90)]
    requests = [greedy(str(number), prompt[number:], max_tokens=24) for number in range(3)]
    answers = EngineUnderTest(engine, engine._metrics._metrics).finish(*requests)
    exact = load(folder, "cpu", "float32")
    for request in requests:
        tokens = answers[request.request_id].sequence.tokens
        after = logits(exact, Span(sequence(exact, tokens), 0, len(tokens)))[len(request.prompt) - 1 : -1]
        chosen = after.gather(1, torch.tensor(tokens[len(request.prompt) :]).unsqueeze(1)).squeeze(1)
        assert ((after.amax(dim=1) - chosen) / after.std(dim=1)).max() < 0.5
