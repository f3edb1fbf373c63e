"""Answers are the same with guesses and without, whatever else happens to them; and nothing of a wrong guess stays."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from llguidance import LLMatcher

from engine.sequence import Sequence, SequenceUpdate
from protocol.sampling import SamplingParams
from tests.unit.engine.conftest import EngineUnderTest, MakeEngine, greedy, random_prompt
from tests.unit.engine.speculation_support import foreseeing_engine
from tests.unit.engine.test_engine import assert_balanced

Make = Callable[[], list[Sequence]]
LETTERS_AND_DIGITS = LLMatcher.grammar_from_regex("([a-z]{3}[0-9]{2})+")
SIX_LETTERS = LLMatcher.grammar_from_regex("[a-z]{6}")
DOCUMENT = LLMatcher.grammar_from_json_schema(
    json.dumps(
        {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 8}, "size": {"enum": [1, 20, 300]}},
            "required": ["name", "size"],
            "additionalProperties": False,
        }
    ),
    overrides={"whitespace_flexible": False},
)
PENALTIES = {"presence_penalty": 0.8, "frequency_penalty": 0.5, "repetition_penalty": 1.2}
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 50, "min_p": 0.01},
    PENALTIES,
    {"temperature": 1.1, **PENALTIES, "logit_bias": {65: 3.0, 66: -100.0}},
    {"ignore_eos": False, "logit_bias": {258: 6.0}, "temperature": 1.0},
    {"ignore_eos": False, "logit_bias": {258: 12.0}, "temperature": 1.0, "min_tokens": 9},
    {"stop_token_ids": tuple(range(40)), "temperature": 1.0},
    {"stop_token_ids": tuple(range(100)), "min_tokens": 12},
    {"grammar": LETTERS_AND_DIGITS, "temperature": 1.0},
    {"grammar": SIX_LETTERS},
    {"grammar": DOCUMENT, "temperature": 0.9, "ignore_eos": False, **PENALTIES},
    {"grammar": LETTERS_AND_DIGITS, "min_tokens": 17, "ignore_eos": False, "logit_bias": {258: 50.0}},
    {"logprobs": 3, "temperature": 1.0},
    {"logprobs": 0, "grammar": SIX_LETTERS},
    {"max_tokens": 1},
    {"max_tokens": 2, "temperature": 1.0},
    {"max_tokens": 5},
    {"prompt_logprobs": 1, "logprobs": 1, "max_tokens": 9},
)


def mixed() -> list[Sequence]:
    return [
        greedy(str(i), random_prompt(7 + 11 * (i % 5), i % 5), **({"seed": i, "max_tokens": 40} | way))
        for i, way in enumerate(WAYS)
    ]


def published(engine: EngineUnderTest, sequence: Sequence) -> list[SequenceUpdate]:
    return [update for update in engine.updates if update.sequence is sequence]


def assert_same(make: Make, plain: EngineUnderTest, guessing: EngineUnderTest, expected: list[Sequence]) -> None:
    """`expected` were answered by `plain`."""
    got = make()
    finals = guessing.finish(*got)
    for one, other in zip(expected, got, strict=True):
        assert other.output == one.output, other.params
        want, have = published(plain, one), published(guessing, other)
        assert finals[other.request_id].finish == want[-1].finish
        assert [t for u in have for t in u.token_ids] == [t for u in want for t in u.token_ids] == other.output
        shown, wanted = ([lp for u in updates for lp in u.logprobs] for updates in (have, want))
        assert [lp.token_id for lp in shown] == [lp.token_id for lp in wanted]
        assert [lp.logprob for lp in shown] == pytest.approx([lp.logprob for lp in wanted], abs=1e-3)
        prompts = [u.prompt_logprobs for u in have if u.prompt_logprobs]
        assert len(prompts) == (other.params.prompt_logprobs is not None)
    assert_balanced(guessing)


def test_every_way_of_drawing(make_engine: MakeEngine) -> None:
    plain = make_engine(speculation="off")
    expected = mixed()
    plain.finish(*expected)
    assert all(not sequence.drafts for sequence in expected)
    answers = {sequence.request_id: sequence.output for sequence in expected}
    steps, preemptions = {}, {}
    for name, right, settings in (
        ("all right", 1.0, {}),
        ("all wrong", 0.0, {}),
        ("few blocks", 0.8, {"blocks": 26}),
        ("no prefix cache", 0.8, {"prefix_cache": False, "block_size": 4, "blocks": 160}),
        ("no budget", 0.8, {"max_batch_tokens": 16}),
        ("little budget", 0.8, {"max_batch_tokens": 23, "max_sequences": 5}),
        ("many", 0.9, {"draft_tokens": 16, "block_size": 8, "blocks": 400}),
    ):
        guessing = foreseeing_engine(make_engine, answers, right=right, **settings)
        assert_same(mixed, plain, guessing, expected)
        steps[name] = guessing.engine.steps
        preemptions[name] = guessing.metrics.value("serval_num_preemptions_total")
    assert steps["all right"] < plain.engine.steps / 2
    assert preemptions["few blocks"] > 0 == preemptions["all right"]


def test_every_place_of_the_contexts_end(make_engine: MakeEngine) -> None:
    def make() -> list[Sequence]:
        return [greedy(str(length), random_prompt(length, length), max_tokens=100) for length in range(28, 40)]

    plain = make_engine(speculation="off", max_model_len=40)
    expected = make()
    plain.finish(*expected)
    assert {len(sequence.tokens) for sequence in expected} == {40}
    answers = {sequence.request_id: sequence.output for sequence in expected}
    for right in (1.0, 0.6):
        guessing = foreseeing_engine(make_engine, answers, right=right, max_model_len=40)
        assert_same(make, plain, guessing, expected)


@pytest.mark.parametrize("way", [3, 6, 11, 12])
def test_an_answer_cut_anywhere_goes_on_as_it_would_have(make_engine: MakeEngine, way: int) -> None:
    prompt = random_prompt(20, way)
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 30, "seed": 3} | WAYS[way])
    whole = Sequence("whole", prompt, params)
    finish = make_engine(speculation="off").finish(whole)["whole"].finish
    rests = [Sequence(str(cut), prompt, params, output=whole.output[:cut]) for cut in range(1, len(whole.output))]
    guessing = foreseeing_engine(make_engine, {rest.request_id: whole.output for rest in rests})
    finals = guessing.finish(*rests)
    for rest in rests:
        assert rest.output == whole.output, f"cut after {rest.request_id} tokens"
        assert finals[rest.request_id].finish == finish
    assert_balanced(guessing)


def test_siblings_share_the_prompt_and_guess_each_for_itself(make_engine: MakeEngine) -> None:
    prompt = random_prompt(50)

    def make() -> list[Sequence]:
        return [greedy(str(i), prompt, temperature=1.2, seed=i, max_tokens=30) for i in range(5)]

    plain = make_engine(speculation="off")
    expected = make()
    plain.finish(*expected)
    guessing = foreseeing_engine(make_engine, {s.request_id: s.output for s in expected}, right=0.9)
    guessing.finish(greedy("first", prompt, max_tokens=1))
    assert_same(make, plain, guessing, expected)
    assert guessing.metrics.value("serval_prefix_cache_hits_total") == 5 * 48
    follow_up = greedy("next", [*prompt, *expected[0].output, 5], max_tokens=8)
    guessing.finish(follow_up)
    assert follow_up.cached_tokens == 64, "an answer that guesses brought is in the prefix cache, without what was wrong"
    assert follow_up.output == make_engine(speculation="off").answer(list(follow_up.prompt), max_tokens=8)


def test_guesses_that_come_with_a_transferred_prompt_are_verified_at_once(make_engine: MakeEngine) -> None:
    prompt = random_prompt(50)
    plain = make_engine(speculation="off")
    expected = plain.answer(prompt, max_tokens=6)
    guessing = make_engine(speculation="ngram")
    speculation = guessing.engine._speculation
    assert speculation is not None
    speculation._drafter = Passing()
    blocks = guessing.engine.kv_cache.allocate(4)
    guessing.engine.pool.data[:, blocks] = kv_of(plain, prompt)
    params = greedy("r", prompt, max_tokens=6).params
    sequence = Sequence("r", prompt, params, blocks, num_computed=50, output=expected[:1])
    sequence.drafts = expected[1:4]
    guessing.engine.submit(sequence)
    (update,) = guessing.step()
    assert list(update.token_ids) == expected[1:5]
    guessing.finish()
    assert sequence.output == expected
    assert_balanced(guessing)


def test_what_a_grammar_forces_is_guessed(make_engine: MakeEngine) -> None:
    settings: dict[str, Any] = {"grammar": DOCUMENT, "temperature": 1.0, "seed": 4, "max_tokens": 60}
    plain, guessing = make_engine(speculation="off"), foreseeing_engine(make_engine, {}, right=0.0, draft_tokens=16)
    expected, got = greedy("r", random_prompt(9), **settings), greedy("r", random_prompt(9), **settings)
    plain.finish(expected)
    guessing.finish(got)
    assert got.output == expected.output
    assert bytes(got.output).startswith(b'{"name":"')
    assert got.accepted_tokens >= len(b'{"name":"' + b',"size":') - 2, "the tiny model's tokens are the bytes"
    assert guessing.engine.steps < plain.engine.steps / 2
    accepted = "serval_spec_decode_num_accepted_tokens_total"
    assert guessing.metrics.value(accepted, drafter="grammar") == got.accepted_tokens, "its drafter had none right"


def test_abort_and_release_between_guesses(make_engine: MakeEngine) -> None:
    plain = make_engine(speculation="off")
    expected = {str(i): plain.answer(random_prompt(20, i), max_tokens=60) for i in range(4)}
    guessing = foreseeing_engine(make_engine, expected, right=0.8)
    sequences = [greedy(str(i), random_prompt(20, i), max_tokens=60) for i in range(4)]
    for sequence in sequences:
        guessing.engine.submit(sequence)
    for _ in range(4):
        guessing.step()
    assert any(sequence.drafts for sequence in sequences)
    guessing.engine.abort("1")
    guessing.engine.abort("3")
    finals = guessing.finish()
    assert {name: update.finish for name, update in finals.items()} == {
        "0": "length",
        "1": "aborted",
        "2": "length",
        "3": "aborted",
    }
    for name in ("0", "2"):
        assert sequences[int(name)].output == expected[name]
    for name in ("1", "3"):
        output = sequences[int(name)].output
        assert output == expected[name][: len(output)]
    assert_balanced(guessing)


class Passing:
    """A Drafter that passes on what somebody else guessed."""

    name = "passing"
    needs_hidden = False

    def launch(self, *_: object) -> None:
        return None

    def guess(self, sequence: Sequence, limit: int, launched: list[int]) -> list[int]:
        return launched[:limit]


def kv_of(engine: EngineUnderTest, prompt: list[int]) -> torch.Tensor:
    """The blocks of a prompt of 50 tokens, as another worker has them."""
    sequence = greedy("kv", prompt)
    engine.engine.submit(sequence)
    engine.engine.step()
    content = engine.engine.pool.data[:, sequence.blocks[:4]].clone()
    engine.engine.abort("kv")
    engine.step()
    return content
