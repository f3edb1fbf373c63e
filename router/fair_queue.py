"""Whose request goes next: priority classes, and within a class tenants by weight. A pure data structure: no clock, no I/O.

Within a class it is start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queueing", SIGCOMM 1996): each request has a
start tag, the finish tag of its tenant's request before it or the class's virtual time, whichever is later, and finishes
cost / weight after its start; the smallest start tag goes next, and is the virtual time from then on. While two tenants both
have requests waiting, what they were given divided by their weights differs by at most one request of each.

A higher class goes before a lower one, with a guard: a class that was passed over `most_passes` times in a row is next. So
with n classes waiting each of them gets at least one turn in `most_passes` + n.
"""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """What a request's tenant is entitled to when it comes."""

    tenant: str
    weight: float = 1.0
    priority: int = 0


@dataclass
class _Flow(Generic[Item]):
    """One tenant's waiting requests in one class, with their costs, oldest first."""

    weight: float
    start: float = 0.0
    """The start tag of the oldest one; of the next one to come when there is none."""
    items: dict[Item, float] = field(default_factory=dict)

    @property
    def relative_length(self) -> float:
        return len(self.items) / self.weight


@dataclass
class _Lane(Generic[Item]):
    """One priority class. It exists while somebody waits in it: who comes to an empty one owes nothing for what nobody else
    wanted."""

    virtual_time: float = 0.0
    passes: int = 0
    """Turns in a row that other classes had while it waited."""
    flows: dict[str, _Flow[Item]] = field(default_factory=dict)

    def next_flow(self) -> _Flow[Item]:
        """Linear in the tenants of the class: they are configured, so few."""
        return min((flow for flow in self.flows.values() if flow.items), key=lambda flow: flow.start)

    def longest(self) -> tuple[str, _Flow[Item]]:
        return max(self.flows.items(), key=lambda entry: entry[1].relative_length)


class FairQueue(Generic[Item]):
    """Requests of one tenant leave in the order in which they came; removing one changes nobody's turn."""

    def __init__(self, most_passes: int) -> None:
        self._most_passes = most_passes
        self._lanes: dict[int, _Lane[Item]] = {}
        self._shares: dict[Item, Share] = {}

    def __len__(self) -> int:
        return len(self._shares)

    def __contains__(self, item: object) -> bool:
        return item in self._shares

    def push(self, item: Item, share: Share, cost: float) -> None:
        """`cost` in any unit that is the same for all; `item` is hashable and not waiting yet. The newest weight counts."""
        lane = self._lanes.setdefault(share.priority, _Lane())
        flow = lane.flows.setdefault(share.tenant, _Flow(share.weight))
        flow.weight = share.weight
        if not flow.items:
            flow.start = max(flow.start, lane.virtual_time)
        flow.items[item] = cost
        self._shares[item] = share

    def peek(self) -> Item | None:
        """Whom `pop` would return, None when nobody waits; changes nothing."""
        return next(iter(self._next_lane()[1].next_flow().items)) if self._lanes else None

    def pop(self) -> Item:
        """Gives the next one its turn. Raises LookupError when nobody waits."""
        if not self._lanes:
            raise LookupError("nobody waits")
        priority, lane = self._next_lane()
        flow = lane.next_flow()
        item, cost = next(iter(flow.items.items()))
        lane.virtual_time = flow.start
        flow.start += cost / flow.weight
        for other in self._lanes.values():
            other.passes += 1
        lane.passes = 0
        self._drop(item, priority)
        return item

    def remove(self, item: Item) -> bool:
        """Takes it out without a turn; False when it is not waiting."""
        if item not in self._shares:
            return False
        self._drop(item, self._shares[item].priority)
        return True

    def displaced_by(self, share: Share) -> Item | None:
        """Who must leave so that one more request of this share can wait where no more may: the newest of the tenant that
        has, for its weight, the most waiting in the lowest class. None when the newcomer itself would be that one."""
        for priority in sorted(self._lanes):
            if priority > share.priority:
                return None
            lane = self._lanes[priority]
            tenant, flow = lane.longest()
            if priority == share.priority:
                own = lane.flows.get(share.tenant)
                after = (len(own.items) if own is not None else 0) + 1
                if tenant == share.tenant or flow.relative_length <= after / share.weight:
                    return None
            return next(reversed(flow.items))
        return None

    def _next_lane(self) -> tuple[int, _Lane[Item]]:
        starving = [entry for entry in self._lanes.items() if entry[1].passes >= self._most_passes]
        if starving:
            return max(starving, key=lambda entry: (entry[1].passes, entry[0]))
        return max(self._lanes.items(), key=lambda entry: entry[0])

    def _drop(self, item: Item, priority: int) -> None:
        lane = self._lanes[priority]
        share = self._shares.pop(item)
        del lane.flows[share.tenant].items[item]
        if not any(flow.items for flow in lane.flows.values()):
            del self._lanes[priority]
