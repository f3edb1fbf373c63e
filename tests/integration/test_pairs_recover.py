"""A pair whose transfers fail is avoided, probed by real transfers of one block, and used again when one arrives."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pair_support import running_pair

from engine.tiny import write_tiny_llama
from protocol.errors import TransferFailed
from protocol.sampling import SamplingParams

pytestmark = pytest.mark.cluster

PARAMS = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)


async def test_a_failed_pair_is_avoided_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_pair(write_tiny_llama(tmp_path), decode={"local_prefill_max_tokens": 0}) as pair:
        sender, parts = pair.prefill._sender, pair.decode._parts
        assert sender is not None and parts is not None

        async def ask(seed: int) -> bool:
            """Whether its prompt was computed here."""
            told = pair.router.submit([(seed * 31 + step) % 256 for step in range(40)], PARAMS)
            ended = await told.until_ended()
            assert (ended.outcome, len(told.tokens)) == ("length", 3)
            return bool(ended.timings.prefilled_locally)

        assert not await ask(1)

        def broken(*_: Any) -> None:
            raise TransferFailed("the cable is out")

        with monkeypatch.context() as patched:
            patched.setattr(sender, "open", broken)
            assert await ask(2) and await ask(3)
            assert parts.pairs.avoided == [pair.router.peers["prefill-0"].incarnation]
            assert await ask(4)
            assert pair.decode_metrics.value("serval_local_prefills_total", reason="pair_avoided") == 1
            async with asyncio.timeout(20):
                while not pair.decode_metrics.value("serval_pair_probes_total", result="failed"):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        async with asyncio.timeout(20):
            while parts.pairs.avoided:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert not await ask(5)
        async with asyncio.timeout(20):
            while pair.decode_metrics.value("serval_kv_blocks", state="held"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        free = sum(parts.receiver.blocks_by_state().values())
        assert parts.receiver.blocks_by_state()["free"] == free, "probes gave back their landing slots"
