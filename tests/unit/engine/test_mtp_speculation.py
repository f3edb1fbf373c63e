"""With its MTP head drafting, LongCat-Flash answers token for token as without; and guesses hold as often as they are right."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.batch import Batch, Span
from engine.config import EngineConfig
from engine.engine import Engine
from engine.kv_pool import KVPool
from engine.models.blueprint import Blueprint
from engine.models.registry import build_model, read_model_config
from engine.scheduler import Schedule
from engine.sequence import Sequence, SequenceUpdate
from engine.speculation.mtp import MtpDrafter
from engine.speculation.verify import Verification
from engine.tiny_longcat import write_tiny_longcat
from protocol.errors import ConfigError
from protocol.sampling import SamplingParams
from telemetry.metrics import Metrics
from tests.agreeing_longcat import write_agreeing_longcat
from tests.unit.engine.conftest import EngineUnderTest, greedy
from tests.unit.engine.speculation_support import Costs

BLOCK_BYTES = 16 * 40 * 4 * 5
"""Of one KV block over all layers, the head's too."""


@pytest.fixture(scope="module")
def agreeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_agreeing_longcat(tmp_path_factory.mktemp("agreeing"))


@pytest.fixture(scope="module")
def stubborn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose head is next to never right."""
    return write_tiny_longcat(tmp_path_factory.mktemp("stubborn"))


def engine(folder: Path, speculation: str, **changes: Any) -> "Drafting":
    settings: dict[str, Any] = {
        "dtype": "float32",
        "device": "cpu",
        "kv_memory_bytes": 256 * BLOCK_BYTES,
        "max_batch_tokens": 48,
        "max_sequences": 16,
        "threads": 1,
        "check_integrity": True,
        "speculation": speculation,
    }
    metrics = Metrics("decode", "test")
    return Drafting(Engine.load(folder, EngineConfig(**(settings | changes)), metrics), metrics)


class Drafting(EngineUnderTest):
    """Counts the guesses that are computed, and those that hold. All that are made are computed, whatever that costs."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        super().__init__(engine, metrics)
        if engine._speculation is not None:
            engine._speculation._recent = Costs((0.0, 0.0))
        self.guessed = self.held = 0
        self._schedule, engine._scheduler.schedule = engine._scheduler.schedule, self._counted  # type: ignore[method-assign]

    def step(self) -> list[SequenceUpdate]:
        updates = super().step()
        self.held += sum(max(0, len(update.token_ids) - 1) for update in updates)
        return updates

    def _counted(self) -> Schedule:
        schedule = self._schedule()
        self.guessed += sum(len(span.drafts) for span in schedule.spans)
        return schedule


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(4, 260, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


PARAMS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.7, "top_p": 0.8, "top_k": 9, "seed": 4},
    {"repetition_penalty": 1.3, "presence_penalty": 0.4},
    {"temperature": 1.2, "seed": 5, "frequency_penalty": 0.5, "min_p": 0.01},
    {"logit_bias": {77: 6.0}, "stop_token_ids": (77,), "min_tokens": 9},
]


def mixed() -> list[Sequence]:
    """Prompts below and above a chunk, every kind of sampling."""
    lengths = (1, 15, 16, 17, 70, 130)
    return [
        greedy(f"{length} {index}", prompt(length, seed=10 * length + index), **{"max_tokens": 24, **params})
        for length in lengths
        for index, params in enumerate(PARAMS)
        if (length + index) % 2
    ]


def outputs(under_test: EngineUnderTest, sequences: list[Sequence]) -> list[tuple[list[int], str | None]]:
    ended = under_test.finish(*sequences)
    return [(sequence.output, ended[sequence.request_id].finish) for sequence in sequences]


@pytest.mark.parametrize("model", ["agreeing", "stubborn"])
def test_mixed_batches_answer_as_without(model: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(model)
    with_head, without = engine(folder, "mtp"), engine(folder, "off")
    assert outputs(with_head, mixed()) == outputs(without, mixed())
    assert with_head.guessed > 50
    assert with_head.held > with_head.guessed / 2 if model == "agreeing" else with_head.held < with_head.guessed / 5
    assert with_head.engine.steps < without.engine.steps if model == "agreeing" else True
    assert with_head.engine.kv_cache.num_held == 0


def test_answers_when_blocks_run_out(agreeing: Path) -> None:
    """Some are put back and computed again, head and all."""
    with_head, without = (engine(agreeing, kind, kv_memory_bytes=26 * BLOCK_BYTES) for kind in ("mtp", "off"))
    sequences = [greedy(str(index), prompt(60, seed=index), max_tokens=60) for index in range(5)]
    again = [greedy(str(index), prompt(60, seed=index), max_tokens=60) for index in range(5)]
    assert outputs(with_head, sequences) == outputs(without, again)
    assert sum(sequence.num_preemptions for sequence in sequences) > 0
    assert with_head.held > with_head.guessed / 2 > 0


def test_prefix_cache(agreeing: Path) -> None:
    """Beginnings whose last entry in the head's layer was made for another next token: guesses, not answers, may differ."""
    with_head, without = engine(agreeing, "mtp"), engine(agreeing, "off", prefix_cache=False)
    beginning = prompt(64, seed=1)
    for turn in range(4):
        tail = prompt(turn * 5 + 1, seed=20 + turn)
        params: dict[str, Any] = {"max_tokens": 20, **PARAMS[turn % 3]}
        again, fresh = (greedy(str(turn), [*beginning, *tail], **params) for _ in range(2))
        with_head.finish(again)
        without.finish(fresh)
        assert again.output == fresh.output
        assert again.cached_tokens == (64 if turn else 0)


@torch.inference_mode()
def guesses_of(folder: Path, tokens: list[int]) -> list[int]:
    """The head's guess at each token from the third on, with the true ones before it: token by token, without any drafting."""
    under_test = engine(folder, "mtp").engine
    model, pool = under_test.model, under_test.pool
    attention = model.attention_over(pool)
    sequence = Sequence("by hand", tokens[:1], SamplingParams(), blocks=under_test.kv_cache.allocate(16))
    assert model.draft_head is not None
    guessed = []
    for position, following in enumerate(tokens[1:]):
        batch = Batch([Span(sequence, position, position + 1)], pool.block_size, model.device)
        hidden: list[torch.Tensor] = []
        model.forward(batch, pool, attention, None, hidden.append)
        chosen = torch.tensor([0])
        logits = model.draft_head.draft(batch, hidden[0], torch.tensor([following]), chosen, pool, attention)
        assert logits is not None
        guessed.append(int(logits.argmax()))
        sequence.append(following)
    return guessed


@pytest.mark.parametrize("params", PARAMS[:3])
def test_as_many_guesses_hold_as_are_right(agreeing: Path, params: dict[str, Any]) -> None:
    """Counted by hand: from a known answer, one step per token that was not guessed, or guessed wrong."""
    under_test = engine(agreeing, "mtp")
    sequence = greedy("counted", prompt(50, seed=6), **{"max_tokens": 80, **params})
    under_test.finish(sequence)
    guessed = dict(enumerate(guesses_of(agreeing, sequence.tokens), start=2))
    known, end, steps, wanted, held = len(sequence.prompt) + 1, len(sequence.tokens), 0, 0, 0
    while known < end:
        steps += 1
        if known + 1 < end:  # a guess at the last token would need a token after it
            wanted += 1
            if guessed[known] == sequence.tokens[known]:
                held += 1
                known += 1
        known += 1
    assert (under_test.guessed, under_test.held) == (wanted, held)
    assert under_test.engine.steps == steps + 2, "the prompt took two"
    assert held > wanted / 3


def test_a_draft_of_whoever_computed_the_prompt_is_verified_at_once(agreeing: Path) -> None:
    """What a prefill worker hands over: the first token, a guess at the second, and the prompt's KV, the head's layer included.
    Where the guess holds, one step brings all that is left of three tokens."""
    prefill, decode, alone = engine(agreeing, "mtp"), engine(agreeing, "mtp"), engine(agreeing, "off")
    for seed in range(8):
        asked = prompt(70, seed=seed)
        first = greedy("there", asked, max_tokens=1)
        prefill.engine.submit(first)
        while not any(update.finish for update in prefill.engine.step()):
            pass

        blocks, params = decode.engine.kv_cache.allocate(5), SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
        decode.engine.pool.data[:, blocks] = prefill.engine.pool.data[:, first.blocks]
        handed_over = Sequence("here", asked, params, blocks=blocks, num_computed=len(asked))
        handed_over.append(first.output[0])
        handed_over.drafts = guess = list(first.drafts)
        prefill.engine.release(first)
        steps = decode.engine.steps
        decode.finish(handed_over)

        expected = alone.answer(asked, max_tokens=3)
        assert handed_over.output == expected
        assert decode.engine.steps - steps == (1 if guess == expected[1:2] else 2)
    assert decode.guessed == 8
    assert decode.held > 4


def test_a_draft_is_dropped_where_the_prompt_did_not_arrive(agreeing: Path) -> None:
    """The first token and a guess were there already when the transfer failed: the prompt is computed here, in chunks."""
    here, alone = engine(agreeing, "mtp"), engine(agreeing, "off")
    asked = prompt(130, seed=1)
    expected = alone.answer(asked, max_tokens=5)
    sequence = greedy("here", asked, max_tokens=5)
    sequence.append(expected[0])
    sequence.drafts = expected[1:2]
    here.engine.submit(sequence)
    here.step()
    assert here.guessed == 0
    while not here.engine.is_idle:
        here.step()
    assert sequence.output == expected


@torch.inference_mode()
def test_nothing_is_looked_at_from_the_forward_pass_to_the_guess(stubborn: Path) -> None:
    """On tensors that have a shape and no values: the host gives the device all its work before anything is known."""
    meta = torch.device("meta")
    shape = read_model_config(stubborn).with_draft_head()
    assert shape is not None
    model = build_model(shape, Blueprint(), EngineConfig(), dtype=torch.bfloat16, device=meta, max_model_len=64)
    sizes = {"num_layers": shape.num_kv_layers, "num_blocks": 8, "block_size": 16, "entry_width": shape.entry_width}
    pool = KVPool(**sizes, dtype=torch.bfloat16, device=meta)
    attention = model.attention_over(pool)
    assert model.draft_head is not None
    drafter = MtpDrafter(model.draft_head, pool, attention)
    sequences = [Sequence(str(index), [1] * 30, SamplingParams(), blocks=[2 * index, 2 * index + 1]) for index in range(4)]
    decodes, chunk, prompt_end = sequences[:2], sequences[2], sequences[3]
    spans = [*(Span(sequence, 29, 31, (5,)) for sequence in decodes), Span(chunk, 4, 9), Span(prompt_end, 16, 30)]
    batch = Batch(spans, 16, meta, shifted=True)
    verification, hidden = Verification(batch), list[torch.Tensor]()
    logits = model.forward(batch, pool, attention, None, hidden.append)
    assert logits is not None
    guesses = drafter.launch(batch, hidden[0], verification.verify(logits.argmax(dim=-1)), None)
    assert guesses is not None and guesses.is_meta
    assert guesses.shape == (3, 1)


def test_mtp_without_a_head_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^speculation: mtp needs"):
        engine(tiny_folder, "mtp")
    assert engine(tiny_folder, "auto").engine.model.draft_head is None


def test_auto_uses_the_head_and_off_does_without(stubborn: Path) -> None:
    assert engine(stubborn, "auto").engine.pool.num_layers == 5
    assert engine(stubborn, "off").engine.pool.num_layers == 4
