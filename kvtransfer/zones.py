"""The landing zone in use, and those before it: how a slot's capacity comes back when nobody can prove that its writes are over.

A sender on another host that is gone, or one whose connection broke, can say nothing. Its slot's memory is then never used again:
the receiver takes a new zone, at other addresses, and the old one is retired. It stays mapped for the process's life (a late write
finds memory that nobody reads; unmapped it would kill the process), but its pages go back to the system. So capacity returns
without proof, and no address does.
"""

import ctypes
import logging
import mmap
from collections import Counter

import torch

from kvtransfer.landing import LandingZone, Slot, SlotEvent, SlotState
from kvtransfer.layout import KVLayout
from protocol.errors import TransferFailed

log = logging.getLogger(__name__)

MADV_DONTNEED = 4
"""madvise(2): the pages' contents are not needed; a later write finds new ones."""

_kept_mapped: list[torch.Tensor] = []
"""Memory that a peer may still write to."""


class Zones:
    """Not thread-safe: the receiver locks. Every slot belongs to the zone that it was reserved in."""

    def __init__(self, layout: KVLayout, size_bytes: int, device: torch.device) -> None:
        self._layout = layout
        self._size_bytes = size_bytes
        self._device = device
        self.current = LandingZone(layout, size_bytes, device)
        self._earlier: list[LandingZone] = []

    @property
    def can_renew(self) -> bool:
        """A device's memory cannot be given back while it stays mapped."""
        return self._device.type == "cpu"

    def make(self) -> LandingZone:
        """Memory for the next zone, in use after `renew`. Raises TransferFailed when there is none."""
        try:
            return LandingZone(self._layout, self._size_bytes, self._device)
        except RuntimeError as error:
            raise TransferFailed(f"there is no memory for another landing zone (transfer.landing_bytes): {error}") from error

    def renew(self, zone: LandingZone) -> None:
        """From now on slots are reserved in `zone`. Those of the zone before it end there."""
        self._earlier.append(self.current)
        self.current = zone

    def reserve(self, blocks: int) -> Slot | None:
        return self.current.reserve(blocks)

    def apply(self, slot: Slot, event: SlotEvent) -> SlotState:
        return slot.zone.apply(slot, event)

    def settled(self) -> list[LandingZone]:
        """Earlier zones in which nothing is expected any more: their slots are free, or wait for proof."""
        return [zone for zone in self._earlier if zone.states <= {SlotState.QUARANTINED}]

    def retire(self, zone: LandingZone) -> None:
        """It is never used again. Its slots must have been retired."""
        self._earlier.remove(zone)
        _kept_mapped.append(zone.words)
        _give_back_pages(zone.words)

    def blocks_by_state(self) -> dict[SlotState, int]:
        """What of earlier zones is free counts as gone."""
        counts = Counter(self.current.blocks_by_state())
        for zone in self._earlier:
            counts.update({state: blocks for state, blocks in zone.blocks_by_state().items() if state is not SlotState.FREE})
        return dict(counts)

    def check_integrity(self) -> None:
        for zone in (self.current, *self._earlier):
            zone.check_integrity()

    def keep_mapped(self) -> None:
        """The receiver closes, and peers may still write to what is not free."""
        _kept_mapped.extend(zone.words for zone in (self.current, *self._earlier) if not zone.is_all_free)


def _give_back_pages(memory: torch.Tensor) -> None:
    """Whole pages within `memory`."""
    begin = -(-memory.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (memory.data_ptr() + memory.numel() * memory.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    if end > begin and libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_DONTNEED):
        log.warning("%d bytes of a retired landing zone stay in memory: errno %d", end - begin, ctypes.get_errno())
