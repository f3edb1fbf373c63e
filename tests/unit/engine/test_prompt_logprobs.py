"""Log-probabilities of the prompt's tokens, against transformers and however the prompt is computed."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.prompt_logprobs import ROWS_AT_ONCE
from engine.sequence import Sequence
from protocol.errors import InvalidRequest
from tests.unit.engine.conftest import EngineUnderTest, MakeEngine, greedy, random_prompt


def shown(engine: EngineUnderTest, sequence: Sequence) -> list[tuple[int, float, tuple[tuple[int, float], ...]]]:
    """What the updates of one request told; it comes with the first token, and once."""
    engine.finish(sequence)
    updates = [update for update in engine.updates if update.sequence is sequence]
    assert all(update.prompt_logprobs == () for update in updates[1:])
    return [(one.token_id, one.logprob, one.top) for one in updates[0].prompt_logprobs]


def assert_close(ours: list[tuple[int, float, tuple[tuple[int, float], ...]]], exact: torch.Tensor, prompt: list[int]) -> None:
    """`exact` [prompt - 1, vocabulary]: the log-probabilities of what follows each token."""
    assert [token for token, _, _ in ours] == prompt
    assert ours[0] == (prompt[0], 0.0, ())
    for (token, logprob, top), row in zip(ours[1:], exact, strict=True):
        assert logprob == pytest.approx(float(row[token]), abs=1e-4)
        best = row.topk(len(top)).values
        assert [value for _, value in top] == pytest.approx(best.tolist(), abs=1e-4)
        assert [float(row[likely]) for likely, _ in top] == pytest.approx(best.tolist(), abs=1e-4)


@pytest.mark.parametrize("length", [1, 2, 16, ROWS_AT_ONCE + 1, 200])
def test_as_transformers_computes_them(make_engine: MakeEngine, tiny_folder: Path, length: int) -> None:
    prompt = random_prompt(length, length)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    with torch.inference_mode():
        exact = torch.log_softmax(model(torch.tensor([prompt])).logits[0, :-1], dim=-1)
    for chunk in (16, 37, 1024):
        ours = shown(make_engine(max_batch_tokens=chunk), greedy("r", prompt, prompt_logprobs=3))
        assert_close(ours, exact, prompt)


def test_neither_the_batch_nor_a_cached_beginning_nor_preemption_changes_them(make_engine: MakeEngine) -> None:
    prompt = random_prompt(90)
    alone = make_engine()
    expected = shown(alone, greedy("r", prompt, prompt_logprobs=2))
    again = greedy("again", prompt, prompt_logprobs=2)
    assert shown(alone, again) == expected
    assert again.cached_tokens == 0

    tight = make_engine(blocks=9, max_batch_tokens=32)
    others = [greedy(name, random_prompt(15, seed), max_tokens=40) for seed, name in enumerate("ab")]
    for sequence in others:
        tight.engine.submit(sequence)
    tight.step()
    asked = greedy("asked", prompt, prompt_logprobs=2)
    tight.engine.submit(asked)
    while not asked.num_preemptions:
        tight.step()
    assert 0 < len(asked.prompt_logprobs) < len(prompt), "it was put back in the middle of its prompt"
    tight.finish()
    (first,) = (update for update in tight.updates if update.prompt_logprobs)
    got = [(one.token_id, one.logprob, one.top) for one in first.prompt_logprobs]
    assert [token for token, _, _ in got] == prompt
    for (_, logprob, _), (_, wanted, _) in zip(got, expected, strict=True):
        assert logprob == pytest.approx(wanted, abs=1e-4)


def test_no_top_and_no_wish(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert all(top == () for _, _, top in shown(engine, greedy("none", random_prompt(5), prompt_logprobs=0)))
    assert shown(engine, greedy("unasked", random_prompt(5))) == []


def test_an_answer_that_goes_on_has_told_them_already(make_engine: MakeEngine) -> None:
    prompt = random_prompt(5)
    sequence = Sequence("r", prompt, greedy("r", prompt, prompt_logprobs=1).params, output=[1, 2])
    assert shown(make_engine(), sequence) == []


def test_a_prompt_that_is_partly_computed_elsewhere_is_refused(make_engine: MakeEngine) -> None:
    engine = make_engine()
    params = greedy("r", [1], prompt_logprobs=1).params
    sequence = Sequence("r", random_prompt(20), params, engine.engine.kv_cache.allocate(2), num_computed=16)
    with pytest.raises(InvalidRequest, match="prompt_logprobs"):
        engine.engine.submit(sequence)
