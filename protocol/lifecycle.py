"""The life of a request as each role sees it: one transition table, `TABLE[role][state][event] -> state`.

    lifecycle = Lifecycle(Role.DECODE)
    lifecycle.advance(Event.RESERVED)

An edge that the table lacks raises and changes nothing. `python -m protocol.lifecycle` prints the diagrams of the docs.
"""

from collections.abc import Mapping
from enum import StrEnum


class Role(StrEnum):
    ROUTER = "router"
    DECODE = "decode"
    PREFILL = "prefill"


class State(StrEnum):
    RECEIVED = "received"
    """Router: validated and accepted, not yet looked at."""
    QUEUED = "queued"
    """Router: waits for a worker. Decode: waits for KV blocks and landing slots. Prefill: waits for its first chunk."""
    SUBMITTED = "submitted"
    """Router: a decode worker has it; it has sent no token yet."""
    STREAMING = "streaming"
    """Router: tokens are coming."""
    RESERVED = "reserved"
    """Decode: owns the KV blocks of the whole prompt, and landing slots where the prompt is to come from elsewhere."""
    PREFILLING = "prefilling"
    """Decode: a prefill worker holds a write lease; neither the first token nor the whole KV is here."""
    RECEIVING = "receiving"
    """Decode: the first token is known (and sent on), layers are outstanding."""
    PREFILLING_LOCALLY = "prefilling_locally"
    """Decode: computes the prompt by itself."""
    DECODING = "decoding"
    """Decode: part of the running batch."""
    COMPUTING = "computing"
    """Prefill: chunks run; layers are written as they finish."""
    SENDING = "sending"
    """Prefill: the first token is out, writes are outstanding."""
    QUIESCING = "quiescing"
    """Prefill: no new write is posted; those posted are being waited for."""
    ENDED = "ended"
    """Every role: nothing is held any more."""


class Event(StrEnum):
    ADMITTED = "admitted"
    SUBMITTED = "submitted"
    TOKENS = "tokens"
    WORKER_LOST = "worker_lost"
    """The decode worker is gone, or gave the request back; it goes on elsewhere."""
    RESERVED = "reserved"
    PREFILL_CALLED = "prefill_called"
    PREFILL_CHOSEN_LOCALLY = "prefill_chosen_locally"
    FIRST_TOKEN = "first_token"
    KV_COMPLETE = "kv_complete"
    """Every KV entry of the prompt is in the pool and verified."""
    PREFILL_LOST = "prefill_lost"
    """The prefill worker failed, or its KV could not be verified; the slot is released or quarantined."""
    STARTED = "started"
    WRITTEN = "written"
    """Every write was posted."""
    ABORTED = "aborted"
    """The lease ended early, or the computation failed."""
    QUIESCED = "quiesced"
    """No write can happen any more, or it was reported that this could not be confirmed."""
    END = "end"
    """The one outcome is decided."""


TABLE: Mapping[Role, Mapping[State, Mapping[Event, State]]] = {
    Role.ROUTER: {
        State.RECEIVED: {Event.ADMITTED: State.QUEUED, Event.END: State.ENDED},
        State.QUEUED: {Event.SUBMITTED: State.SUBMITTED, Event.END: State.ENDED},
        State.SUBMITTED: {
            Event.TOKENS: State.STREAMING,
            Event.WORKER_LOST: State.QUEUED,
            Event.END: State.ENDED,
        },
        State.STREAMING: {
            Event.TOKENS: State.STREAMING,
            Event.WORKER_LOST: State.QUEUED,
            Event.END: State.ENDED,
        },
        State.ENDED: {},
    },
    Role.DECODE: {
        State.QUEUED: {Event.RESERVED: State.RESERVED, Event.END: State.ENDED},
        State.RESERVED: {
            Event.PREFILL_CALLED: State.PREFILLING,
            Event.PREFILL_CHOSEN_LOCALLY: State.PREFILLING_LOCALLY,
            Event.END: State.ENDED,
        },
        State.PREFILLING: {
            # KV that is complete before the first token is known waits for it: the two travel on different channels.
            Event.FIRST_TOKEN: State.RECEIVING,
            Event.PREFILL_LOST: State.RESERVED,
            Event.END: State.ENDED,
        },
        State.RECEIVING: {
            Event.KV_COMPLETE: State.DECODING,
            Event.PREFILL_LOST: State.RESERVED,
            Event.END: State.ENDED,
        },
        State.PREFILLING_LOCALLY: {
            # A token that a lost prefill worker had sampled already is kept; this is then the first one sampled here.
            Event.FIRST_TOKEN: State.DECODING,
            Event.END: State.ENDED,
        },
        State.DECODING: {Event.TOKENS: State.DECODING, Event.END: State.ENDED},
        State.ENDED: {},
    },
    Role.PREFILL: {
        State.QUEUED: {Event.STARTED: State.COMPUTING, Event.ABORTED: State.ENDED},
        State.COMPUTING: {Event.FIRST_TOKEN: State.SENDING, Event.ABORTED: State.QUIESCING},
        State.SENDING: {Event.WRITTEN: State.QUIESCING, Event.ABORTED: State.QUIESCING},
        # An abort while the writes are being waited for changes nothing: the wait is bounded and its answer is the same.
        State.QUIESCING: {Event.ABORTED: State.QUIESCING, Event.QUIESCED: State.ENDED},
        State.ENDED: {},
    },
}

INITIAL: Mapping[Role, State] = {
    Role.ROUTER: State.RECEIVED,
    Role.DECODE: State.QUEUED,
    Role.PREFILL: State.QUEUED,
}


class IllegalTransition(AssertionError):
    """The table has no such edge: a bug of ours, never the world's."""

    def __init__(self, role: Role, state: State, event: Event) -> None:
        super().__init__(f"{role}: no edge '{event}' from '{state}'")
        self.role, self.state, self.event = role, state, event


class Lifecycle:
    """Where one request stands at one role. Not thread-safe: the loop that owns the request owns this."""

    __slots__ = ("role", "state")

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = INITIAL[role]

    def advance(self, event: Event) -> State:
        """Follows the edge and returns the new state; raises IllegalTransition, changing nothing, where there is none."""
        next_state = TABLE[self.role][self.state].get(event)
        if next_state is None:
            raise IllegalTransition(self.role, self.state, event)
        self.state = next_state
        return next_state

    def can(self, event: Event) -> bool:
        return event in TABLE[self.role][self.state]

    @property
    def has_ended(self) -> bool:
        return self.state is State.ENDED

    def __repr__(self) -> str:
        return f"<Lifecycle {self.role}: {self.state}>"


def mermaid(role: Role) -> str:
    """The role's states and edges as a Mermaid state diagram; edges between the same two states share an arrow."""
    lines = ["stateDiagram-v2", f"    [*] --> {INITIAL[role]}"]
    for state, edges in TABLE[role].items():
        labels: dict[State, list[str]] = {}
        for event, target in edges.items():
            labels.setdefault(target, []).append(str(event))
        lines += [f"    {state} --> {target}: {', '.join(events)}" for target, events in labels.items()]
    lines.append(f"    {State.ENDED} --> [*]")
    return "\n".join(lines)


def document() -> str:
    """docs/lifecycle.md, whole."""
    parts = ["# Lifecycle of a request", "Generated from the table: `python -m protocol.lifecycle > docs/lifecycle.md`."]
    parts += [f"## {role}\n\n```mermaid\n{mermaid(role)}\n```" for role in Role]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(document(), end="")
