"""Both ways to compute a prompt are tried and measured on a real pair, whatever it turns out that they cost."""

from pathlib import Path

import pytest
import torch
from pair_support import Pair, running_pair

from engine.tiny import write_tiny_llama
from protocol.sampling import SamplingParams

BLOCK, CHUNK = 16, 64
PARAMS = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


def random_prompt(length: int, seed: int) -> list[int]:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


async def ask(pair: Pair, length: int, seed: int) -> bool:
    """True when the decode worker computed the prompt."""
    ended = await pair.router.submit(random_prompt(length, seed), PARAMS).until_ended()
    assert ended.outcome == "length"
    return ended.timings.prefilled_locally


async def test_short_prompts_are_computed_where_they_are_needed_and_each_way_is_tried_now_and_then(folder: Path) -> None:
    engine = {"max_batch_tokens": CHUNK, "max_sequences": 8}
    async with running_pair(folder, engine=engine, decode={"local_prefill_max_tokens": "auto"}) as pair:
        assert await ask(pair, BLOCK, seed=0)
        assert not await ask(pair, 2 * CHUNK, seed=1)
        longs = [await ask(pair, 40, seed) for seed in range(10, 25)]
        assert 1 <= sum(longs) < len(longs), "one block is the beginning; a longer prompt is a trial"
        value = pair.decode_metrics.value
        assert value("serval_local_prefills_total", reason="trial") >= 1
        assert value("serval_local_prefills_total", reason="short") >= 1
        assert not any([await ask(pair, 2 * CHUNK, seed) for seed in range(30, 40)]), "no trial is longer than a chunk"


async def test_a_number_is_kept(folder: Path) -> None:
    async with running_pair(folder, decode={"local_prefill_max_tokens": 40}) as pair:
        assert [await ask(pair, length, seed=length) for length in (39, 40, 41, 80)] == [True, True, False, False]
