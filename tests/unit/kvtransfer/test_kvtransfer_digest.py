"""The digest finds what can go wrong with KV blocks, and does not depend on how the work is cut up."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtransfer import block_sums
from kvtransfer.digest import CPU_CHUNK_WORDS, BlockDigest
from machine import c_library

WORDS = 24
CPU = torch.device("cpu")
GOLDEN = 0xB87D5C10E787C0C8


@pytest.fixture(autouse=True, scope="module", params=["native", "torch"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every property holds of both ways to sum, and both give GOLDEN."""
    if request.param == "native" and block_sums.load_library() is None:
        pytest.skip("no C compiler")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(block_sums, "load_library", lambda: None)
        yield request.param


def pool_of(seed: int, blocks: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**63), 2**63 - 1, (blocks, WORDS), generator=generator, dtype=torch.int64)


def digest_of(words: torch.Tensor, blocks: list[int], first_position: int = 0) -> int:
    digest = BlockDigest(WORDS, CPU)
    sums = torch.empty(len(blocks), dtype=torch.int64)
    for begin in range(0, len(blocks), digest.chunk_blocks):
        piece = slice(begin, begin + digest.chunk_blocks)
        digest.blocks.sum(words, torch.tensor(blocks[piece]), sums[piece])
    return digest.combine(sums.view(1, -1), first_position)[0]


def test_the_values_are_part_of_the_wire_format() -> None:
    words = torch.arange(3 * WORDS, dtype=torch.int64).reshape(3, WORDS) * 0x0123456789ABCDEF
    assert digest_of(words, [0, 1, 2]) == GOLDEN
    assert digest_of(torch.zeros(3, WORDS, dtype=torch.int64), [0, 1, 2]) == 0


def test_python_integers_agree() -> None:
    """The definition in kvtransfer/digest.py, word by word."""
    words = pool_of(3, blocks=2)
    digest = BlockDigest(WORDS, CPU)
    mask = 2**64 - 1

    def mix(x: int) -> int:
        return (x & mask) ^ ((x & mask) >> 32)

    total = 0
    for position, row in enumerate(words.tolist()):
        block = sum(key * mix(word) for key, word in zip(digest._word_keys.tolist(), row, strict=True)) & mask
        total += digest._position_keys[position].item() * mix(block)
    assert digest_of(words, [0, 1]) == total & mask


@given(st.integers(0, 1000), st.integers(0, 15), st.integers(0, WORDS - 1), st.integers(1, 2**64 - 1))
@settings(deadline=None)
def test_every_change_of_one_word_is_found(seed: int, block: int, word: int, change: int) -> None:
    words = pool_of(seed)
    before = digest_of(words, list(range(16)))
    words[block, word] ^= change - 2**64 if change >= 2**63 else change
    assert digest_of(words, list(range(16))) != before


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, WORDS - 1)), min_size=2, max_size=6, unique=True),
)
@settings(deadline=None)
def test_flips_of_several_top_bits_are_found(seed: int, places: list[tuple[int, int]]) -> None:
    words = pool_of(seed)
    before = digest_of(words, list(range(16)))
    for block, word in places:
        words[block, word] ^= -(2**63)
    assert digest_of(words, list(range(16))) != before


@given(st.integers(0, 1000), st.integers(0, 15), st.integers(0, 15))
@settings(deadline=None)
def test_exchanged_blocks_are_found(seed: int, a: int, b: int) -> None:
    words = pool_of(seed)
    order = list(range(16))
    order[a], order[b] = order[b], order[a]
    assert (digest_of(words, order) == digest_of(words, list(range(16)))) == (a == b)


@given(st.integers(0, 1000), st.permutations(range(16)), st.integers(0, 16), st.integers(0, 2000))
@settings(max_examples=50, deadline=None)
def test_adjacent_runs_add_up_wherever_the_blocks_lie(seed: int, order: list[int], cut: int, first: int) -> None:
    words = pool_of(seed)
    whole = digest_of(words, order, first)
    parts = (digest_of(words, order[:cut], first) if cut else 0) + (
        digest_of(words, order[cut:], first + cut) if cut < 16 else 0
    )
    assert whole == parts % 2**64
    assert whole == digest_of(words[torch.tensor(order)].contiguous(), list(range(16)), first)


def test_slices_and_layers_give_the_same() -> None:
    words = pool_of(5, blocks=200)
    digest = BlockDigest(WORDS, CPU)
    sums = torch.empty(200, dtype=torch.int64)
    digest.blocks.sum(words, slice(0, 200), sums)
    assert digest.combine(sums.view(2, 100), 7) == [
        digest_of(words, list(range(100)), 7),
        digest_of(words, list(range(100, 200)), 7),
    ]
    assert BlockDigest(CPU_CHUNK_WORDS // 4, CPU).chunk_blocks == 4


@given(st.integers(0, 1000), st.permutations(range(16)), st.permutations(range(16)), st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_copy_is_where_it_should_be_and_has_the_digest_of_its_source(
    seed: int, source_order: list[int], order: list[int], verify: bool
) -> None:
    source, digest, sums = pool_of(seed), BlockDigest(WORDS, CPU), torch.zeros(16, dtype=torch.int64)
    rows = {"source": torch.tensor(source_order), "target": torch.tensor(order)}
    for source_rows in (rows["source"], slice(2, 9)):
        for target_rows in (rows["target"], slice(4, 11)):
            target, count = torch.zeros_like(source), 16
            if isinstance(source_rows, slice) or isinstance(target_rows, slice):
                count = 7
            chosen = [each if isinstance(each, slice) else each[:count] for each in (source_rows, target_rows)]
            digest.blocks.copy(source, chosen[0], target, chosen[1], sums[:count] if verify else None)
            assert torch.equal(target[chosen[1]], source[chosen[0]])
            assert int(target.any(1).sum()) == count, "nothing else was written"
            if verify:
                expected = torch.empty(count, dtype=torch.int64)
                digest.blocks.sum(source, chosen[0], expected)
                assert torch.equal(sums[:count], expected)


@pytest.mark.parametrize("compiler", [None, "/bin/false", "/bin/true"])
def test_without_a_compiler_torch_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str, compiler: str | None
) -> None:
    if way == "torch":
        return
    expected = digest_of(pool_of(9), [3, 1, 2])
    monkeypatch.setenv("SERVAL_CACHE", str(tmp_path))
    monkeypatch.setattr(c_library.shutil, "which", lambda name: compiler)
    block_sums.load_library.cache_clear()
    try:
        with caplog.at_level(logging.INFO, logger="kvtransfer.block_sums"):
            assert digest_of(pool_of(9), [3, 1, 2]) == expected
        assert "torch computes the digests" in caplog.text
    finally:
        block_sums.load_library.cache_clear()


@pytest.mark.parametrize("problem", [RuntimeError("no home"), PermissionError(13, "Permission denied")])
def test_a_cache_folder_that_cannot_be_found_or_looked_into_is_no_reason_not_to_start(
    monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    def cache_root() -> Path:
        raise problem

    monkeypatch.setattr(c_library, "cache_root", cache_root)
    with pytest.raises(
        c_library.Unavailable, match=r"block_sums\.c cannot be compiled or loaded: .*(no home|Permission denied)"
    ):
        c_library.load(Path(block_sums.__file__).with_name("block_sums.c"), ())
