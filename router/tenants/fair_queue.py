"""Whose request goes next: priority classes, and within a class tenants by weight. A pure data structure: no clock, no I/O.

Within a class it is start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queueing", SIGCOMM 1996): each request has a
start tag, the finish tag of its tenant's request before it or the class's virtual time, whichever is later, and finishes
cost / weight after its start; the smallest start tag goes next, and is the virtual time from then on. While two tenants both
have requests waiting, what they were given divided by their weights differs by at most one request of each.

A higher class goes before a lower one, with a guard: a class that was passed over `most_passes` times in a row is next. So
with n classes waiting each of them gets at least one turn in `most_passes` + n.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate, islice, takewhile
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

    def started_by(self, tag: float) -> int:
        """How many have start tags up to this one."""
        starts = accumulate((cost / self.weight for cost in self.items.values()), initial=self.start)
        return sum(1 for _ in takewhile(lambda start: start <= tag, islice(starts, len(self.items))))


@dataclass
class _Lane(Generic[Item]):
    """One priority class. It exists while somebody waits in it: who comes to an empty one owes nothing for what nobody else
    wanted."""

    virtual_time: float = 0.0
    passes: int = 0
    """Turns in a row that other classes had while it waited."""
    flows: dict[str, _Flow[Item]] = field(default_factory=dict)

    def first(self, may_go: Callable[[Item], bool]) -> Item | None:
        """Whose turn it is. Sorts the tenants of the class: they are configured, so few."""
        in_turn = sorted((flow for flow in self.flows.values() if flow.items), key=lambda flow: flow.start)
        return next((item for flow in in_turn for item in flow.items if may_go(item)), None)

    def before(self, share: Share) -> int:
        """Who would go before one more of this share: all of its own tenant, and others with no later start tags."""
        own = self.flows.get(share.tenant)
        if own is not None and own.items:
            count, start = len(own.items), own.start + sum(own.items.values()) / share.weight
        else:
            count, start = 0, max(own.start if own is not None else 0.0, self.virtual_time)
        return count + sum(flow.started_by(start) for name, flow in self.flows.items() if name != share.tenant)

    @property
    def length(self) -> int:
        return sum(len(flow.items) for flow in self.flows.values())

    def longest(self) -> tuple[str, _Flow[Item]]:
        return max(self.flows.items(), key=lambda entry: entry[1].relative_length)


class FairQueue(Generic[Item]):
    """Requests of one tenant leave in the order in which they came, but for those that may not go yet; removing one changes
    nobody's turn."""

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

    def peek(self, may_go: Callable[[Item], bool] = lambda item: True) -> Item | None:
        """Whose turn it is among those that may go, None when nobody does; changes nothing."""
        return next((item for lane in self._lanes_in_turn() if (item := lane.first(may_go)) is not None), None)

    def take(self, item: Item) -> None:
        """Gives it its turn, which its tenant and its class have had then, whoever was before it. Raises LookupError when it is
        not waiting."""
        share = self._shares[item]
        lane = self._lanes[share.priority]
        flow = lane.flows[share.tenant]
        # Those that were passed over keep their smaller tags; who comes now begins where the turns have got to.
        lane.virtual_time = max(lane.virtual_time, flow.start)
        flow.start += flow.items[item] / flow.weight
        for other in self._lanes.values():
            other.passes += 1
        lane.passes = 0
        self._drop(item, share.priority)

    def remove(self, item: Item) -> bool:
        """Takes it out without a turn; False when it is not waiting."""
        if item not in self._shares:
            return False
        self._drop(item, self._shares[item].priority)
        return True

    def before(self, share: Share) -> int:
        """How many of those that wait would go before one more of this share, if nobody else came. Of other classes' turns by the
        guard whole ones are counted."""
        lane = self._lanes.get(share.priority)
        own = lane.before(share) if lane is not None else 0
        higher = sum(lane.length for priority, lane in self._lanes.items() if priority > share.priority)
        before = own + min(higher, (own + 1) * self._most_passes)
        lower = [lane.length for priority, lane in self._lanes.items() if priority < share.priority]
        return before + sum(min(length, before // self._most_passes) for length in lower)

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

    def _lanes_in_turn(self) -> list[_Lane[Item]]:
        def turn(entry: tuple[int, _Lane[Item]]) -> tuple[int, int]:
            priority, lane = entry
            return (lane.passes if lane.passes >= self._most_passes else 0, priority)

        return [lane for _, lane in sorted(self._lanes.items(), key=turn, reverse=True)]

    def _drop(self, item: Item, priority: int) -> None:
        lane = self._lanes[priority]
        share = self._shares.pop(item)
        del lane.flows[share.tenant].items[item]
        if not any(flow.items for flow in lane.flows.values()):
            del self._lanes[priority]
