"""Which regions of a prompt leave when: layers gathered, limits kept, every block written exactly once."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.blocks import BlockList, Rows, Run
from kvtransfer.config import TransferConfig
from kvtransfer.layout import KVLayout
from kvtransfer.peer import Peer
from kvtransfer.transfer import Region, Transfer
from protocol import cluster_pb2
from protocol.errors import ConfigError, InvalidRequest

CPU = torch.device("cpu")
BLOCK_BYTES = 1024


def make_transfer(blocks: list[int], layers: int = 4, **settings: Any) -> Transfer:
    return Transfer(
        request_id="r",
        attempt=0,
        peer=1,
        lease_id=1,
        landing_address=1 << 40,
        first_landing_block=10,
        blocks=BlockList(blocks, 1000),
        layers=layers,
        block_bytes=BLOCK_BYTES,
        deadline_s=0.0,
        config=TransferConfig(**settings),
        on_progress=lambda: None,
        records_events=False,
    )


def drain(transfer: Transfer) -> list[Region]:
    regions = []
    while (region := transfer.next_region()) is not None:
        transfer.mark_posted(region)
        regions.append(region)
    return regions


def test_a_large_layer_leaves_at_once() -> None:
    transfer = make_transfer(list(range(8)), min_write_bytes=8 * BLOCK_BYTES)
    transfer.layer_ready(0, 8)
    assert drain(transfer) == [Region(0, 1, 0, 8)]
    transfer.layer_ready(1, 8)
    assert drain(transfer) == [Region(1, 1, 0, 8)]


def test_small_layers_wait_for_each_other_and_for_the_end() -> None:
    transfer = make_transfer(list(range(4)), min_write_bytes=12 * BLOCK_BYTES)
    transfer.layer_ready(0, 4)
    transfer.layer_ready(1, 4)
    assert drain(transfer) == []
    transfer.layer_ready(2, 4)
    assert drain(transfer) == [Region(0, 3, 0, 4)]
    transfer.layer_ready(3, 4)
    assert drain(transfer) == []
    transfer.compute_done()
    assert drain(transfer) == [Region(3, 1, 0, 4)]
    assert transfer.is_all_posted


def test_a_write_is_limited() -> None:
    transfer = make_transfer(list(range(4)), max_write_bytes=8 * BLOCK_BYTES)
    for layer in range(4):
        transfer.layer_ready(layer, 4)
    transfer.compute_done()
    assert drain(transfer) == [Region(0, 2, 0, 4), Region(2, 2, 0, 4)]


def test_whole_prompt_waits_for_the_end_of_compute() -> None:
    transfer = make_transfer(list(range(4)), mode="whole_prompt", min_write_bytes=0)
    for layer in range(4):
        transfer.layer_ready(layer, 4)
    assert drain(transfer) == []
    transfer.compute_done()
    assert drain(transfer) == [Region(0, 4, 0, 4)]


def test_compute_is_not_done_before_every_layer() -> None:
    transfer = make_transfer([1, 2])
    transfer.layer_ready(0, 2)
    with pytest.raises(AssertionError):
        transfer.compute_done()


@given(st.data(), st.integers(1, 5), st.integers(1, 12), st.integers(0, 40), st.integers(1, 40))
def test_every_block_is_written_once(data: st.DataObject, layers: int, blocks: int, smallest: int, largest: int) -> None:
    transfer = make_transfer(
        list(range(blocks)), layers, min_write_bytes=smallest * BLOCK_BYTES, max_write_bytes=largest * BLOCK_BYTES
    )
    cuts = sorted(data.draw(st.sets(st.integers(1, blocks), max_size=3)) | {blocks})
    written = np.zeros((layers, blocks), dtype=np.int64)
    ready = np.zeros((layers, blocks), dtype=np.bool_)

    def take(regions: list[Region], computed: bool) -> None:
        for region in regions:
            rows = slice(region.first_layer, region.first_layer + region.layers)
            columns = slice(region.first_block, region.first_block + region.blocks)
            assert ready[rows, columns].all()
            size = region.layers * region.blocks
            assert computed or size >= smallest
            assert region.layers == 1 or size <= largest
            written[rows, columns] += 1

    for cut in cuts:
        for layer in range(layers):
            transfer.layer_ready(layer, cut)
            ready[layer, :cut] = True
            if data.draw(st.booleans()):
                take(drain(transfer), computed=False)
    transfer.compute_done()
    take(drain(transfer), computed=True)
    assert (written == 1).all()
    assert transfer.is_all_posted


@given(st.permutations(range(20)), st.integers(0, 19), st.integers(1, 20))
def test_runs_and_selections_cover_the_list(order: list[int], begin: int, length: int) -> None:
    end = min(20, begin + length)
    blocks = BlockList(order, 20)
    runs = blocks.runs(begin, end)
    assert [run.first + i for run in runs for i in range(run.blocks)] == order[begin:end]
    assert [run.position + i for run in runs for i in range(run.blocks)] == list(range(begin, end))
    assert all(a.first + a.blocks != b.first for a, b in pairwise(runs))
    rows = Rows(blocks.rows(3, 2, begin, end), CPU)
    expected = [layer * 20 + block for layer in (3, 4) for block in order[begin:end]]
    assert torch.arange(100)[rows.piece(0, len(rows))].tolist() == expected
    assert torch.arange(100)[rows.piece(0, end - begin)].tolist() == expected[: end - begin]
    assert isinstance(rows.piece(0, end - begin), slice) == (len(runs) == 1)


def test_contiguous_blocks_are_one_run() -> None:
    assert BlockList(list(range(5, 15)), 20).runs(2, 8) == [Run(7, 2, 6)]


@pytest.mark.parametrize("blocks", [[], [-1], [20], [3, 4, 3]])
def test_wrong_blocks_are_refused(blocks: list[int]) -> None:
    with pytest.raises(InvalidRequest):
        BlockList(blocks, 20)


def test_descriptors_follow_the_lease_layout() -> None:
    transfer = make_transfer([7, 8, 3])
    peer = Peer("d", 1, b"", landing_address=1 << 40, landing_blocks=100, block_bytes=BLOCK_BYTES)
    local, remote = peer.descriptors(transfer, Region(1, 2, 0, 3), pool_address=1 << 30, pool_blocks=50)
    expected_local = [(50 + 7, 2), (50 + 3, 1), (100 + 7, 2), (100 + 3, 1)]
    assert [((int(a) - (1 << 30)) // BLOCK_BYTES, int(n) // BLOCK_BYTES) for a, n in local] == expected_local
    expected_remote = [(10 + 3, 2), (10 + 5, 1), (10 + 6, 2), (10 + 8, 1)]
    assert [((int(a) - (1 << 40)) // BLOCK_BYTES, int(n) // BLOCK_BYTES) for a, n in remote] == expected_remote


@pytest.mark.parametrize(
    ("first", "blocks", "fits"), [(0, 2, True), (91, 2, True), (92, 2, False), (0, 3, False), (2**32 - 1, 2, False)]
)
def test_a_lease_must_lie_within_the_zone(first: int, blocks: int, fits: bool) -> None:
    peer = Peer("d", 1, b"", landing_address=0, landing_blocks=100, block_bytes=BLOCK_BYTES)
    lease = cluster_pb2.WriteLease(lease_id=1, first_landing_block=first, blocks=blocks, duration_s=1)
    if fits:
        peer.check_lease(lease, 2, layers=4)
    else:
        with pytest.raises(InvalidRequest):
            peer.check_lease(lease, 2, layers=4)


def test_the_fingerprint_tells_layouts_apart() -> None:
    layout = {"model": "m", "revision": "r", "dtype": "bfloat16", "layers": 4, "block_size": 16, "entry_width": 576}
    changes = [{}, {"model": "n"}, {"revision": "s"}, {"dtype": "float16"}, {"layers": 5}, {"block_size": 32}]
    changes += [{"entry_width": 512}, {"parallel_split": "tp2"}, {"draft_layers": 1}]
    assert "-bfloat16-4x16x576-mtp-" in KVLayout(**layout, draft_layers=1).fingerprint, "whoever reads it knows what to set"
    assert len({KVLayout(**{**layout, **change}).fingerprint for change in changes}) == len(changes)
    assert KVLayout(**layout).fingerprint == KVLayout(**layout).fingerprint
    assert KVLayout(**layout).block_bytes == 16 * 576 * 2


@pytest.mark.parametrize("change", [{"dtype": "no_such"}, {"entry_width": 3, "block_size": 1}, {"layers": 0}])
def test_an_impossible_layout_is_a_config_error(change: dict[str, Any]) -> None:
    layout = {"model": "m", "revision": "r", "dtype": "bfloat16", "layers": 4, "block_size": 16, "entry_width": 576}
    with pytest.raises(ConfigError):
        KVLayout(**{**layout, **change})


def test_a_pool_of_another_shape_is_refused() -> None:
    layout = KVLayout("m", "r", "float32", layers=2, block_size=4, entry_width=8)
    assert layout.words_of(torch.zeros(2, 10, 4, 8)).shape == (20, 16)
    for pool in (
        torch.zeros(3, 10, 4, 8),
        torch.zeros(2, 10, 4, 8, dtype=torch.float16),
        torch.zeros(2, 4, 10, 8).transpose(1, 2),
    ):
        with pytest.raises(ConfigError):
            layout.words_of(pool)
