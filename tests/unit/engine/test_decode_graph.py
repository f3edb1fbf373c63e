"""Replayed decode steps answer as steps that are laid out anew: token for token, whoever comes, goes and guesses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.decode_graph.shape import Draws
from engine.engine import Engine
from engine.sequence import Sequence
from engine.tiny import write_tiny_llama
from engine.tiny_longcat import write_tiny_longcat
from protocol.sampling import SamplingParams
from telemetry.metrics import Metrics
from tests.agreeing_longcat import write_agreeing_longcat
from tests.unit.engine.conftest import EngineUnderTest, greedy
from tests.unit.engine.replay_support import Replays
from tests.unit.engine.speculation_support import Costs

FOLDERS: dict[str, Callable[[Path], Path]] = {
    "llama": write_tiny_llama,
    "longcat": write_tiny_longcat,
    "agreeing": write_agreeing_longcat,
}
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.7, "top_p": 0.8, "seed": 4},
    {"temperature": 1.3, "top_k": 7, "seed": 5},
    {"temperature": 0.9, "min_p": 0.05, "top_p": 0.95, "top_k": 40, "seed": 6},
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in FOLDERS.items()}


@pytest.fixture(params=["llama", "longcat"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def engine(folder: Path, **settings: Any) -> EngineUnderTest:
    given = {
        "dtype": "float32",
        "device": "cpu",
        "kv_memory_bytes": 2 << 20,
        "max_model_len": 256,
        "max_sequences": 8,
        "max_batch_tokens": 64,
        "block_size": 8,
        "threads": 1,
        "check_integrity": True,
        "speculation": "off",
    }
    metrics = Metrics("decode", "test")
    under_test = EngineUnderTest(Engine.load(folder, EngineConfig(**(given | settings)), metrics), metrics)
    if under_test.engine._speculation is not None:  # every guess pays: which ones do otherwise hangs on this machine's times
        under_test.engine._speculation._recent = Costs((0.0, 0.0))
    return under_test


def repeating(length: int, seed: int) -> list[int]:
    """Of a few tokens, so that n-grams come again."""
    return [4 + place % 5 + 7 * seed for place in range(length)]


def requests() -> list[Sequence]:
    """More than there are places for, of many lengths and ways of drawing, so that batches grow and shrink. In the end two are left
    that draw from the whole distribution, then one that takes the likeliest."""
    lengths = [4, 15, 7, 20, 9, 12, 5, 26, 34]
    ways = [*WAYS, WAYS[0], WAYS[2], WAYS[1], WAYS[0]]
    return [
        greedy(str(index), repeating(3 + 9 * index % 70, index), **{"max_tokens": length, **way})
        for index, (length, way) in enumerate(zip(lengths, ways, strict=True))
    ]


def scatter(under_test: EngineUnderTest, free: int) -> None:
    """Leaves so many free blocks, no two of them beside each other as far as that goes. What nobody has written is not a number."""
    cache, pool = under_test.engine.kv_cache, under_test.engine.pool
    pool.data.fill_(torch.nan)
    blocks = cache.allocate(cache.num_blocks)
    order = [*blocks[::2], *blocks[1::2]]
    cache.release(order[:free])


@pytest.mark.parametrize(
    ("name", "speculation", "is_tight"),
    [
        ("llama", "off", False),
        ("llama", "ngram", True),
        ("longcat", "mtp", False),
        ("agreeing", "off", True),
        ("agreeing", "mtp", False),
        ("agreeing", "mtp", True),
        ("agreeing", "ngram", False),
    ],
)
def test_the_same_answers(folders: dict[str, Path], name: str, speculation: str, is_tight: bool) -> None:
    """And as many guesses are made, and hold. `is_tight`: blocks run out, so that some are put back."""
    laid_out, replaying = (engine(folders[name], speculation=speculation, draft_tokens=3) for _ in range(2))
    replays = Replays(replaying)
    scatter(replaying, 22 if is_tight else 200)
    scatter(laid_out, 22 if is_tight else 200)
    expected, found = requests(), requests()
    laid_out.finish(*expected)
    replaying.finish(*found)
    assert [sequence.output for sequence in found] == [sequence.output for sequence in expected]
    tallies = [[(each.drafted_tokens, each.accepted_tokens) for each in sequences] for sequences in (expected, found)]
    assert tallies[0] == tallies[1]
    assert replays.steps > replays.others > 0
    if speculation == "off":
        assert {shape.sequences for shape in replays.shapes} >= {1, 2, 4}
        assert {shape.draws for shape in replays.shapes} == set(Draws)
    rows = {"off": {1}, "mtp": {1, 2}, "ngram": {1, 4}}[speculation]
    assert {shape.rows_each for shape in replays.shapes} == rows
    assert (sum(sequence.num_preemptions for sequence in found) > 0) is is_tight
    if name == "agreeing" and speculation == "mtp":
        assert sum(held for _, held in tallies[0]) > 20


@pytest.mark.parametrize("steps_in_flight", [2, 3])
def test_with_steps_in_flight(folder: Path, steps_in_flight: int) -> None:
    laid_out, replaying = engine(folder), engine(folder, steps_in_flight=steps_in_flight)
    replays = Replays(replaying)
    expected, found = requests(), requests()
    laid_out.finish(*expected)
    replaying.finish(*found)
    assert [sequence.output for sequence in found] == [sequence.output for sequence in expected]
    assert replays.steps > 20


def test_what_a_graph_cannot_hold_is_laid_out(folder: Path) -> None:
    """Rules that look at tokens, and log-probabilities: the same answers, alone and beside others."""
    params: tuple[dict[str, Any], ...] = (
        {"repetition_penalty": 1.3, "temperature": 1.0, "seed": 1},
        {"presence_penalty": 0.7},
        {"logit_bias": {7: 3.0}},
        {"min_tokens": 5, "ignore_eos": False},
        {"logprobs": 2},
    )
    laid_out, replaying = engine(folder), engine(folder)
    replays = Replays(replaying)
    both = []
    for under_test in (laid_out, replaying):
        sequences = [
            greedy(str(index), repeating(5 + index, index), max_tokens=8 + 3 * index, **each)
            for index, each in enumerate((*params, {}))
        ]
        finals = under_test.finish(*sequences)
        logprobs = [update.logprobs for update in under_test.updates if update.request_id == "4" and update.token_ids]
        both.append(
            ([sequence.output for sequence in sequences], {name: each.finish for name, each in finals.items()}, logprobs)
        )
    assert both[0] == both[1]
    assert all(both[1][2])
    assert replays.others > 10
    assert replays.steps > 0


def test_who_takes_a_place_after_another_has_its_own_blocks(folder: Path) -> None:
    """Sequences of the same place in the batch, one after another, and one that is put back and comes again to other blocks."""
    laid_out, replaying = engine(folder, prefix_cache=False), engine(folder, prefix_cache=False)
    Replays(replaying)
    for turn in range(4):
        answers = []
        for under_test in (laid_out, replaying):
            sequence = Sequence(str(turn), repeating(10 + 13 * turn, turn), SamplingParams(temperature=0.0, max_tokens=20))
            under_test.finish(sequence)
            answers.append(sequence.output)
        assert answers[0] == answers[1]
