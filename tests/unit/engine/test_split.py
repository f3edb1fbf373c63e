"""A model split over several processes computes what one process does."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from split_support import SplitUnderTest, recorded, whole

from engine.models.held import held_bytes, weight_bytes
from engine.models.longcat_flash import LongcatModel
from engine.sequence import Sequence
from engine.split.share import Share
from engine.tiny import write_tiny_llama
from engine.tiny_longcat import LITE_CONFIG, write_tiny_longcat
from protocol.errors import ConfigError
from protocol.sampling import SamplingParams
from tests.agreeing_longcat import write_agreeing_longcat
from tests.unit.engine.conftest import EngineUnderTest, greedy, random_prompt
from tests.unit.engine.test_longcat_fp8 import EVEN_BLOCK, pair  # noqa: F401  # a fixture

LENGTHS = (1, 15, 16, 17, 70, 150)
"""Below and above a block, a chunk, and the length from which latents are expanded."""
CLOSE = 1e-4
EXPERTS = 16 * 3 * 96 * 48
LEFT_WIDE = (EXPERTS * (4 - 1) - EXPERTS // 256 * 4) // 2
"""Bytes of one layer's experts that the 8-bit checkpoint has in float32, above what they would be in 8 bits; of two processes."""


def lite(folder: Path) -> Path:
    return write_tiny_longcat(folder, raw=LITE_CONFIG)


def wide_llama(folder: Path) -> Path:
    """More query heads than ranks, fewer KV heads; a vocabulary that does not divide."""
    return write_tiny_llama(folder, heads=8, kv_heads=2, head_dim=8, vocab_size=263, tie_word_embeddings=True)


def sequences(**params: object) -> list[Sequence]:
    return [greedy(f"s{length}", random_prompt(length, seed=length), **params) for length in LENGTHS]


def answers(under_test: EngineUnderTest, **params: object) -> dict[str, list[int]]:
    asked = sequences(**params)
    under_test.finish(*asked)
    return {sequence.request_id: sequence.output for sequence in asked}


@pytest.mark.parametrize(
    ("write", "size", "speculation"),
    [
        (write_tiny_llama, 2, "off"),
        (wide_llama, 4, "ngram"),
        (write_tiny_longcat, 2, "off"),
        (write_tiny_longcat, 4, "off"),
        (write_tiny_longcat, 4, "mtp"),
        (lite, 2, "off"),
    ],
)
def test_the_same_logits(write: Callable[[Path], Path], size: int, speculation: str, tmp_path: Path) -> None:
    """In chunks, together with decodes, and alone. With guesses, the same answers."""
    folder = write(tmp_path)
    one, split = whole(folder, speculation=speculation), SplitUnderTest(folder, size, speculation=speculation)
    expected, logits = recorded(one), recorded(split)
    assert answers(split, max_tokens=10) == answers(one, max_tokens=10)
    if speculation != "off":  # which guesses a step computes hangs on how long steps take
        return
    assert len(logits) == len(expected) > 10
    for mine, theirs in zip(logits, expected, strict=True):
        assert (mine - theirs).abs().max() < CLOSE


def test_every_rank_has_the_whole_kv(tmp_path: Path) -> None:
    for write in (write_tiny_llama, write_tiny_longcat):
        split = SplitUnderTest(write(tmp_path / write.__name__), 2)
        split.answer(random_prompt(100), max_tokens=3)
        assert split.pools[0].data.abs().sum() > 0
        split.engine.model.logits(torch.zeros(1, split.engine.model.config.hidden_size))  # the follower has come so far
        assert torch.allclose(split.pools[0].data, split.pools[1].data, atol=CLOSE)


def test_guesses_hold_as_often(tmp_path: Path) -> None:
    """A head that is right more often than not."""
    folder = write_agreeing_longcat(tmp_path)
    counts = []
    for under_test in (whole(folder, speculation="mtp"), SplitUnderTest(folder, 2, speculation="mtp")):
        asked = sequences(max_tokens=20)
        under_test.finish(*asked)
        counts.append([(sequence.output, sequence.drafted_tokens > 0, sequence.accepted_tokens > 0) for sequence in asked])
    assert counts[0] == counts[1]
    assert any(accepted for _, _, accepted in counts[1])


def test_prefix_hits_and_preemption(tmp_path: Path) -> None:
    """A pool too small for all: sequences are put back and computed again, some from cached beginnings."""
    folder = write_tiny_longcat(tmp_path)
    prompts = [random_prompt(64, seed=1) + random_prompt(20, seed=seed) for seed in range(2, 8)]
    outputs = []
    split = SplitUnderTest(folder, 2, kv_memory_bytes=300_000)
    for under_test in (whole(folder, kv_memory_bytes=300_000), split):
        asked = [greedy(f"s{index}", prompt, max_tokens=40) for index, prompt in enumerate(prompts)]
        under_test.finish(asked[0])
        under_test.finish(*asked[1:])
        outputs.append([sequence.output for sequence in asked])
        assert sum(sequence.num_preemptions for sequence in asked) > 0
        assert asked[1].cached_tokens > 0
    assert outputs[0] == outputs[1]
    assert not any(message["adopted"] for message in split.say("forward")), "all was computed by everybody"


def test_kv_that_came_from_elsewhere_reaches_everybody(tmp_path: Path) -> None:
    """As a decode worker gets it: written into the leader's pool by another thread. Then the prompt is found again by a prefix."""
    folder = write_tiny_longcat(tmp_path)
    one, split = whole(folder), SplitUnderTest(folder, 2)
    prompt, params = random_prompt(70), SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    first = Sequence("prefill", prompt, SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True))
    one.engine.submit(first)
    one.engine.step(), one.engine.step()  # two chunks
    assert first.output
    split.answer(random_prompt(200, seed=9))  # so that blocks hold something else

    blocks = split.engine.kv_cache.allocate(6)
    split.pools[0].data[:, blocks[:5]] = one.engine.pool.data[:, first.blocks[:5]]
    adopted = Sequence("decode", prompt, params, blocks=blocks, num_computed=70, output=list(first.output))
    split.finish(adopted)
    expected = whole(folder).answer(prompt, max_tokens=12)
    assert adopted.output == expected
    assert [message["adopted"] for message in split.say("forward") if message["adopted"]] == [blocks[:5]]

    again = greedy("again", [*prompt, *expected[:3]], max_tokens=9)
    split.finish(again)
    assert again.cached_tokens == 64
    assert again.output == expected[3:]
    assert sum(bool(message["adopted"]) for message in split.say("forward")) == 1, "a block is sent once"


def test_prompt_logprobs(tmp_path: Path) -> None:
    folder = write_tiny_longcat(tmp_path)
    scored = []
    for under_test in (whole(folder, speculation="mtp"), SplitUnderTest(folder, 2, speculation="mtp")):
        sequence = greedy("one", random_prompt(150), max_tokens=3, prompt_logprobs=2, logprobs=2)
        under_test.finish(sequence)
        scored.append([each.logprob for each in sequence.prompt_logprobs])
    assert len(scored[0]) == 150
    assert scored[1] == pytest.approx(scored[0], abs=CLOSE)


def test_steps_in_flight(tmp_path: Path) -> None:
    """Tokens that only the leader's device has when the next step is launched."""
    folder = write_tiny_longcat(tmp_path)
    one, split = (
        make(speculation="off", steps_in_flight=3)
        for make in (lambda **s: whole(folder, **s), lambda **s: SplitUnderTest(folder, 2, **s))
    )
    assert answers(split, max_tokens=10) == answers(one, max_tokens=10)
    assert any(message["unread"] for message in split.say("forward"))  # type: ignore[attr-defined]


@pytest.mark.parametrize("fp8_weights", ["widen", "keep"])
@pytest.mark.parametrize("pair", [EVEN_BLOCK], ids=["even"], indirect=True)
def test_8_bit_checkpoints(pair: tuple[Path, Path], fp8_weights: str) -> None:  # noqa: F811
    eight_bit, plain = pair
    split = SplitUnderTest(eight_bit, 4, fp8_weights=fp8_weights)
    assert answers(split, max_tokens=8) == answers(whole(plain), max_tokens=8)


@pytest.mark.parametrize("pair", [(32, 32)], indirect=True)
def test_a_cut_within_a_block_of_scales_is_refused(pair: tuple[Path, Path]) -> None:  # noqa: F811
    """Attention's outputs have 64 inputs: four processes would cut a block of 32."""
    with pytest.raises(
        ConfigError, match=r"engine\.tensor_parallel_size: 4 processes would cut .*o_proj.* within a block of 32"
    ):
        SplitUnderTest(pair[0], 4, fp8_weights="keep")


def test_what_cannot_be_shared_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.tensor_parallel_size: 3 processes cannot share 4 attention heads evenly"):
        SplitUnderTest(write_tiny_longcat(tmp_path), 3)


def test_zero_experts_count_once(tmp_path: Path) -> None:
    """Together the ranks compute what one does: no expert twice, and nobody's zero experts."""
    folder = write_tiny_longcat(tmp_path)
    one, split = whole(folder), SplitUnderTest(folder, 2)
    for under_test in (one, split):
        under_test.answer(random_prompt(50), max_tokens=4)
    split.engine.model.logits(torch.zeros(1, 96))
    tallies = [model.expert_tally.read() for _, model in sorted(split.models.items()) if isinstance(model, LongcatModel)]
    whole_tally = one.engine.model.expert_tally
    assert whole_tally is not None
    expected = whole_tally.read()
    assert [tally.real for tally in tallies] == [expected.real] * 2
    assert sum(tally.product_rows for tally in tallies) == expected.product_rows


@pytest.mark.parametrize(
    ("write", "size", "eight_bit"),
    [(write_tiny_llama, 4, False), (write_agreeing_longcat, 2, False), (None, 2, True), (lite, 2, False)],
)
@pytest.mark.parametrize("pair", [EVEN_BLOCK], ids=["even"], indirect=True)
def test_what_inspect_says_is_what_is_held(
    write: Callable[[Path], Path] | None,
    size: int,
    eight_bit: bool,
    tmp_path: Path,
    pair: tuple[Path, Path],  # noqa: F811
) -> None:
    folder = pair[0] if write is None else write(tmp_path / "model")
    # A pool for all positions of the model: the tables of sines and cosines are as long as that.
    split = SplitUnderTest(folder, size, fp8_weights="keep", speculation="off", kv_memory_bytes=20 << 20)
    config = split.engine.model_config
    for rank, model in split.models.items():
        expected = weight_bytes(config, Share(rank, size), eight_bit=eight_bit)
        left = LEFT_WIDE if eight_bit else 0
        assert held_bytes(model) == expected + left
    assert split.pools[1].data.nbytes == split.pools[0].num_blocks * 16 * config.kv_bytes_per_token(4)
