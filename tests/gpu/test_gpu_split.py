"""A model split over two GPUs, NCCL between them, against the same on one; skipped where there are fewer."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gpu_support import error, load, logits, sequence

from engine.batch import Span
from engine.sequence import Sequence
from engine.tiny import write_tiny_llama
from engine.tiny_longcat import write_tiny_longcat
from protocol.sampling import SamplingParams

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds fewer than two GPUs")

PROMPT = [4 + (7 * place * place + place) % 250 for place in range(150)]
ROUNDING = 0.05
"""Twice what bfloat16 does to a tiny model's logits on a CPU."""


@pytest.mark.parametrize("write", [write_tiny_llama, write_tiny_longcat])
def test_two_gpus_compute_what_one_does(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write(tmp_path, dtype=torch.float32)
    one, two = (load(folder, "cuda", "float32", tensor_parallel_size=size) for size in (1, 2))
    try:
        expected, split = (logits(engine, Span(sequence(engine, PROMPT), 0, len(PROMPT))) for engine in (one, two))
        assert error(split, expected) < ROUNDING
        outputs = []
        for engine in (one, two):
            answered = Sequence("answer", PROMPT, SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True))
            engine.submit(answered)
            while not engine.is_idle:
                engine.step()
            outputs.append(answered.output)
            engine.release(answered)
        assert outputs[0] == outputs[1]
    finally:
        two.close()
