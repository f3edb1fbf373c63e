"""The landing zone: the only memory of a decode worker that peers may write to, divided into slots.

A slot is a contiguous run of landing blocks. Its life is the table below; an unknown edge raises and changes nothing. A slot
goes back to free only after proof that nothing can be written to it any more. Where no proof comes it is retired: its memory is
never used again, and a new zone takes its place (kvtransfer/zones.py).
"""

from collections import Counter
from enum import StrEnum

import torch

from kvtransfer.layout import KVLayout
from protocol.errors import ConfigError

BARRIER_BLOCKS = 1
"""At the zone's end, never part of a slot: where senders aim the barrier writes that prove earlier writes landed."""


class SlotState(StrEnum):
    FREE = "free"
    LEASED = "leased"
    """A peer may write; landed layers are copied out."""
    QUIESCING = "quiescing"
    """Nothing is copied out any more; the peer has been asked to stop."""
    QUARANTINED = "quarantined"
    """The peer may still write, and has not confirmed that it stopped."""
    PUMPING = "pumping"
    """The peer's process is gone; what this process's library still holds is let in."""

    RETIRED = "retired"
    """Nobody could prove anything: its memory is not used any more."""


class SlotEvent(StrEnum):
    RESERVE = "reserve"
    CANCEL = "cancel"
    QUIESCED = "quiesced"
    """The peer has confirmed: nothing of it can land any more."""
    UNCONFIRMED = "unconfirmed"
    """The peer could not be asked, or could not confirm."""
    EXPIRE = "expire"
    PEER_GONE = "peer_gone"
    """The caller has proof that the peer's process no longer exists."""
    PUMPED = "pumped"
    RETIRE = "retire"
    """Its zone is replaced by one at other addresses."""


TRANSITIONS: dict[tuple[SlotState, SlotEvent], SlotState] = {
    (SlotState.FREE, SlotEvent.RESERVE): SlotState.LEASED,
    (SlotState.LEASED, SlotEvent.CANCEL): SlotState.QUIESCING,
    (SlotState.LEASED, SlotEvent.QUIESCED): SlotState.FREE,
    (SlotState.LEASED, SlotEvent.UNCONFIRMED): SlotState.QUARANTINED,
    (SlotState.LEASED, SlotEvent.EXPIRE): SlotState.QUARANTINED,
    (SlotState.LEASED, SlotEvent.PEER_GONE): SlotState.PUMPING,
    (SlotState.QUIESCING, SlotEvent.QUIESCED): SlotState.FREE,
    (SlotState.QUIESCING, SlotEvent.UNCONFIRMED): SlotState.QUARANTINED,
    (SlotState.QUIESCING, SlotEvent.EXPIRE): SlotState.QUARANTINED,
    (SlotState.QUIESCING, SlotEvent.PEER_GONE): SlotState.PUMPING,
    (SlotState.QUARANTINED, SlotEvent.QUIESCED): SlotState.FREE,
    (SlotState.QUARANTINED, SlotEvent.PEER_GONE): SlotState.PUMPING,
    (SlotState.QUARANTINED, SlotEvent.RETIRE): SlotState.RETIRED,
    (SlotState.PUMPING, SlotEvent.PUMPED): SlotState.FREE,
}


class UnknownTransition(RuntimeError):
    """A bug of ours: the event cannot happen in this state. Nothing was changed."""


class Slot:
    """A run of landing blocks [first_block, first_block + blocks). Owned by the zone; only `LandingZone.apply` changes it."""

    def __init__(self, zone: "LandingZone", first_block: int, blocks: int) -> None:
        self.zone = zone
        self.first_block = first_block
        self.blocks = blocks
        self.state = SlotState.FREE

    def __repr__(self) -> str:
        return f"Slot({self.first_block}+{self.blocks} {self.state})"


class LandingZone:
    """One tensor, allocated once and never unmapped while a peer may write to it. `address` tells it from every other of the
    process. Not thread-safe: the receiver locks."""

    def __init__(self, layout: KVLayout, size_bytes: int, device: torch.device) -> None:
        self.blocks = size_bytes // layout.block_bytes
        """With the barrier's."""
        self.usable_blocks = self.blocks - BARRIER_BLOCKS
        if self.usable_blocks < layout.layers:
            needed = (layout.layers + BARRIER_BLOCKS) * layout.block_bytes
            raise ConfigError(f"kvtransfer.landing_bytes: {size_bytes} holds not one block of every layer; at least {needed}")
        # Written once, so that the first writes of peers do not wait for the kernel to find pages.
        self.words = torch.empty(self.blocks, layout.block_words, dtype=torch.int64, device=device).zero_()
        self._free = [(0, self.usable_blocks)]
        self._slots: set[Slot] = set()

    @property
    def address(self) -> int:
        return self.words.data_ptr()

    @property
    def states(self) -> set[SlotState]:
        """Of its slots; free ones are none."""
        return {slot.state for slot in self._slots}

    def reserve(self, blocks: int) -> Slot | None:
        """The first run that is long enough, leased; None when there is none now."""
        assert blocks > 0
        for index, (first, length) in enumerate(self._free):
            if length >= blocks:
                rest = [(first + blocks, length - blocks)] if length > blocks else []
                self._free[index : index + 1] = rest
                slot = Slot(self, first, blocks)
                self._slots.add(slot)
                self.apply(slot, SlotEvent.RESERVE)
                return slot
        return None

    def apply(self, slot: Slot, event: SlotEvent) -> SlotState:
        """Moves a slot along the table; a slot that becomes free is handed out again from now on. Raises UnknownTransition."""
        state = TRANSITIONS.get((slot.state, event))
        if state is None or slot not in self._slots:
            raise UnknownTransition(f"{slot} cannot {event}")
        slot.state = state
        if state is SlotState.FREE:
            self._slots.remove(slot)
            self._give_back(slot.first_block, slot.blocks)
        return state

    def blocks_by_state(self) -> dict[SlotState, int]:
        counts: Counter[SlotState] = Counter(dict.fromkeys(SlotState, 0))
        for slot in self._slots:
            counts[slot.state] += slot.blocks
        counts[SlotState.FREE] = sum(length for _, length in self._free)
        return dict(counts)

    @property
    def is_all_free(self) -> bool:
        return not self._slots

    def check_integrity(self) -> None:
        """Free runs and slots cover every usable block exactly once; free runs are sorted and merged. Asserts."""
        runs = sorted([*self._free, *((slot.first_block, slot.blocks) for slot in self._slots)])
        position = 0
        for first, length in runs:
            assert first == position and length > 0, runs
            position += length
        assert position == self.usable_blocks, runs
        assert self._free == sorted(self._free)
        assert all(a + n < b for (a, n), (b, _) in zip(self._free, self._free[1:], strict=False)), self._free

    def _give_back(self, first: int, length: int) -> None:
        self._free.append((first, length))
        self._free.sort()
        merged: list[tuple[int, int]] = []
        for start, count in self._free:
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + count)
            else:
                merged.append((start, count))
        self._free = merged


def mermaid() -> str:
    """A slot's life as a Mermaid state diagram, from the table."""
    lines = ["stateDiagram-v2", f"    [*] --> {SlotState.FREE}"]
    lines += [f"    {state} --> {after}: {event}" for (state, event), after in TRANSITIONS.items()]
    return "\n".join(lines)
