"""The lifecycle table: every edge works, every other pair raises and changes nothing."""

import itertools
from pathlib import Path

import pytest

from protocol.lifecycle import INITIAL, TABLE, Event, IllegalTransition, Lifecycle, Role, State, document, mermaid

PAIRS = [(role, state, event) for role in Role for state, event in itertools.product(TABLE[role], Event)]


def at(role: Role, state: State) -> Lifecycle:
    lifecycle = Lifecycle(role)
    lifecycle.state = state
    return lifecycle


@pytest.mark.parametrize(("role", "state", "event"), PAIRS)
def test_an_edge_is_followed_and_anything_else_changes_nothing(role: Role, state: State, event: Event) -> None:
    lifecycle = at(role, state)
    target = TABLE[role][state].get(event)
    assert lifecycle.can(event) == (target is not None)
    if target is not None:
        assert lifecycle.advance(event) is target
        assert lifecycle.state is target
    else:
        with pytest.raises(IllegalTransition, match=f"{role}.*{event}.*{state}"):
            lifecycle.advance(event)
        assert lifecycle.state is state


@pytest.mark.parametrize("role", Role)
def test_every_state_is_reached_and_leads_to_the_end(role: Role) -> None:
    def reachable(start: State) -> set[State]:
        found, border = {start}, [start]
        while border:
            new = set(TABLE[role][border.pop()].values()) - found
            found |= new
            border += new
        return found

    assert reachable(INITIAL[role]) == set(TABLE[role])
    assert all(State.ENDED in reachable(state) for state in TABLE[role])
    assert TABLE[role][State.ENDED] == {}


def test_an_ended_request_says_so() -> None:
    lifecycle = Lifecycle(Role.ROUTER)
    assert not lifecycle.has_ended
    lifecycle.advance(Event.END)
    assert lifecycle.has_ended
    assert repr(lifecycle) == "<Lifecycle router: ended>"


@pytest.mark.parametrize("role", Role)
def test_the_diagram_has_every_edge_of_the_table(role: Role) -> None:
    lines = mermaid(role).splitlines()
    assert lines[:2] == ["stateDiagram-v2", f"    [*] --> {INITIAL[role]}"]
    drawn = set()
    for line in lines[2:-1]:
        arrow, _, events = line.strip().partition(": ")
        source, _, target = arrow.partition(" --> ")
        drawn |= {(source, event, target) for event in events.split(", ")}
    assert drawn == {(s, e, t) for s, edges in TABLE[role].items() for e, t in edges.items()}


def test_the_diagrams_in_the_docs_are_those_of_the_table() -> None:
    page = Path(__file__).parents[3] / "docs" / "lifecycle.md"
    assert page.read_text() == document(), "stale: run `python -m protocol.lifecycle > docs/lifecycle.md`"
