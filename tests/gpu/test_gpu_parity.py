"""bfloat16 on a GPU against float32 on the CPU, from the same bfloat16 checkpoints.

Tolerance: the error of the logits, relative to how much they vary over the vocabulary. On a CPU bfloat16 came to 0.02 for the tiny
Llama, 0.05 for the tiny LongCat-Flash and 0.07 for Lite, whose routers choose other experts where two are nearly equal; about twice
as much is let pass.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from gpu_support import error, load, logits, sequence

from engine.batch import Span
from engine.sequence import Sequence
from engine.tiny import write_tiny_llama
from engine.tiny_longcat import LITE_CONFIG, write_tiny_longcat

PROMPT = [4 + (7 * place * place + place) % 250 for place in range(150)]
FAMILIES: dict[str, tuple[Callable[[Path], Path], float]] = {
    "llama": (lambda folder: write_tiny_llama(folder, dtype=torch.bfloat16), 0.04),
    "longcat-flash": (lambda folder: write_tiny_longcat(folder, dtype=torch.bfloat16), 0.1),
    "longcat-flash-lite": (lambda folder: write_tiny_longcat(folder, dtype=torch.bfloat16, raw=LITE_CONFIG), 0.15),
}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, float]:
    write, tolerance = FAMILIES[request.param]
    return write(tmp_path / "model"), tolerance


def test_prefill(model: tuple[Path, float], gpu: torch.device) -> None:
    """At once, long enough for the expanded form of latent attention, and in chunks."""
    folder, tolerance = model
    ours, exact = load(folder, gpu.type, "bfloat16"), load(folder, "cpu", "float32")
    expected = logits(exact, Span(sequence(exact, PROMPT), 0, len(PROMPT)))
    whole = logits(ours, Span(sequence(ours, PROMPT), 0, len(PROMPT)))
    assert error(whole, expected) < tolerance
    chunked = sequence(ours, PROMPT)
    bounds = [0, 33, 34, 100, len(PROMPT)]
    parts = [logits(ours, Span(chunked, start, end)) for start, end in pairwise(bounds)]
    assert error(torch.cat(parts), expected) < tolerance


def test_decode_of_several_sequences(model: tuple[Path, float], gpu: torch.device) -> None:
    """Token by token, in one batch with others of other lengths."""
    folder, tolerance = model
    ours, exact = load(folder, gpu.type, "bfloat16"), load(folder, "cpu", "float32")
    lengths = (150, 90, 40, 33)
    expected = [logits(exact, Span(sequence(exact, PROMPT[:length]), 0, length))[-8:] for length in lengths]
    sequences = [sequence(ours, PROMPT[:length], str(length)) for length in lengths]
    for each in sequences:
        logits(ours, Span(each, 0, len(each.tokens) - 8))
    decoded = torch.stack([logits(ours, *(_one_token(each, left) for each in sequences)) for left in range(8, 0, -1)], dim=1)
    for row, rows in enumerate(expected):
        assert error(decoded[row], rows) < tolerance


def _one_token(sequence: Sequence, left: int) -> Span:
    """The token of which the sequence has `left` from there on."""
    start = len(sequence.tokens) - left
    return Span(sequence, start, start + 1)
