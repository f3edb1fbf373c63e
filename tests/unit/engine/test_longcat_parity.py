"""LongCat-Flash's logits agree with transformers' on the same weights, for random configs and every way to compute them."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.attention import mla
from engine.batch import Batch, Span
from engine.config import EngineConfig
from engine.engine import Engine
from engine.models.base import OnLayer
from engine.sequence import Sequence
from protocol.sampling import SamplingParams
from telemetry.metrics import Metrics
from tests.unit.engine.longcat_support import random_config, random_model, write_released

TOLERANCE = 1e-4
CONFIGS = 32
ANSWERED = 6
"""Tokens that a sequence has room for beside its prompt."""

SHORTEST_EXPANDED = 12
"""So that the small prompts here are computed in both forms."""


class Pair:
    """Our engine and transformers' model on the same random weights."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.theirs: Any = random_model(random_config(seed), seed)
        config = EngineConfig(dtype="float32", device="cpu", kv_memory_bytes=1 << 20, threads=1, block_size=8)
        self.engine = Engine.load(write_released(self.theirs, folder), config, Metrics("decode", "test"))
        # Any value that is read though it belongs to no token of the sequence spoils its logits.
        self.engine.pool.data.fill_(torch.nan)
        self._drawn = torch.Generator().manual_seed(seed)

    def sequence(self, length: int, *, scattered: bool = False) -> Sequence:
        tokens = torch.randint(0, self.theirs.config.vocab_size, (length,), generator=self._drawn).tolist()
        blocks = self.engine.kv_cache.allocate(self.engine.kv_cache.blocks_for(length + ANSWERED))
        return Sequence(str(length), tokens, SamplingParams(), blocks=blocks[::-1] if scattered else blocks)

    @torch.inference_mode()
    def forward(self, *spans: tuple[Sequence, int, int], on_layer: OnLayer | None = None) -> torch.Tensor | None:
        engine = self.engine
        batch = Batch([Span(*span) for span in spans], engine.pool.block_size, engine.model.device)
        return engine.model.forward(batch, engine.pool, engine._attention, on_layer)

    @torch.inference_mode()
    def expected(self, tokens: list[int]) -> torch.Tensor:
        """transformers' logits after each of `tokens`."""
        logits: torch.Tensor = self.theirs(torch.tensor([tokens])).logits[0]
        assert logits.std() > 0.05, "logits so near each other say little"
        return logits


def agree(ours: torch.Tensor | None, theirs: torch.Tensor) -> None:
    assert ours is not None
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= TOLERANCE


@pytest.fixture(params=range(CONFIGS))
def pair(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setattr(mla, "EXPANDED_FROM", SHORTEST_EXPANDED)
    return Pair(request.param, tmp_path)


def test_prefill_chunks_and_decode(pair: Pair) -> None:
    vocab_size = pair.theirs.config.vocab_size
    for length, scattered in ((61, False), (61, True), (SHORTEST_EXPANDED - 1, False)):
        whole, chunked = pair.sequence(length, scattered=scattered), pair.sequence(length, scattered=scattered)
        chunked.tokens[:] = whole.tokens
        theirs = pair.expected(whole.tokens)[-1:]
        agree(pair.forward((whole, 0, length)), theirs)
        chunks = [0, 2, 7, 8, length] if length < 40 else [0, 7, 40, 41, length]
        for start, end in pairwise(chunks[:-1]):
            assert pair.forward((chunked, start, end)) is None
        agree(pair.forward((chunked, chunks[-2], length)), theirs)

    # The first two are padded into one group, the third attends alone, the fourth is a chunk in the same batch.
    decoded = [pair.sequence(29), pair.sequence(27, scattered=True), pair.sequence(20)]
    pair.forward(*((each, 0, len(each.tokens)) for each in decoded))
    steps = []
    for _ in range(ANSWERED):
        for each in decoded:
            each.tokens.append(len(each.tokens) % vocab_size)
        steps.append(pair.forward(*((each, len(each.tokens) - 1, len(each.tokens)) for each in decoded), (chunked, 9, 11)))
    for row, each in enumerate(decoded):
        agree(torch.stack([step[row] for step in steps if step is not None]), pair.expected(each.tokens)[-ANSWERED:])
    agree(steps[0][3:] if steps[0] is not None else None, theirs)


def test_the_pool_holds_normed_scaled_and_rotated_latents(tmp_path: Path) -> None:
    """What transformers caches: after the norm, with its scale, the rotated part turned. Told layer by layer, once each."""
    pair = Pair(3, tmp_path)
    prompt = pair.sequence(21)
    told: list[int] = []

    def on_layer(layer: int, batch: Batch) -> None:
        assert not pair.engine.pool.data[layer, prompt.blocks[0], 0].isnan().any()
        told.append(layer)

    pair.forward((prompt, 0, 21), on_layer=on_layer)
    with torch.inference_mode():
        cache = pair.theirs(torch.tensor([prompt.tokens]), use_cache=True).past_key_values
    assert told == list(range(pair.engine.pool.num_layers)) == list(range(len(cache.layers)))
    for layer, theirs in enumerate(cache.layers):
        ours = pair.engine.pool.read(layer, torch.tensor(prompt.blocks))[:21]
        assert (ours - torch.cat((theirs.keys, theirs.values), dim=-1)[0, 0]).abs().max() <= TOLERANCE
