"""transformers' own `generate` in a process of its own, which computes only when asked: the peer of decode_throughput.py.

One JSON object per line on stdin asks, one on stdout answers:

    {"prompts": [[1, 2], [3, 4]], "new_tokens": 128}   prompts of one length: one static batch
    {"token_s": [0.31, 0.35, …]}                       seconds from the start at which each token of the batch was there

The first answer, {"ready": true}, says that the model is loaded. Ends with its stdin.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging


class Clock(StoppingCriteria):  # type: ignore[misc]
    """Stops nothing; notes when each step of `generate` ended."""

    def __init__(self) -> None:
        self.step_s: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.step_s.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def main() -> None:
    """Reads requests until stdin ends."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype)).eval()
    _answer({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        _answer({"token_s": generate(model, request["prompts"], request["new_tokens"])})


@torch.inference_mode()
def generate(model: Any, prompts: list[list[int]], new_tokens: int) -> list[float]:
    """Greedy decoding of exactly `new_tokens` for each prompt. Seconds from the start to the end of each step, the first being
    prefill."""
    batch = torch.tensor(prompts)
    clock = Clock()
    started_s = time.perf_counter()
    model.generate(
        batch,
        attention_mask=torch.ones_like(batch),
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        stopping_criteria=StoppingCriteriaList([clock]),
    )
    return [step_s - started_s for step_s in clock.step_s]


def _answer(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate_peer", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--dtype", required=True, choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
