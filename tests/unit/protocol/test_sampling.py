"""What passes at the door can be sent to a worker, and arrives as it was."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams

FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
COUNTS = ("top_k", "seed", "logprobs", "prompt_logprobs", "min_tokens")
NUMBERS = st.floats(-10, 200, width=32)
INTEGERS = st.integers(-2, 2**70) | st.integers(-2, 30)


@given(
    floats=st.fixed_dictionaries({}, optional=dict.fromkeys(FLOATS, NUMBERS)),
    integers=st.fixed_dictionaries({}, optional=dict.fromkeys(COUNTS, INTEGERS)),
    stop_token_ids=st.lists(INTEGERS, max_size=2),
)
def test_what_is_valid_survives_the_wire(floats: dict[str, float], integers: dict[str, int], stop_token_ids: list[int]) -> None:
    params = SamplingParams(**floats, **integers, stop_token_ids=tuple(stop_token_ids), max_tokens=100)  # type: ignore[arg-type]
    try:
        params.validate(vocab_size=1000)
    except InvalidRequest:
        assume(False)
    assert SamplingParams.from_proto(params.to_proto(), default_max_tokens=16) == params


def test_a_top_k_that_no_message_can_carry_is_refused_by_name() -> None:
    SamplingParams(top_k=2**32 - 1).validate(vocab_size=1000)
    with pytest.raises(InvalidRequest, match="top_k") as refused:
        SamplingParams(top_k=2**32).validate(vocab_size=1000)
    assert refused.value.field == "top_k"
