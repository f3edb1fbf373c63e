"""Either worker of a pair is replaced at its own address, idle or loaded; the other goes on, and KV moves again at once."""

import asyncio
from pathlib import Path

import pytest
from pair_support import WAIT_S, Pair, Told, running_pair

from engine.tiny import write_tiny_llama
from protocol.sampling import SamplingParams

SHORT = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
LONG = SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True)


def prompt(seed: int, length: int = 40) -> list[int]:
    return [(31 * seed + 7 * step + step * step) % 256 for step in range(length)]


async def assert_moves(pair: Pair, seed: int) -> None:
    ended = await pair.router.submit(prompt(seed), SHORT).until_ended()
    assert (ended.outcome, ended.timings.prefilled_locally) == ("length", False)
    assert ended.timings.transfer_bytes > 0


async def assert_all_given_back(pair: Pair) -> None:
    def taken() -> float:
        held = [each.value("serval_kv_blocks", state="held") for each in (pair.prefill_metrics, pair.decode_metrics)]
        states = ("leased", "quiescing", "quarantined", "pumping")
        return sum(held) + sum(pair.decode_metrics.value("serval_kv_landing_blocks", state=state) for state in states)

    async with asyncio.timeout(WAIT_S):
        while taken():  # noqa: ASYNC110 - another's state
            await asyncio.sleep(0.02)


async def load(pair: Pair) -> list[Told]:
    """Answers under way, and prompts under way."""
    asked = [pair.router.submit(prompt(seed), LONG) for seed in range(50, 53)]
    for told in asked:
        await told.until_tokens(5)
    begun = [pair.router.submit(prompt(seed, 900), LONG) for seed in range(60, 64)]
    async with asyncio.timeout(WAIT_S):
        while pair.prefill_metrics.value("serval_kv_blocks", state="held") == 0:  # noqa: ASYNC110 - another's state
            await asyncio.sleep(0)
    return [*asked, *begun]


@pytest.mark.parametrize("is_loaded", [False, True], ids=["idle", "loaded"])
@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_the_other_needs_no_restart(tmp_path: Path, role: str, is_loaded: bool) -> None:
    settings = {"local_prefill_max_tokens": 0, "abort_timeout_s": 0.5}
    async with running_pair(write_tiny_llama(tmp_path), decode=settings, transfer={"renew_after_s": 0.5}) as pair:
        await assert_moves(pair, seed=1)
        under_way = await load(pair) if is_loaded else []
        before = {name: peer.incarnation for name, peer in pair.router.peers.items()}
        address = pair.router.peers[f"{role}-0"].address
        await (pair.replace_prefill() if role == "prefill" else pair.replace_decode())
        after = {name: peer.incarnation for name, peer in pair.router.peers.items()}
        assert {name for name in before if before[name] != after[name]} == {f"{role}-0"}
        assert pair.router.peers[f"{role}-0"].address == address
        for told in under_way:
            ended = await told.until_ended()
            if role == "prefill":
                assert (ended.outcome, len(told.tokens)) == ("length", LONG.max_tokens), "nobody notices"
            else:
                assert ended.handed_back or ended.outcome == "length"
        for seed in (2, 3):
            await assert_moves(pair, seed)
        await assert_all_given_back(pair)
