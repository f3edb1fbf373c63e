"""Structured output: every answer keeps to its grammar, however it is drawn, cut, put back or continued."""

import json
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator, FormatChecker
from llguidance import LLMatcher

from engine.batch import Row
from engine.grammar import FIELD, Grammars
from engine.sampler import Sampler
from engine.sequence import Sequence
from protocol.errors import ConfigError, InvalidRequest
from protocol.sampling import SamplingParams
from telemetry.metrics import Metrics
from tests.json_schemas import Schema, json_schemas
from tests.unit.engine.conftest import EngineUnderTest, MakeEngine, greedy, random_prompt

EOS = frozenset({256, 258})
FIVE_LETTERS = LLMatcher.grammar_from_regex("[a-z]{5}")
LETTERS = LLMatcher.grammar_from_regex("[a-z]*")
STYLES: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "ignore_eos": False, "min_tokens": 30},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 3.0, "top_k": 40, "min_p": 0.01},
    {"temperature": 1.0, "presence_penalty": 1.5, "frequency_penalty": 1.0, "repetition_penalty": 1.3},
    {"temperature": 0.7, "logit_bias": {ord("}"): -100.0, ord("a"): 20.0, 255: 100.0}, "logprobs": 2},
)


def grammar_of(schema: Schema) -> str:
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False})


def text_of(tokens: SequenceOf[int]) -> str:
    """The tiny model's tokens are the bytes."""
    assert all(token < 256 for token in tokens)
    return bytes(tokens).decode()


def held(name: str, grammar: str, **params: Any) -> Sequence:
    return greedy(name, random_prompt(20, len(name)), grammar=grammar, **{"max_tokens": 100} | params)


@pytest.mark.parametrize("speculation", ["off", "ngram"])
def test_generated_schemas_give_valid_documents_only(make_engine: MakeEngine, speculation: str) -> None:
    engine = make_engine(blocks=1024, speculation=speculation)
    schemas = json_schemas(60, seed=1)
    sequences = [
        held(str(i), grammar_of(schema), max_tokens=2000, seed=i, **STYLES[i % len(STYLES)]) for i, schema in enumerate(schemas)
    ]
    finals = engine.finish(*sequences)
    for schema, sequence in zip(schemas, sequences, strict=True):
        assert finals[sequence.request_id].finish == "stop", (schema, sequence.output)
        document = json.loads(text_of([token for token in sequence.output if token not in EOS]))
        Draft202012Validator(schema, format_checker=FormatChecker()).validate(document)
    assert engine.metrics.value("serval_grammar_requests_total") == len(schemas)
    assert engine.metrics.value("serval_grammar_mask_seconds_total") > 0
    guessed = engine.metrics.value("serval_spec_decode_num_draft_tokens_total")
    assert guessed >= engine.metrics.value("serval_spec_decode_num_accepted_tokens_total") > 0 or speculation == "off"
    assert 0 < engine.metrics.value("serval_grammar_compile_seconds_count") <= len(schemas)


def test_a_fulfilled_grammar_ends_the_answer_at_once(make_engine: MakeEngine) -> None:
    engine = make_engine()
    for settings in ({}, {"ignore_eos": False}, {"min_tokens": 50}, {"logit_bias": {258: 100.0}}):
        sequence = held("five", FIVE_LETTERS, **settings)
        assert engine.finish(sequence)["five"].finish == "stop"
        assert len(sequence.output) == 5
        assert text_of(sequence.output).islower()
        engine.updates.clear()


def test_an_answer_that_may_go_on_ends_where_it_wants_to(make_engine: MakeEngine) -> None:
    engine = make_engine()
    eager = {258: 100.0}
    ends = held("ends", LETTERS, ignore_eos=False, logit_bias=eager)
    long_enough = held("long enough", LETTERS, ignore_eos=False, logit_bias=eager, min_tokens=7, max_tokens=20)
    ignores = held("ignores", LETTERS, ignore_eos=True, logit_bias=eager, max_tokens=9)
    finals = engine.finish(ends, long_enough, ignores)
    assert (finals["ends"].finish, ends.output) == ("stop", [258])
    assert (finals["long enough"].finish, len(long_enough.output)) == ("stop", 8)
    assert text_of(long_enough.output[:7]).islower()
    assert (finals["ignores"].finish, len(ignores.output)) == ("length", 9)


def test_the_mask_comes_before_everything_else(make_engine: MakeEngine) -> None:
    sampler = Sampler(EOS, 260, engine_grammars(make_engine()))
    logits = torch.zeros(1, 260)
    logits[0, ord("!")] = 50.0
    for params in (
        {"temperature": 0.0},
        {"temperature": 0.0, "logit_bias": {ord("!"): 100.0}},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 0.01},
        {"temperature": 1.0, "min_p": 1.0},
        {"temperature": 0.0, "logit_bias": dict.fromkeys(range(ord("a"), ord("z") + 1), -100.0)},
        {"temperature": 0.0, "stop_token_ids": tuple(range(ord("a"), ord("z") + 1)), "min_tokens": 3},
    ):
        sequence = prepared(sampler, FIVE_LETTERS, logprobs=1, **params)
        drawn = sampler.plan([Row(sequence)], logits.device).draw(logits)
        assert ord("a") <= int(drawn.tokens) <= ord("z"), params
        logprobs = drawn.read_logprobs()[0]
        assert logprobs.top[0][0] == ord("!"), "logprobs are those of the untouched logits"
    assert logits[0, ord("!")] == 50.0, "the caller's logits were changed"


def test_masks_do_not_depend_on_the_batch(make_engine: MakeEngine) -> None:
    sampler = Sampler(EOS, 260, engine_grammars(make_engine()))
    logits = torch.randn(6, 260, generator=torch.Generator().manual_seed(0)) * 4
    grammars = (LETTERS, "", FIVE_LETTERS, "", LLMatcher.grammar_from_regex("[0-9]+"), LETTERS)
    sequences = [prepared(sampler, grammar, seed=i, temperature=float(i % 2)) for i, grammar in enumerate(grammars)]

    def sample(logits: torch.Tensor, *sequences: Sequence) -> list[int]:
        return sampler.plan([Row(sequence) for sequence in sequences], logits.device).draw(logits).tokens.tolist()

    together = sample(logits, *sequences)
    assert together == [sample(logits[i : i + 1], sequence)[0] for i, sequence in enumerate(sequences)]
    for sequence, token in zip(sequences, together, strict=True):
        if sequence.matcher is not None:
            assert chr(token).isalnum()


@pytest.mark.parametrize("grammar", [LETTERS, grammar_of(json_schemas(3, seed=5)[2])])
def test_an_answer_cut_anywhere_goes_on_as_it_would_have(make_engine: MakeEngine, grammar: str) -> None:
    settings: dict[str, Any] = {
        "grammar": grammar,
        "temperature": 1.3,
        "seed": 11,
        "presence_penalty": 0.7,
        "frequency_penalty": 0.4,
        "repetition_penalty": 1.2,
        "min_tokens": 12,
        "max_tokens": 40,
        "ignore_eos": False,
    }
    prompt = random_prompt(21)
    whole = greedy("whole", prompt, **settings)
    engine = make_engine()
    finish = engine.finish(whole)["whole"].finish
    assert len(whole.output) > 12
    rests = [Sequence(str(cut), prompt, whole.params, output=whole.output[:cut]) for cut in range(1, len(whole.output))]
    finals = engine.finish(*rests)
    for rest in rests:
        assert rest.output == whole.output, f"cut after {rest.request_id} tokens"
        assert finals[rest.request_id].finish == finish
    over = Sequence("over", prompt, whole.params, output=list(whole.output))
    final = engine.finish(over)["over"]
    assert (final.finish, final.token_ids) == (finish, ())


def test_sequences_that_are_put_back_keep_to_their_grammars(make_engine: MakeEngine) -> None:
    roomy, tight = make_engine(), make_engine(blocks=10)
    grammar = LLMatcher.grammar_from_regex("([a-z]{3}[0-9]{2})+")

    def sequences() -> list[Sequence]:
        return [held(str(i), grammar, max_tokens=50, seed=i, temperature=1.0) for i in range(4)]

    expected, got = sequences(), sequences()
    roomy.finish(*expected)
    tight.finish(*got)
    assert [sequence.output for sequence in got] == [sequence.output for sequence in expected]
    assert tight.metrics.value("serval_num_preemptions_total") > 0


def test_what_cannot_be_followed_names_the_field(make_engine: MakeEngine) -> None:
    engine = make_engine()
    for wrong in ("start: nowhere", "start: /[/", '{"grammars": 3}', "\x00"):
        with pytest.raises(InvalidRequest, match="grammar") as raised:
            engine.engine.submit(held("wrong", wrong))
        assert raised.value.field == FIELD
    good, strayed = held("good", FIVE_LETTERS), held("strayed", FIVE_LETTERS)
    strayed = Sequence("strayed", strayed.prompt, strayed.params, output=[*b"ab3"])
    finals = engine.finish(good, strayed)
    assert (finals["good"].finish, finals["strayed"].finish) == ("stop", "error")
    error = finals["strayed"].error
    assert isinstance(error, InvalidRequest)
    assert error.field == FIELD
    assert finals["strayed"].token_ids == ()


def test_compiled_grammars_are_shared_and_their_answers_are_not(make_engine: MakeEngine) -> None:
    engine = make_engine()
    first, second = (held(name, FIVE_LETTERS, temperature=1.0, seed=seed) for seed, name in enumerate("ab"))
    engine.finish(first, second)
    assert engine.metrics.value("serval_grammar_compile_seconds_count") == 1
    assert first.output != second.output
    assert all(len(sequence.output) == 5 for sequence in (first, second))


def test_a_vocabulary_that_is_wider_than_its_tokenizer(tiny_folder: Any) -> None:
    metrics = Metrics("decode", "test")
    grammars = Grammars(tiny_folder / "tokenizer.json", 301, EOS, metrics)
    masks = grammars.masks([(grammars.matcher(LETTERS), ())])
    biases = grammars.biases(masks, masks.device)
    allowed = {*range(ord("a"), ord("z") + 1), *EOS}
    assert biases.shape == (1, 301)
    assert {token for token, bias in enumerate(biases[0].tolist()) if bias == 0.0} == allowed
    assert biases.isinf().sum() == 301 - len(allowed)


def test_a_prepared_one_reads_no_tokenizer_any_more(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes((tiny_folder / "tokenizer.json").read_bytes())
    grammars = Grammars(file, 260, EOS, Metrics("decode", "test"))
    grammars.prepare()
    file.unlink()
    assert grammars.matcher(LETTERS).error is None


def test_a_tokenizer_that_cannot_be_read_is_missed_by_grammars_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    grammars = Grammars(tmp_path / "tokenizer.json", 260, EOS, Metrics("decode", "test"))
    grammars.prepare()
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        grammars.matcher(LETTERS)


def test_a_folder_without_a_tokenizer_says_so(tiny_folder: Any) -> None:
    grammars = Grammars(tiny_folder / "nothing.json", 260, EOS, Metrics("decode", "test"))
    grammars.prepare()
    with pytest.raises(ConfigError, match=r"nothing\.json"):
        grammars.matcher(LETTERS)


def engine_grammars(engine: EngineUnderTest) -> Grammars:
    return engine.engine._grammars


def prepared(sampler: Sampler, grammar: str, **params: Any) -> Sequence:
    sequence = Sequence("r", [0], SamplingParams(grammar=grammar, **params))
    if grammar:
        assert sampler._grammars is not None
        sequence.matcher = sampler._grammars.matcher(grammar)
    return sequence
