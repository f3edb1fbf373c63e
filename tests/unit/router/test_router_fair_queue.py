"""The fair queue: shares follow weights, nobody starves, a tenant's requests keep their order."""

from collections import Counter, defaultdict
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.tenants.fair_queue import FairQueue, Share

Item = TypeVar("Item")


def pop(queue: FairQueue[Item]) -> Item:
    """Whose turn it is has it."""
    item = queue.peek()
    assert item is not None
    queue.take(item)
    return item


WEIGHTS = st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=2, max_size=4)
COSTS = st.lists(st.integers(1, 500), min_size=40, max_size=80)


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, COSTS)
def test_while_tenants_are_backlogged_their_work_by_weight_differs_by_one_request_each(
    weights: list[float], costs: list[int]
) -> None:
    queue: FairQueue[tuple[int, int]] = FairQueue(most_passes=8)
    cost_of: dict[tuple[int, int], int] = {}
    for number, cost in enumerate(costs):
        for tenant, weight in enumerate(weights):
            item = (tenant, number)
            cost_of[item] = cost if tenant % 2 else costs[-1 - number]
            queue.push(item, Share(f"t{tenant}", weight), cost_of[item])
    given_work: dict[int, float] = defaultdict(float)
    left = Counter({tenant: len(costs) for tenant in range(len(weights))})
    most = max(costs)
    while all(left.values()):
        item = pop(queue)
        given_work[item[0]] += cost_of[item] / weights[item[0]]
        left[item[0]] -= 1
        for one, other in ((a, b) for a in left for b in left if a < b):
            bound = most / weights[one] + most / weights[other]
            assert abs(given_work[one] - given_work[other]) <= bound + 1e-6


Operation = tuple[str, int, int, int]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["push", "push", "pop", "remove"]), st.integers(0, 3), st.integers(0, 2), st.integers(1, 99)),
        max_size=120,
    )
)
def test_any_order_of_events_keeps_order_within_a_tenant_and_loses_nobody(operations: list[Operation]) -> None:
    queue: FairQueue[tuple[int, int]] = FairQueue(most_passes=3)
    waiting: dict[tuple[int, int], None] = {}
    for number, (what, tenant, priority, cost) in enumerate(operations):
        item = (10 * priority + tenant, number)
        if what == "push":
            queue.push(item, Share(f"t{tenant}", 1.0 + tenant, priority), cost)
            waiting[item] = None
        elif what == "remove" and waiting:
            victim = list(waiting)[cost % len(waiting)]
            assert queue.remove(victim) and not queue.remove(victim)
            del waiting[victim]
        elif what == "pop" and waiting:
            popped = pop(queue)
            assert popped == next(each for each in waiting if each[0] == popped[0]), "not the oldest of its tenant and class"
            del waiting[popped]
        assert len(queue) == len(waiting)
        assert all(each in queue for each in waiting)
    assert {pop(queue) for _ in range(len(queue))} == set(waiting)
    assert queue.peek() is None
    with pytest.raises(LookupError):
        queue.take((0, -1))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(2, 4))
def test_a_flood_of_higher_classes_leaves_every_class_its_turn(most_passes: int, classes: int) -> None:
    queue: FairQueue[tuple[int, int]] = FairQueue(most_passes)
    for priority in range(classes):
        for number in range(500):
            queue.push((priority, number), Share("flood", 1.0, priority), 10)
    since = Counter(dict.fromkeys(range(classes), 0))
    turns: Counter[int] = Counter()
    for _ in range(400):
        priority, _number = pop(queue)
        turns[priority] += 1
        for other in since:
            since[other] += 1
        since[priority] = 0
        assert max(since.values()) < most_passes + classes
    assert turns[classes - 1] == max(turns.values()) or most_passes < classes, "the highest class has the most turns"


def test_a_higher_class_goes_first() -> None:
    queue: FairQueue[str] = FairQueue(most_passes=8)
    queue.push("low", Share("a", 100.0, priority=0), 1)
    queue.push("high", Share("b", 1.0, priority=1), 1000)
    assert [pop(queue), pop(queue)] == ["high", "low"]


def test_who_comes_late_gets_a_turn_soon_but_no_arrears() -> None:
    queue: FairQueue[str] = FairQueue(most_passes=8)
    for number in range(100):
        queue.push(f"flood{number}", Share("flood"), 10)
    for _ in range(50):
        pop(queue)
    for number in range(10):
        queue.push(f"late{number}", Share("late"), 10)
    order = [pop(queue) for _ in range(10)]
    assert order[0] == "late0" or order[1] == "late0"
    assert sum(item.startswith("late") for item in order) == 5, "half of the turns, not all of them"


def test_in_a_full_queue_the_greediest_makes_way() -> None:
    queue: FairQueue[str] = FairQueue(most_passes=8)
    for number in range(6):
        queue.push(f"flood{number}", Share("flood", 2.0), 10)
    queue.push("other", Share("other"), 10)
    assert queue.displaced_by(Share("flood", 2.0)) is None, "its own newest would have to go"
    assert queue.displaced_by(Share("new")) == "flood5"
    assert queue.displaced_by(Share("other")) == "flood5", "3 for a weight of 1 against its 2"
    assert queue.displaced_by(Share("other", 1.0, priority=1)) == "flood5", "a lower class makes way for a higher one"
    assert queue.displaced_by(Share("other", 1.0, priority=-1)) is None
    assert FairQueue[str](8).displaced_by(Share("new")) is None


def test_who_may_go_past_others_pays_for_it() -> None:
    queue: FairQueue[str] = FairQueue(most_passes=8)
    for item in ("a1", "a2", "a3", "b1", "b2"):
        queue.push(item, Share(item[0]), 10)
    assert queue.peek(lambda item: item not in ("a1", "b1")) == "a2", "of its tenant the oldest that may"
    queue.take("a2")
    assert [pop(queue) for _ in range(4)] == ["b1", "a1", "b2", "a3"], "a has had its turn"


def test_of_two_classes_the_lower_may_go_where_the_higher_cannot() -> None:
    queue: FairQueue[str] = FairQueue(most_passes=2)
    queue.push("high", Share("a", priority=1), 10)
    for number in range(4):
        queue.push(f"low{number}", Share("b"), 10)
    for number in range(3):
        assert queue.peek(lambda item: item != "high") == f"low{number}"
        queue.take(f"low{number}")
    assert queue.peek() == "high", "whoever went past it"
    assert queue.peek(lambda item: False) is None
