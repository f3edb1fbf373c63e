"""A router that takes nothing of what a worker says costs the worker a bounded number of bytes, and nobody else anything."""

import asyncio
from pathlib import Path

from pair_support import WAIT_S, running_pair

from engine.tiny import write_tiny_llama
from protocol.sampling import SamplingParams
from worker.config import LinkConfig

WORDY = SamplingParams(temperature=0.0, max_tokens=2000, ignore_eos=True, logprobs=20)
PROMPTS = [[(7 * index + step) % 256 for step in range(20)] for index in range(8)]


async def test_its_stream_is_ended_its_requests_are_released_and_it_is_dialled_again(tmp_path: Path) -> None:
    link = LinkConfig(outbox_max_bytes=1 << 20, reconnect_min_s=0.01)
    async with running_pair(write_tiny_llama(tmp_path), link=link) as pair:
        router, metrics, requests = pair.router, pair.decode_metrics, pair.decode._requests
        assert requests is not None
        asked = [router.submit(prompt, WORDY) for prompt in PROMPTS]
        for told in asked:
            await told.until_tokens(1)
        router.reads.clear()
        async with asyncio.timeout(WAIT_S):
            while metrics.value("serval_router_stalls_total") == 0 or router.streams < 2:  # noqa: ASYNC110 - another's state
                await asyncio.sleep(0.01)
        await asyncio.wait_for(requests._idle.wait(), WAIT_S)
        assert metrics.value("serval_router_stalls_total") == 1
        assert metrics.value("serval_kv_blocks", state="held") == 0
        assert all(told.ended is None for told in asked), "they were given up, not answered"

        router.reads.set()
        again = router.submit(PROMPTS[0], SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True))
        assert (await again.until_ended()).outcome == "length", "it is welcome when it takes what it is told"
        assert all(told.ended is None for told in asked), "no word on the new stream about requests of the old one"


async def test_a_later_stream_hears_nothing_of_an_earlier_one_s_requests(tmp_path: Path) -> None:
    """A router that is started anew counts its requests from one again: a late word would end another's."""
    async with running_pair(write_tiny_llama(tmp_path)) as pair:
        requests = pair.decode._requests
        assert requests is not None
        told = pair.router.submit(PROMPTS[0], WORDY)
        await told.until_tokens(3)
        (flow,) = requests._by_key.values()
        requests.on_lost(flow.request.link)  # and it is live again at once
        await asyncio.wait_for(requests._idle.wait(), WAIT_S)
        after = pair.router.submit(PROMPTS[1], SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True))
        assert (await after.until_ended()).outcome == "length"
        assert told.ended is None, "what came after it went the same way"
