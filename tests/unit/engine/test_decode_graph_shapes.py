"""Which steps are replayed, and that nothing in one looks at what the device computes or brings anything to it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.batch import Span
from engine.config import EngineConfig
from engine.decode_graph.block_rows import BlockRows
from engine.decode_graph.choice import make_step_graphs, step_graphs, what_prevents
from engine.decode_graph.shape import Draws, StepShape, StepShapes, sizes_up_to
from engine.kv_pool import KVPool
from engine.models.base import Model
from engine.models.blueprint import Blueprint
from engine.models.registry import build_model, read_model_config
from engine.sequence import Sequence
from engine.tiny_longcat import LITE_CONFIG, write_tiny_longcat
from protocol.sampling import SamplingParams

VOCABULARY = 300
SHAPES = StepShapes((1, 2, 4, 48), 3, VOCABULARY)
GREEDY = {"temperature": 0.0}


def decode(drafts: int = 0, *, output: int = 3, unread: int = 0, **params: Any) -> Span:
    sequence = Sequence("one", list(range(10)), SamplingParams(**(GREEDY | params)), output=[7] * output, blocks=list(range(9)))
    end = len(sequence.tokens) + unread
    return Span(sequence, end - 1, end + drafts, (5,) * drafts, unread)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([decode()], StepShape(1, 1, Draws.LIKELIEST)),
        ([decode()] * 3, StepShape(4, 1, Draws.LIKELIEST)),
        ([decode(unread=2)], StepShape(1, 1, Draws.LIKELIEST)),
        ([decode(), decode(1)], StepShape(2, 4, Draws.LIKELIEST)),
        ([decode(3), decode(temperature=1.0)], StepShape(2, 4, Draws.WHOLE)),
        ([decode(temperature=1.0, top_p=0.9), decode()], StepShape(2, 1, Draws.TRUNCATED)),
        ([decode(temperature=1.0, top_k=5)], StepShape(1, 1, Draws.TRUNCATED)),
        ([decode(temperature=1.0, top_k=VOCABULARY)], StepShape(1, 1, Draws.WHOLE)),
        ([decode(temperature=0.5, min_p=0.1)], StepShape(1, 1, Draws.TRUNCATED)),
        ([decode(top_p=0.5)], StepShape(1, 1, Draws.LIKELIEST)),
        ([decode(min_tokens=3)], StepShape(1, 1, Draws.LIKELIEST)),
    ],
)
def test_the_smallest_that_takes_them(spans: list[Span], expected: StepShape) -> None:
    assert SHAPES.of(spans) == expected


@pytest.mark.parametrize(
    "spans",
    [
        [decode(4)],
        [decode()] * 49,
        [decode(logprobs=0)],
        [decode(min_tokens=4)],
        [decode(logit_bias={3: 1.0})],
        [decode(presence_penalty=0.1)],
        [decode(frequency_penalty=0.1)],
        [decode(repetition_penalty=1.1)],
        [decode(output=0, prompt_logprobs=1)],
        [decode(), Span(decode().sequence, 2, 9)],
        [decode(), Span(decode().sequence, 11, 13)],
        [decode(3), *[decode()] * 40],
    ],
    ids=[
        "guesses",
        "many",
        "logprobs",
        "short",
        "bias",
        "presence",
        "frequency",
        "repetition",
        "prompt",
        "chunk",
        "end",
        "repeats",
    ],
)
def test_others_are_laid_out(spans: list[Span]) -> None:
    assert SHAPES.of(spans) is None


def test_many_rows_are_worth_it_where_most_have_guesses() -> None:
    assert SHAPES.of([decode(3)] * 40) == StepShape(48, 4, Draws.LIKELIEST)


def test_sizes() -> None:
    assert [sizes_up_to(most) for most in (1, 2, 6, 64)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8, 16, 32, 64)]
    shapes = StepShapes((2, 1), 1, VOCABULARY).every()
    assert [(shape.sequences, shape.rows_each) for shape in shapes[::3]] == [(2, 2), (2, 1), (1, 2), (1, 1)]
    with pytest.raises(ValidationError, match="cuda_graph_sizes must be between 1 and max_sequences"):
        EngineConfig(max_sequences=8, cuda_graph_sizes=(4, 9))


def test_tables_follow_who_takes_a_place_and_what_is_put_back() -> None:
    rows = BlockRows(3, 5)
    one, two = (Sequence(name, [1] * 20, SamplingParams(), blocks=blocks) for name, blocks in (("1", [4, 2]), ("2", [9])))

    def table(sequences: list[Sequence], used: int) -> list[list[int]]:
        return rows.table(sequences, 3, used, pinned=False).tolist()

    assert table([one, two], 2) == [[4, 2], [9, 0], [9, 0]]
    one.take([7])
    assert table([one, two], 3) == [[4, 2, 7], [9, 0, 0], [9, 0, 0]]
    assert [row[:1] for row in table([two, one], 3)] == [[9], [4], [4]]
    assert table([two, one], 3)[1] == [4, 2, 7]
    one.give_up_blocks()
    one.take([8, 3])
    assert [row[:2] for row in table([two, one], 2)][1:] == [[8, 3], [8, 3]]


class NothingIsLookedAt(TorchDispatchMode):
    """What has a shape and no values cannot be looked at; and nothing may come from the host, which no graph would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for each in tree_leaves((args, kwargs)):
            assert not isinstance(each, torch.Tensor) or each.is_meta, f"{func} takes what the host has"
        self.operations += 1
        return func(*args, **(kwargs or {}))


def on_meta(folder: Path, with_mtp: bool) -> tuple[Model, KVPool]:
    meta = torch.device("meta")
    shape = read_model_config(folder)
    shape = (shape.with_draft_head() or shape) if with_mtp else shape
    model = build_model(shape, Blueprint(), EngineConfig(), dtype=torch.bfloat16, device=meta, max_model_len=64)
    sizes = {"num_layers": shape.num_kv_layers, "num_blocks": 8, "block_size": 16, "entry_width": shape.entry_width}
    return model, KVPool(**sizes, dtype=torch.bfloat16, device=meta)


@pytest.mark.parametrize("with_mtp", [False, True])
@pytest.mark.parametrize("family", ["llama", "longcat"])
@torch.inference_mode()
def test_nothing_is_looked_at(tiny_folder: Path, tmp_path: Path, family: str, with_mtp: bool) -> None:
    """In any shape, from token ids to the next guess: as on a GPU, experts included."""
    folder = tiny_folder if family == "llama" else write_tiny_longcat(tmp_path)
    model, pool = on_meta(folder, with_mtp)
    config = EngineConfig(max_sequences=2, speculation="auto" if family == "longcat" else "ngram", draft_tokens=3)
    graphs = step_graphs(config, model, pool, model.attention_over(pool), 64)
    for shape, step in graphs._steps.items():
        with NothingIsLookedAt() as watch:
            step()
        assert watch.operations > 100
        drafted = shape.sequences if model.draft_head is not None else 0
        assert step.numbers.shape == (shape.rows + shape.sequences + drafted,)


def test_what_prevents_it_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    llama, longcat = on_meta(tiny_folder, False)[0], on_meta(write_tiny_longcat(tmp_path / "flash"), False)[0]
    lite = on_meta(write_tiny_longcat(tmp_path / "lite", raw=LITE_CONFIG), False)[0]
    config = EngineConfig()
    assert what_prevents(config, llama, torch.float32, (8, 0)) is None
    assert what_prevents(config, longcat, torch.bfloat16, (9, 0)) is None
    assert "bfloat16 on 9.0" in str(what_prevents(config, longcat, torch.bfloat16, (8, 9)))
    assert "bfloat16 on 9.0" in str(what_prevents(config, longcat, torch.float32, (9, 0)))
    assert "those before it" in str(what_prevents(config, lite, torch.bfloat16, (9, 0)))
    assert "several processes" in str(what_prevents(EngineConfig(tensor_parallel_size=2), llama, torch.bfloat16, (9, 0)))


def test_a_cpu_captures_nothing(tiny_folder: Path) -> None:
    model, pool = on_meta(tiny_folder, False)
    assert make_step_graphs(EngineConfig(), model, pool, model.attention_over(pool), 64) is None
