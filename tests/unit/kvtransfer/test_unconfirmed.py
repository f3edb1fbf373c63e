"""What a sender has not confirmed stays so, however much of it there is."""

from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.unconfirmed import Unconfirmed
from protocol.ids import Incarnation, LeaseId

KEYS = st.tuples(st.integers(1, 3).map(Incarnation), st.integers(1, 30).map(LeaseId))


@given(st.lists(st.tuples(KEYS, st.booleans()), max_size=80))
def test_it_is_bounded_and_never_forgets_that_something_may_land(acts: list[tuple[tuple[Incarnation, LeaseId], bool]]) -> None:
    unconfirmed, open_ones = Unconfirmed(most=5), set()
    for key, is_added in acts:
        if is_added:
            unconfirmed.add(key, 1)
            open_ones.add(key)
        elif unconfirmed.connection_of(key) is not None:
            unconfirmed.confirm(key)
            open_ones.discard(key)
        assert len(unconfirmed) <= 5
        assert all(one in unconfirmed for one in open_ones)


def test_what_was_confirmed_is_over_and_what_was_forgotten_is_not() -> None:
    unconfirmed = Unconfirmed(most=2)
    keys = [(Incarnation(1), LeaseId(number)) for number in range(1, 5)]
    for key in keys[:3]:
        unconfirmed.add(key, 7)
    assert keys[0] in unconfirmed and unconfirmed.connection_of(keys[0]) is None, "no barrier can tell"
    unconfirmed.confirm(keys[2])
    assert keys[2] not in unconfirmed and keys[3] not in unconfirmed
    assert (Incarnation(2), LeaseId(1)) not in unconfirmed
