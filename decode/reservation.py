"""What a request must hold before anything is computed: KV blocks, and a landing slot where the prompt comes from elsewhere."""

from decode.break_even import Here
from decode.parts import Parts
from decode.request import DecodeRequest
from engine.block_allocator import OutOfBlocks
from kvtransfer.landing import SlotState
from protocol.errors import InvalidRequest, Overloaded
from protocol.ids import BlockId, Incarnation

# Part of `serval_local_prefills_total{reason}`; so is what decode/break_even.py says.
NO_PREFILL_WORKER = "no_prefill_worker"
PAIR_AVOIDED = "pair_avoided"
LANDING_TOO_SMALL = "landing_too_small"
LANDING_QUARANTINED = "landing_quarantined"


class Reservation:
    """Afterwards the request's sequence holds its blocks, and `request.lease` is the landing slot, or None: then `local_reason`
    says why the prompt is computed here."""

    def __init__(self, request: DecodeRequest, parts: Parts) -> None:
        self._request = request
        self._sequence = request.sequence
        self._parts = parts
        self.local_reason: str | None = None
        self._choice: tuple[int, Here | None] | None = None

    def attempt(self) -> bool:
        """Takes everything, or nothing and returns False. Raises InvalidRequest for what would never fit."""
        kv, sequence, request = self._parts.engine.kv_cache, self._sequence, self._request
        total = kv.blocks_for(sequence.num_given) + self._parts.config.headroom_blocks
        if total > kv.num_blocks:
            raise InvalidRequest(f"a prompt of {sequence.num_given} tokens needs {total} KV blocks; there are {kv.num_blocks}")
        cached: list[int] = []
        cached_tokens = 0
        if not sequence.wants_prompt_logprobs:  # whoever computes the prompt for these computes all of it
            cached, cached_tokens = kv.match_prefix(sequence.tokens, again=sequence.looked_up)
            sequence.looked_up = True
        try:
            sequence.take([*cached, *kv.allocate(total - len(cached), after=cached[-1] if cached else None)])
        except OutOfBlocks:
            kv.release(cached)
            return False
        sequence.num_computed = request.cached_tokens = cached_tokens
        self.local_reason = self._reason_to_prefill_here(len(cached))
        if self.local_reason is None and not self._reserve_landing(len(cached)):
            kv.release(sequence.give_up_blocks())
            return False
        return True

    def _reason_to_prefill_here(self, cached_blocks: int) -> str | None:
        if self._request.prefill is None:
            return NO_PREFILL_WORKER
        if (choice := self._choose(self._sequence.num_remaining)) is not None:
            return choice
        if self._parts.pairs.is_avoided(self._request.prefill):
            return PAIR_AVOIDED
        if self._given_blocks - cached_blocks > self._parts.receiver.max_blocks:
            return LANDING_TOO_SMALL
        return None

    def _choose(self, uncached_tokens: int) -> Here | None:
        """Asked once: attempts repeat while a request waits in line, and trials are counted."""
        if self._choice is None or self._choice[0] != uncached_tokens:
            self._choice = uncached_tokens, self._parts.break_even.choose(uncached_tokens)
        return self._choice[1]

    def _reserve_landing(self, first_block: int) -> bool:
        """False: no slot is free now. All in quarantine: none will be soon, so compute here."""
        request, receiver = self._request, self._parts.receiver
        assert request.prefill is not None
        blocks = [BlockId(block) for block in self._sequence.blocks[first_block : self._given_blocks]]
        try:
            request.lease = receiver.reserve(
                request.request_id, request.attempt, Incarnation(request.prefill.incarnation), blocks
            )
        except Overloaded:
            states = receiver.blocks_by_state()
            if any(states[state] for state in (SlotState.LEASED, SlotState.QUIESCING, SlotState.PUMPING)):
                return False
            self.local_reason = LANDING_QUARANTINED
        return True

    @property
    def _given_blocks(self) -> int:
        return self._parts.engine.kv_cache.blocks_for(self._sequence.num_given)
