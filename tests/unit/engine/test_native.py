"""The native decode step: near float32 as torch is, or nearer; never in the way where it cannot run."""

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from llguidance import LLMatcher
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from engine.batch import Batch, Span
from engine.config import EngineConfig
from engine.engine import Engine
from engine.models.registry import read_model_config
from engine.native import library
from engine.native.decoder import why_not
from engine.sequence import Sequence
from engine.tiny import write_tiny_llama
from machine import c_library
from protocol.sampling import SamplingParams
from telemetry.metrics import Metrics
from tests.unit.engine.conftest import MakeEngine

needs_kernels = pytest.mark.skipif(library.load_library() is None, reason="no native kernels on this machine")

SMALL: dict[str, Any] = {
    "vocab_size": 224,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
YARN_ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, rope_theta=500.0),
    "llama-tied-biased": LlamaConfig(**SMALL, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama-yarn": LlamaConfig(**SMALL, rope_scaling=YARN_ROPE),
    "llama-multi-head": LlamaConfig(**SMALL | {"num_key_value_heads": 6}),
    "llama-large-groups": LlamaConfig(**SMALL | {"num_attention_heads": 10, "head_dim": 64, "hidden_size": 160}),
    "qwen2": Qwen2Config(**{name: value for name, value in SMALL.items() if name != "head_dim"} | {"hidden_size": 192}),
    "qwen3": Qwen3Config(**SMALL),
}
LENGTHS = (1, 2, 15, 16, 17, 33, 64, 100)
"""Of the contexts before the decoded tokens: around the edges of blocks, and of tiles."""


@pytest.fixture(scope="module", params=CONFIGS, ids=list(CONFIGS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights; biases and norms not at their neutral values."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param], dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0.0, 0.3)
        elif "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    model.to(torch.bfloat16).save_pretrained(path)
    return path


def load(
    folder: Path, dtype: str, native_kernels: str, block_size: int = 16, speculation: Literal["off", "ngram"] = "off"
) -> Engine:
    config = EngineConfig(
        dtype=dtype,  # type: ignore[arg-type]
        native_kernels=native_kernels,  # type: ignore[arg-type]
        device="cpu",
        kv_memory_bytes=1 << 22,
        threads=1,
        block_size=block_size,
        speculation=speculation,
    )
    engine = Engine.load(folder, config, Metrics("decode", "test"))
    # Any value that is read though it belongs to no token of the sequence spoils its logits.
    engine.pool.data.fill_(torch.nan)
    return engine


class Decoding:
    """Sequences after their prefill; half of them in scattered blocks."""

    def __init__(self, engine: Engine, tokens: list[list[int]], lengths: tuple[int, ...]) -> None:
        self.engine = engine
        self._tokens = tokens
        self.sequences: list[Sequence] = []
        for index, (known, length) in enumerate(zip(tokens, lengths, strict=True)):
            blocks = engine.kv_cache.allocate(engine.kv_cache.blocks_for(len(known)))
            blocks = blocks[::-1] if index % 2 else blocks
            self.sequences.append(Sequence(str(index), known[:length], SamplingParams(), blocks=blocks))
        for sequence in self.sequences:
            self.forward([Span(sequence, 0, len(sequence.tokens))])

    @torch.inference_mode()
    def forward(self, spans: list[Span]) -> torch.Tensor:
        batch = Batch(spans, self.engine.pool.block_size, self.engine.model.device)
        logits = self.engine.model.forward(batch, self.engine.pool, self.engine._attention, self.engine.on_layer)
        assert logits is not None
        return logits

    def step(self, members: list[int] | None = None) -> torch.Tensor:
        """The next known token of every member: logits [members, vocabulary]."""
        chosen = range(len(self.sequences)) if members is None else members
        spans = []
        for index in chosen:
            sequence = self.sequences[index]
            length = len(sequence.tokens)
            sequence.tokens.append(self._tokens[index][length])
            spans.append(Span(sequence, length, length + 1))
        return self.forward(spans)

    def step_with_guesses(self, counts: list[int]) -> torch.Tensor:
        """The next known token of each sequence, and so many after it as guesses: logits [rows, vocabulary]."""
        spans = []
        for sequence, known, count in zip(self.sequences, self._tokens, counts, strict=True):
            length = len(sequence.tokens)
            sequence.tokens.append(known[length])
            guesses = tuple(known[length + 1 : length + 1 + count])
            spans.append(Span(sequence, length, length + 1 + count, guesses))
        return self.forward(spans)


def random_tokens(lengths: tuple[int, ...], more: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 224, (length + more,), generator=generator).tolist() for length in lengths]


@needs_kernels
@pytest.mark.parametrize("block_size", [16, 32])
def test_as_near_to_float32_as_torch(folder: Path, block_size: int) -> None:
    tokens = random_tokens(LENGTHS, 20)
    results = []
    for dtype, native_kernels in (("float32", "off"), ("bfloat16", "off"), ("bfloat16", "auto")):
        decoding = Decoding(load(folder, dtype, native_kernels, block_size), tokens, LENGTHS)
        steps = [decoding.step() for _ in range(20)]
        assert {logits.dtype for logits in steps} == {torch.bfloat16 if results and native_kernels == "off" else torch.float32}
        results.append(torch.stack(steps).float())
    exact, by_torch, by_kernels = results
    theirs, ours = ((result - exact).norm(dim=-1) / exact.norm(dim=-1) for result in (by_torch, by_kernels))
    assert ours.mean() <= theirs.mean()
    # A single token may fall either way: where attention is peaked, one rounding decides what is attended to.
    assert ours.max() <= 1.5 * theirs.max()


@needs_kernels
def test_a_sequence_does_not_depend_on_the_batch(folder: Path) -> None:
    lengths = tuple(5 + 3 * index for index in range(20))
    tokens = random_tokens(lengths, 1)
    together = Decoding(load(folder, "bfloat16", "auto"), tokens, lengths).step()
    apart = Decoding(load(folder, "bfloat16", "auto"), tokens, lengths)
    assert torch.equal(together, torch.cat([apart.step([index]) for index in range(20)]))


@needs_kernels
@pytest.mark.parametrize("counts", [[0, 1, 4, 5, 3, 17, 2, 8], [18, 1, 0, 1, 16, 2, 15, 3]])
def test_rows_of_a_sequence_are_those_of_its_tokens_one_by_one(folder: Path, counts: list[int]) -> None:
    tokens = random_tokens(LENGTHS, 20)
    together = Decoding(load(folder, "bfloat16", "auto"), tokens, LENGTHS)
    rows = together.step_with_guesses(counts)
    assert rows.dtype == torch.float32
    alone = Decoding(load(folder, "bfloat16", "auto"), tokens, LENGTHS)
    one_by_one = [alone.step([index]) for index, count in enumerate(counts) for _ in range(1 + count)]
    assert torch.equal(rows, torch.cat(one_by_one))
    for ours, theirs in zip(together.sequences, alone.sequences, strict=True):
        # A wrong guess's KV is overwritten by the next step; that of right ones is as good as any.
        slots = torch.arange(len(theirs.tokens))
        where = torch.tensor(ours.blocks)[slots // 16] * 16 + slots % 16
        assert ours.blocks == theirs.blocks
        assert all(
            torch.equal(here[where], there[where])
            for here, there in zip(together.engine.pool.layer_tokens, alone.engine.pool.layer_tokens, strict=True)
        )


@needs_kernels
def test_a_wrong_guess_leaves_nothing_behind(folder: Path) -> None:
    """Not even where it is not a number: what comes before it never sees it, and the next step overwrites it."""
    lengths, spoiling = (20, 31), 7
    tokens = [[8 if token == spoiling else token for token in known] for known in random_tokens(lengths, 4)]
    right, wrong = (Decoding(load(folder, "bfloat16", "auto"), tokens, lengths) for _ in range(2))
    with torch.inference_mode():
        wrong.engine.model.embedding[spoiling] = torch.nan  # type: ignore[attr-defined]
    wrong._tokens = [[*known[: length + 1], *[spoiling] * 3] for known, length in zip(tokens, lengths, strict=True)]
    rows = wrong.step_with_guesses([3, 3])
    assert rows[[1, 2, 3, 5, 6, 7]].isnan().all()
    assert torch.equal(right.step(), rows[[0, 4]])
    wrong._tokens = tokens
    assert torch.equal(right.step(), wrong.step())


@needs_kernels
def test_guessing_changes_no_answer_in_bfloat16(folder: Path) -> None:
    """A near tie that rounding could decide either way is decided alike: rows are computed alike, to the bit."""
    answers, steps = [], []
    for speculation in ("off", "ngram"):
        engine = load(folder, "bfloat16", "auto", speculation=speculation)  # type: ignore[arg-type]
        sequences = [
            Sequence(
                str(index),
                tokens * 3,
                SamplingParams(temperature=0.4 * (index % 2), seed=index, max_tokens=40, ignore_eos=True),
            )
            for index, tokens in enumerate(random_tokens((3, 4, 6, 9, 11, 14), 0))
        ]
        for sequence in sequences:
            engine.submit(sequence)
        for _ in range(60):
            engine.step()
        assert engine.is_idle
        answers.append([sequence.output for sequence in sequences])
        steps.append(engine.steps)
    assert answers[0] == answers[1]
    assert steps[1] <= steps[0]


@needs_kernels
def test_other_batches_are_computed_by_torch(folder: Path) -> None:
    decoding = Decoding(load(folder, "bfloat16", "auto"), random_tokens((20, 30, 8), 4), (20, 30, 8))
    first, second, third = decoding.sequences
    assert decoding.step().dtype == torch.float32
    mixed = decoding.forward([Span(first, 20, 21), Span(second, 30, 31), Span(third, 2, 9)])
    assert mixed.dtype == torch.bfloat16
    assert mixed.isfinite().all()
    seen: list[int] = []
    decoding.engine.on_layer = lambda layer, batch: seen.append(layer)
    assert decoding.step().dtype == torch.bfloat16
    assert seen == [0, 1, 2]


@needs_kernels
def test_greedy_answers_are_torchs(tmp_path: Path) -> None:
    """A model so sure of itself that rounding changes no token: only a wrong step would."""

    model = write_tiny_llama(tmp_path, vocab_size=288, hidden_size=64, heads=4, kv_heads=2, head_dim=32, dtype=torch.bfloat16)
    answers = []
    for native_kernels in ("off", "auto"):
        engine = load(model, "bfloat16", native_kernels)
        engine.pool.data.zero_()
        sequence = Sequence("a", list(range(40)), SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True))
        engine.submit(sequence)
        for _ in range(10):
            engine.step()
        assert engine.is_idle
        answers.append(sequence.output)
    assert answers[0] == answers[1]


# ---- without kernels


@needs_kernels
def test_answers_keep_to_grammars_and_prompts_of_one_token_have_logprobs(tmp_path: Path) -> None:
    shape = {"hidden_size": 96, "heads": 6, "kv_heads": 2, "head_dim": 32, "intermediate_size": 160, "vocab_size": 288}
    engine = load(write_tiny_llama(tmp_path, **shape, dtype=torch.bfloat16), "bfloat16", "auto")  # type: ignore[arg-type]
    assert engine.model._decoder is not None
    params = SamplingParams(grammar=LLMatcher.grammar_from_regex("[a-z]{5}[0-9]{3}"), prompt_logprobs=1, max_tokens=50)
    sequences = [Sequence(str(seed), [65], replace(params, seed=seed, temperature=seed / 2)) for seed in range(6)]
    for sequence in sequences:
        engine.submit(sequence)
    updates = [update for _ in range(9) for update in engine.step()]
    assert engine.is_idle
    assert [update.finish for update in updates if update.finish] == ["stop"] * 6
    assert [len(update.prompt_logprobs) for update in updates] == [1] * 6 + [0] * 42
    for sequence in sequences:
        assert re.fullmatch(rb"[a-z]{5}[0-9]{3}", bytes(sequence.output))


@pytest.fixture
def fresh_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("SERVAL_CACHE", str(tmp_path))
    library.load_library.cache_clear()
    yield
    library.load_library.cache_clear()


@pytest.mark.usefixtures("fresh_library")
@pytest.mark.parametrize(
    ("flags", "compiler", "reason"),
    [
        (frozenset({"avx512f"}), "cc", "the CPU lacks amx_bf16"),
        (library.CPU_FLAGS, None, "no C compiler"),
        (library.CPU_FLAGS, "/bin/false", "/bin/false refused"),
        (library.CPU_FLAGS, "/no/such/compiler", "compiling failed"),
        (library.CPU_FLAGS, "/bin/true", "compiling failed"),
    ],
)
def test_what_is_missing_is_said_and_torch_computes(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    make_engine: MakeEngine,
    flags: frozenset[str],
    compiler: str | None,
    reason: str,
) -> None:
    monkeypatch.setattr(library, "_cpu_flags", lambda: flags)
    monkeypatch.setattr(c_library.shutil, "which", lambda name: compiler)
    monkeypatch.setattr("engine.models.registry.why_not", lambda *_: None)
    with caplog.at_level(logging.INFO, logger="engine.native.library"):
        answer = make_engine(dtype="bfloat16").answer([1, 2, 3], max_tokens=5)
    assert len(answer) == 5
    assert reason in caplog.text


@needs_kernels
@pytest.mark.usefixtures("fresh_library")
def test_the_library_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert library.load_library() is not None
    (compiled,) = tmp_path.iterdir()
    written_ns = compiled.stat().st_mtime_ns
    library.load_library.cache_clear()
    monkeypatch.setattr(c_library.subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert library.load_library() is not None
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == [written_ns]


def test_only_what_the_kernels_can_is_given_to_them(tmp_path: Path) -> None:
    LlamaConfig(**SMALL, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    model = read_model_config(tmp_path)
    cpu, bfloat16 = torch.device("cpu"), torch.bfloat16
    assert why_not(model, bfloat16, cpu, 16) is None
    assert "bfloat16" in (why_not(model, torch.float32, cpu, 16) or "")
    assert "CPU" in (why_not(model, bfloat16, torch.device("cuda"), 16) or "")
    assert "block_size" in (why_not(model, bfloat16, cpu, 8) or "")
    for odd in ({"hidden_size": 48}, {"intermediate_size": 100}, {"vocab_size": 200}, {"head_dim": 16}):
        assert "widths" in (why_not(replace(model, **odd), bfloat16, cpu, 16) or "")
    assert "shares" in (why_not(replace(model, num_heads=34), bfloat16, cpu, 16) or "")
    assert "4 GiB" in (why_not(replace(model, vocab_size=1 << 26), bfloat16, cpu, 16) or "")
    torch.set_num_threads(2)
    try:
        assert "thread" in (why_not(model, bfloat16, cpu, 16) or "")
    finally:
        torch.set_num_threads(1)
