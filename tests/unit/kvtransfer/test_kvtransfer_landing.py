"""The landing zone's slots: one table, one owner per block, nothing lost whatever the order of events."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kvtransfer.landing import TRANSITIONS, LandingZone, Slot, SlotEvent, SlotState, UnknownTransition, mermaid
from kvtransfer.layout import KVLayout
from protocol.errors import ConfigError

LAYOUT = KVLayout("m", "r", "float32", layers=2, block_size=1, entry_width=2)
BLOCKS = 33


def make_zone() -> LandingZone:
    return LandingZone(LAYOUT, BLOCKS * LAYOUT.block_bytes, torch.device("cpu"))


class Slots(RuleBasedStateMachine):
    """Random lives of slots; an edge outside the table must raise and change nothing."""

    slots = Bundle("slots")

    def __init__(self) -> None:
        super().__init__()
        self.zone = make_zone()
        self.held: dict[Slot, SlotState] = {}

    @rule(target=slots, blocks=st.integers(1, 12))
    def reserve(self, blocks: int) -> Slot | None:
        longest = self._longest_free()
        slot = self.zone.reserve(blocks)
        assert (slot is not None) == (blocks <= longest)
        if slot is not None:
            self.held[slot] = SlotState.LEASED
        return slot

    @rule(slot=slots, event=st.sampled_from(SlotEvent))
    def apply(self, slot: Slot | None, event: SlotEvent) -> None:
        if slot is None:
            return
        state = self.held.get(slot)
        expected = TRANSITIONS.get((state, event)) if state is not None else None
        before = self.zone.blocks_by_state()
        if expected is None:
            with pytest.raises(UnknownTransition):
                self.zone.apply(slot, event)
            assert self.zone.blocks_by_state() == before
        else:
            assert self.zone.apply(slot, event) is expected
            self.held[slot] = expected
            if expected is SlotState.FREE:
                del self.held[slot]

    @rule(slot=consumes(slots))
    def forget(self, slot: Slot | None) -> None:
        """Test bookkeeping only: the slot keeps its blocks."""

    @invariant()
    def every_block_has_one_owner(self) -> None:
        self.zone.check_integrity()
        assert sum(self.zone.blocks_by_state().values()) == BLOCKS - 1
        assert self.zone.is_all_free == (not self.held)

    def _longest_free(self) -> int:
        owned = {block for slot in self.held for block in range(slot.first_block, slot.first_block + slot.blocks)}
        longest = length = 0
        for block in range(BLOCKS - 1):
            length = 0 if block in owned else length + 1
            longest = max(longest, length)
        return longest


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=60, stateful_step_count=40)


def test_every_state_can_be_left_and_nothing_is_freed_without_proof() -> None:
    assert {state for state, _ in TRANSITIONS} == set(SlotState) - {SlotState.RETIRED}, "whose memory is never used again"
    freeing = {(state, event) for (state, event), after in TRANSITIONS.items() if after is SlotState.FREE}
    assert {event for _, event in freeing} == {SlotEvent.QUIESCED, SlotEvent.PUMPED}
    assert (SlotState.QUARANTINED, SlotEvent.EXPIRE) not in TRANSITIONS


def test_the_barrier_block_is_never_part_of_a_slot() -> None:
    zone = make_zone()
    assert zone.reserve(BLOCKS) is None
    slot = zone.reserve(BLOCKS - 1)
    assert slot is not None and slot.first_block + slot.blocks == zone.blocks - 1


def test_a_zone_too_small_for_one_block_of_every_layer_names_its_field() -> None:
    with pytest.raises(ConfigError, match="landing_bytes"):
        LandingZone(LAYOUT, 2 * LAYOUT.block_bytes, torch.device("cpu"))


def test_the_documented_diagram_is_the_table() -> None:
    page = Path(__file__).parents[3] / "docs" / "kvtransfer.md"
    assert f"```mermaid\n{mermaid()}\n```" in page.read_text()
