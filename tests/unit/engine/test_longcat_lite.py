"""LongCat-Flash-Lite: embeddings of n-grams, against a reading of their definition in Python's own integers, and through the model
against transformers' LongCat-Flash, which is given these embeddings in place of token ids."""

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.batch import Batch, Span
from engine.config import EngineConfig
from engine.engine import Engine
from engine.linear import Linear
from engine.models.blueprint import count_parameters, tensor_shapes
from engine.models.longcat_config import LongcatConfig
from engine.models.ngram_embedding import NgramEmbedding, NgramShape
from engine.models.registry import read_model_config
from engine.sequence import Sequence
from engine.tiny_longcat import LITE_CONFIG, write_tiny_longcat
from protocol.errors import ConfigError
from protocol.sampling import SamplingParams
from telemetry.metrics import Metrics
from tests.unit.engine.conftest import EngineUnderTest
from tests.unit.engine.longcat_support import random_config, random_model, write_released

END = 2
LITE = {
    "architectures": ["LongcatFlashNgramForCausalLM"],
    "vocab_size": 131072,
    "hidden_size": 3072,
    "num_layers": 14,
    "num_attention_heads": 32,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "ffn_hidden_size": 6144,
    "expert_ffn_hidden_size": 1024,
    "n_routed_experts": 256,
    "zero_expert_num": 128,
    "moe_topk": 12,
    "routed_scaling_factor": 6.0,
    "rope_theta": 5e6,
    "max_position_embeddings": 327680,
    "eos_token_id": END,
    "emb_neighbor_num": 4,
    "emb_split_num": 4,
    "ngram_vocab_size_ratio": 78,
}
"""LongCat-Flash-Lite's config.json, what matters here."""


def definition(tokens: list[int], shape: NgramShape) -> list[list[int]]:
    """Rows of each token's n-grams, table by table: the n-gram as one number in base V, modulo the table's rows."""
    rows = []
    for place, token in enumerate(tokens):
        start = max((at + 1 for at in range(place) if tokens[at] == END), default=0)
        history = tokens[start:place][::-1]
        row = []
        for length in range(2, shape.longest + 1):
            number = token + sum(
                before * shape.vocab_size**distance for distance, before in enumerate(history[: length - 1], start=1)
            )
            row += [number % shape.rows[(length - 2) * shape.splits + split] for split in range(shape.splits)]
        rows.append(row)
    return rows


def text(drawn: random.Random, vocab_size: int, length: int) -> list[int]:
    """Ends now and then, twice in a row too."""
    return [END if drawn.random() < 0.15 else drawn.randrange(vocab_size) for _ in range(length)]


@pytest.mark.parametrize("seed", range(12))
def test_rows_are_those_of_the_definition(seed: int) -> None:
    """Computed at once, in chunks, token by token, with guesses behind the known tokens, several sequences in one batch."""
    drawn = random.Random(f"n-grams {seed}")
    shape = NgramShape(
        drawn.randint(2, 5), drawn.randint(1, 4), drawn.choice([30, 10_223_616]), 4, drawn.choice([50, 131072]), END
    )
    meta = torch.empty(sum(shape.rows), 4, device="meta")
    ngrams = NgramEmbedding(shape, torch.empty(0), Linear(meta))
    sequences = [Sequence(str(n), text(drawn, shape.vocab_size, 40), SamplingParams()) for n in range(3)]
    expected = [definition(each.tokens, shape) for each in sequences]
    for each in sequences:
        each.blocks = list(range(3))
    for bounds in ([0, 40], [0, 1, 2, 3, 17, 40], list(range(41))):
        for start, end in pairwise(bounds):
            batch = Batch([Span(each, start, end) for each in sequences], 16, torch.device("cpu"))
            assert ngrams.table_rows(batch).tolist() == [row for rows in expected for row in rows[start:end]]
    guesses = tuple(text(drawn, shape.vocab_size, 4))
    guessed = definition([*sequences[0].tokens, *guesses], shape)[39:]
    batch = Batch([Span(sequences[0], 39, 44, guesses)], 16, torch.device("cpu"))
    assert ngrams.table_rows(batch).tolist() == guessed


class Pair:
    """Our engine and transformers' model on the same random weights, with n-grams."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.drawn = random.Random(f"lite {seed}")
        self.theirs: Any = random_model(random_config(seed), seed)
        config = self.theirs.config
        choices = [(n, k) for n in (2, 3, 4, 5) for k in (1, 2, 4) if config.hidden_size % ((n - 1) * k) == 0]
        longest, splits = self.drawn.choice(choices)
        write_released(self.theirs, folder)
        raw = json.loads((folder / "config.json").read_text())
        raw |= {"architectures": ["LongcatFlashNgramForCausalLM"], "eos_token_id": END}
        raw |= {"emb_neighbor_num": longest, "emb_split_num": splits, "ngram_vocab_size_ratio": 2.5}
        (folder / "config.json").write_text(json.dumps(raw))
        shape = read_model_config(folder)
        assert isinstance(shape, LongcatConfig) and shape.ngrams is not None
        self.shape = shape.ngrams
        hidden, width = config.hidden_size, config.hidden_size // ((longest - 1) * splits)
        self.tables = [torch.randn(rows, width) for rows in self.shape.rows]
        self.projections = [torch.randn(hidden, width) / width**0.5 for _ in self.tables]
        kinds = {"embedders": self.tables, "post_projs": self.projections}
        added = {f"model.ngram_embeddings.{kind}.{n}.weight": w for kind, ws in kinds.items() for n, w in enumerate(ws)}
        save_file(load_file(folder / "model.safetensors") | added, folder / "model.safetensors")
        settings = EngineConfig(dtype="float32", device="cpu", kv_memory_bytes=1 << 20, threads=1, block_size=8)
        self.engine = Engine.load(folder, settings, Metrics("decode", "test"))

    @torch.inference_mode()
    def expected(self, tokens: list[int]) -> torch.Tensor:
        """transformers' logits after each of `tokens`."""
        own = self.theirs.model.embed_tokens(torch.tensor(tokens))
        parts = [own]
        for table, rows in enumerate(zip(*definition(tokens, self.shape), strict=True)):
            parts.append(self.tables[table][list(rows)] @ self.projections[table].t())
        logits: torch.Tensor = self.theirs(inputs_embeds=torch.stack(parts).mean(dim=0).unsqueeze(0)).logits[0]
        assert (logits - self.theirs(torch.tensor([tokens])).logits[0]).abs().max() > 0.05, "n-grams must matter"
        return logits

    @torch.inference_mode()
    def forward(self, *spans: Span) -> torch.Tensor:
        engine = self.engine
        batch = Batch(list(spans), engine.pool.block_size, engine.model.device)
        logits = engine.model.forward(batch, engine.pool, engine._attention)
        assert logits is not None
        return logits


@pytest.mark.parametrize("seed", range(10))
def test_logits_are_transformers(seed: int, tmp_path: Path) -> None:
    pair = Pair(seed, tmp_path)
    sequences = []
    for length in (37, 20):
        tokens = text(pair.drawn, pair.theirs.config.vocab_size, length)
        blocks = pair.engine.kv_cache.allocate(pair.engine.kv_cache.blocks_for(length))
        sequences.append(Sequence(str(length), tokens, SamplingParams(), blocks=blocks))
    theirs = [pair.expected(each.tokens) for each in sequences]
    whole = pair.forward(*(Span(each, 0, len(each.tokens)) for each in sequences))
    assert (whole - torch.stack([logits[-1] for logits in theirs])).abs().max() <= 1e-4
    # In chunks, then token by token, both at once.
    tokens = [list(each.tokens) for each in sequences]
    for place in range(9, 20):
        for each, all_tokens in zip(sequences, tokens, strict=True):
            each.tokens[:] = all_tokens[: place + 1]
        spans = [Span(each, 0 if place == 9 else place, place + 1) for each in sequences]
        ours = pair.forward(*spans)
        assert (ours - torch.stack([logits[place] for logits in theirs])).abs().max() <= 1e-4


def test_published_sizes(tmp_path: Path) -> None:
    """68.5 billion parameters, 2.9 to 4.5 of them activated; as many tensors as its index has beside the MTP head's 17."""
    (tmp_path / "config.json").write_text(json.dumps(LITE))
    config = read_model_config(tmp_path)
    parameters = count_parameters(config)
    in_billions = [round(n / 1e9, 1) for n in (parameters.total, parameters.activated_min, parameters.activated_max)]
    assert in_billions == [68.6, 2.9, 4.5]
    shapes = tensor_shapes(config)
    assert len(shapes) == 11_143
    for n in range(12):
        assert shapes[f"model.ngram_embeddings.embedders.{n}.weight"] == (78 * 131072 + 2 * n + 1, 256)
        assert shapes[f"model.ngram_embeddings.post_projs.{n}.weight"] == (3072, 256)


def test_the_same_answer_in_every_chunking_and_way_of_stepping(tmp_path: Path) -> None:
    folder = write_tiny_longcat(tmp_path, raw=LITE_CONFIG)
    prompt = text(random.Random(1), 260, 150)
    answers = []
    for chunk, speculation, in_flight in ((512, "off", 1), (7, "off", 1), (512, "mtp", 1), (64, "ngram", 1), (512, "off", 2)):
        metrics = Metrics("decode", "test")
        config = EngineConfig(
            dtype="float32",
            device="cpu",
            kv_memory_bytes=1 << 20,
            threads=1,
            max_batch_tokens=chunk,
            max_sequences=4,
            speculation=speculation,  # type: ignore[arg-type]
            steps_in_flight=in_flight,
            check_integrity=True,
        )
        under_test = EngineUnderTest(Engine.load(folder, config, metrics), metrics)
        answers.append(under_test.answer(prompt, max_tokens=12))
        # The prompt's beginning is cached now: what is computed begins in its middle.
        assert under_test.answer(prompt, max_tokens=12) == answers[-1]
    assert all(each == answers[0] for each in answers)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"emb_neighbor_num": 1}, "emb_neighbor_num must be at least 2"),
        ({"emb_split_num": 5}, "hidden_size 96 is not shared out evenly by 15 tables"),
        ({"ngram_vocab_size_ratio": None}, "ngram_vocab_size_ratio must be a positive number"),
        ({"ngram_exclude_sp_token": True}, "ngram_exclude_sp_token is not supported for LongcatFlashNgramForCausalLM"),
        ({"architectures": ["LongcatCausalLM"]}, "ngram_vocab_size_ratio is not supported for LongcatCausalLM"),
        ({"oe_neighbor_num": 4}, "oe_neighbor_num is not supported"),
        ({"attention_method": "LSA"}, "attention_method LSA is not supported, only MLA"),
        ({"architectures": ["LongcatNextForCausalLM"]}, "architecture LongcatNextForCausalLM is not supported"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LITE_CONFIG | change))
    with pytest.raises(ConfigError, match=words):
        read_model_config(tmp_path)
