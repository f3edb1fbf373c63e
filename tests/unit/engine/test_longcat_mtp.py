"""The MTP head agrees with the formulas in mtp_reference.py, for random configs and every way to compute it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.attention import mla
from engine.batch import Batch, Span
from engine.config import EngineConfig
from engine.kv_pool import KVPool
from engine.models.base import OnLayer
from engine.models.checkpoint import Checkpoint
from engine.models.registry import build_model, read_model_config
from engine.sequence import Sequence
from protocol.sampling import SamplingParams
from tests.unit.engine.longcat_support import random_config, random_model, write_released
from tests.unit.engine.mtp_reference import ReferenceHead, random_head

TOLERANCE = 1e-4
CONFIGS = 12
LENGTH = 45
BLOCK = 8
SHORTEST_EXPANDED = 12
"""So that the small prompts here are computed in both forms."""


class Drafting:
    """Our model with its head over a pool of NaN: any value that is read though nothing wrote it spoils the logits."""

    def __init__(self, seed: int, folder: Path) -> None:
        target: Any = random_model(random_config(seed), seed)
        head = random_head(target.config, seed)
        self.reference = ReferenceHead(head, target)
        shape = read_model_config(write_released(target, folder, head)).with_draft_head()
        assert shape is not None
        device = torch.device("cpu")
        with torch.inference_mode(), Checkpoint(folder) as checkpoint:
            self.model = build_model(
                shape, checkpoint, EngineConfig(), dtype=torch.float32, device=device, max_model_len=2 * LENGTH
            )
        self.pool = KVPool(
            num_layers=shape.num_kv_layers,
            num_blocks=64,
            block_size=BLOCK,
            entry_width=shape.entry_width,
            dtype=torch.float32,
            device=device,
        )
        self.pool.data.fill_(torch.nan)
        self.kv_layer = shape.num_kv_layers - 1
        self._latent = target.config.kv_lora_rank
        self._attention = self.model.attention_over(self.pool)
        self._drawn = torch.Generator().manual_seed(seed)
        self._next_block = 0
        self._vocab_size = shape.vocab_size

    def tokens(self, count: int) -> list[int]:
        return torch.randint(0, self._vocab_size, (count,), generator=self._drawn).tolist()

    def sequence(self, tokens: list[int], *, scattered: bool = False) -> Sequence:
        """All but the last of `tokens` known: that is the one drawn after them."""
        count = -(-LENGTH // BLOCK)
        blocks = list(range(self._next_block, self._next_block + count))
        self._next_block += count
        return Sequence(str(blocks[0]), tokens[:-1], SamplingParams(), blocks=blocks[::-1] if scattered else blocks)

    @torch.inference_mode()
    def step(self, *spans: tuple[Sequence, list[int], int, int], on_layer: OnLayer | None = None) -> torch.Tensor | None:
        """Each (sequence, its tokens and those to come, start, end); what it does not know of those is a guess. The head's logits
        at every sampled row."""
        drafts = [tuple(tokens[len(sequence.tokens) : end]) for sequence, tokens, _, end in spans]
        parts = [Span(span[0], *span[2:], guesses) for span, guesses in zip(spans, drafts, strict=True)]
        batch = Batch(parts, BLOCK, self.model.device)
        seen: list[torch.Tensor] = []
        logits = self.model.forward(batch, self.pool, self._attention, on_layer, seen.append)
        following = torch.tensor([token for _, tokens, start, end in spans for token in tokens[start + 1 : end + 1]])
        chosen = torch.arange(0 if logits is None else len(logits))
        assert self.model.draft_head is not None
        return self.model.draft_head.draft(batch, seen[0], following, chosen, self.pool, self._attention, on_layer)

    def entries(self, sequence: Sequence, count: int) -> torch.Tensor:
        """What its KV layer holds, the rotated part as pairs again."""
        entries = self.pool.read(self.kv_layer, torch.tensor(sequence.blocks))[:count]
        latents, rotated = entries[:, : self._latent], entries[:, self._latent :]
        return torch.cat((latents, torch.stack(rotated.chunk(2, dim=-1), dim=-1).flatten(1)), dim=-1)


def agree(ours: torch.Tensor | None, theirs: torch.Tensor) -> None:
    assert ours is not None
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01, "values so near each other say little"
    assert (ours - theirs).abs().max() <= TOLERANCE


@pytest.fixture(params=range(CONFIGS))
def drafting(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drafting:
    monkeypatch.setattr(mla, "EXPANDED_FROM", SHORTEST_EXPANDED)
    return Drafting(request.param, tmp_path)


def test_whole_prompt_chunks_and_steps(drafting: Drafting) -> None:
    tokens = drafting.tokens(LENGTH + 1)
    logits, kept = drafting.reference(tokens)
    for scattered in (False, True):
        whole, chunked = (drafting.sequence(tokens, scattered=scattered) for _ in range(2))
        agree(drafting.step((whole, tokens, 0, LENGTH)), logits[-1:])
        agree(drafting.entries(whole, LENGTH), kept)
        bounds = [0, 2, 7, 8, 30, LENGTH]
        for start, end in pairwise(bounds[:-1]):
            assert drafting.step((chunked, tokens, start, end)) is None
        agree(drafting.step((chunked, tokens, bounds[-2], LENGTH)), logits[-1:])
        agree(drafting.entries(chunked, LENGTH), kept)

    # Step by step from the first token, beside a sequence that is elsewhere and a chunk of one that is not sampled.
    alone, other = drafting.sequence(tokens[:2]), drafting.tokens(LENGTH + 1)
    beside, expected = drafting.sequence([*other[:21], 0]), drafting.reference(other)[0]
    drafting.step((beside, other, 0, 20))
    steps = []
    for known in range(1, 24):
        alone.tokens[:], beside.tokens[:] = tokens[:known], other[: 20 + known]
        spans = (alone, tokens, known - 1, known), (beside, other, 19 + known, 20 + known), (chunked, tokens, 9, 12)
        steps.append(drafting.step(*spans))
    agree(torch.stack([step[0] for step in steps if step is not None]), logits[:23])
    agree(torch.stack([step[1] for step in steps if step is not None]), expected[20:43])

    # Guesses: wrong ones leave entries that the next step overwrites; a chunk of another sequence is in the batch all the while.
    guessed = drafting.sequence(tokens[:31])
    drafting.step((guessed, tokens, 0, 29))
    wrong = [*tokens[:30], tokens[31], tokens[30], *tokens[32:]]
    assert wrong != tokens
    agree(drafting.step((guessed, wrong, 29, 32), (chunked, tokens, 9, 12)), drafting.reference(wrong[:33])[0][29:])
    guessed.tokens[:] = tokens[:32]
    agree(drafting.step((chunked, tokens, 9, 12), (guessed, tokens, 29, 34)), logits[31:34])
    agree(drafting.entries(guessed, 34), kept[:34])


def test_the_target_computes_as_without_the_head(tmp_path: Path) -> None:
    """And its layers are told before the head's, once each."""
    drafting = Drafting(3, tmp_path)
    tokens = drafting.tokens(22)
    sequence = drafting.sequence(tokens)
    told: list[int] = []

    def on_layer(layer: int, batch: Batch) -> None:
        assert not drafting.pool.data[layer, sequence.blocks[0], 0].isnan().any()
        told.append(layer)

    drafting.step((sequence, tokens, 0, 21), on_layer=on_layer)
    assert told == list(range(drafting.kv_layer + 1))
    assert drafting.pool.data[:, sequence.blocks[-1], 21 % BLOCK :].isnan().all(), "nothing past the tokens is written"
