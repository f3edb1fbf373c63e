"""A decode worker that stops hands back what does not end in time: it goes on elsewhere, and the answer is the same."""

import asyncio
from pathlib import Path

import pytest
from pair_support import WAIT_S, running_pair

from engine.tiny import write_tiny_llama
from protocol.sampling import SamplingParams

pytestmark = pytest.mark.cluster

LONG = SamplingParams(temperature=0.9, seed=3, max_tokens=300, ignore_eos=True, presence_penalty=0.4)
PROMPTS = [[(7 * index + step) % 256 for step in range(40)] for index in range(3)]


async def test_what_outlasts_the_grace_period_moves_and_stays_itself(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    async with running_pair(folder, decode={"local_prefill_max_tokens": 0}) as leaving:
        begun = [leaving.router.submit(prompt, LONG) for prompt in PROMPTS]
        for told in begun:
            await told.until_tokens(5)
        await leaving.decode.drain(0.05)
        late = leaving.router.submit(PROMPTS[0], LONG)
        for told in (*begun, late):
            ended = await told.until_ended()
            assert (ended.outcome, ended.handed_back) == ("unavailable", True)
        assert late.tokens == []
        async with asyncio.timeout(WAIT_S):  # the engine lets go of them a step later
            while leaving.decode_metrics.value("serval_kv_blocks", state="held"):  # noqa: ASYNC110 - another thread's
                await asyncio.sleep(0.01)
        assert leaving.decode_metrics.value("serval_kv_landing_blocks", state="leased") == 0

    async with running_pair(folder, decode={"local_prefill_max_tokens": 0}) as staying:
        whole = [staying.router.submit(prompt, LONG) for prompt in PROMPTS]
        rests = [
            staying.router.submit(prompt + told.tokens, LONG, output_tokens=len(told.tokens))
            for prompt, told in zip(PROMPTS, begun, strict=True)
        ]
        for told in (*whole, *rests):
            assert (await told.until_ended()).outcome == "length"
        for before, rest, undisturbed in zip(begun, rests, whole, strict=True):
            assert 5 <= len(before.tokens) < LONG.max_tokens
            assert before.tokens + rest.tokens == undisturbed.tokens
