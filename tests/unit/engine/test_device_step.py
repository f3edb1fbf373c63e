"""Between the forward pass and its results nothing waits for the device: shown on tensors that have a shape and no values, of which
any look by the host is an error."""

from typing import Any

import pytest
import torch

from engine.batch import Batch, Span
from engine.sampler import Sampler
from engine.sequence import Sequence
from engine.speculation.verify import Verification
from engine.truncation import Truncation
from protocol.sampling import SamplingParams
from tests.unit.engine.conftest import MakeEngine
from tests.unit.engine.test_grammar import EOS, LETTERS, engine_grammars

META = torch.device("meta")
VOCABULARY = 260
RULES: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {},
    {"top_p": 0.9},
    {"top_k": 5},
    {"min_p": 0.1},
    {"temperature": 0.0, "presence_penalty": 0.5, "frequency_penalty": 0.1},
    {"repetition_penalty": 1.2, "top_p": 0.5, "top_k": 9},
    {"logit_bias": {3: 1.0}, "logprobs": 2},
    {"min_tokens": 8, "stop_token_ids": (4,)},
    {"temperature": 0.0, "grammar": LETTERS, "min_tokens": 5, "logprobs": 0},
    {"grammar": LETTERS, "ignore_eos": True, "presence_penalty": 0.5},
)


@pytest.mark.parametrize(
    "rules", [*((one,) for one in RULES), RULES], ids=[*(str(number) for number in range(len(RULES))), "all"]
)
def test_draw_and_verify_without_a_look(make_engine: MakeEngine, rules: tuple[dict[str, Any], ...]) -> None:
    grammars = engine_grammars(make_engine())
    spans = []
    for params in rules:
        sequence = Sequence("r", [1, 2, 3], SamplingParams(**params), output=[*b"ab"], blocks=[0])
        if sequence.params.grammar:
            sequence.matcher = grammars.matcher(LETTERS)
            sequence.matcher.follow(sequence.output)
        spans += [Span(sequence, 4, 7, (97, 98))]
    batch = Batch(spans, 16, META, shifted=True)
    plan, verification = Sampler(EOS, VOCABULARY, grammars).plan(batch.sampled, META), Verification(batch)

    drawn = plan.draw(torch.empty(len(batch.sampled), VOCABULARY, device=META))
    verified = verification.verify(drawn.tokens)

    assert verified.tokens.shape == (3 * len(rules),)
    assert verified.accepted.shape == verified.last_rows.shape == (len(rules),)
    assert {verified.tokens.dtype, verified.accepted.dtype, verified.last_rows.dtype} == {torch.int64}
    assert (drawn.logprobs is not None) == any("logprobs" in params for params in rules)
    with pytest.raises((NotImplementedError, RuntimeError)):
        verified.tokens.tolist()


def test_a_flat_nucleus_is_the_same_in_either_way_of_finding_it() -> None:
    """A GPU sorts the whole vocabulary, a CPU looks at the likeliest first: the same tokens are kept."""
    logits = torch.randn(64, 3000, generator=torch.Generator().manual_seed(1)) * 2
    params = [SamplingParams(top_p=0.02 + 0.0155 * row) for row in range(63)] + [SamplingParams()]
    truncation = Truncation(params, 3000, logits.device)
    looking = truncation(logits)
    truncation._sorts_all = True
    assert torch.equal(looking, truncation(logits))
    assert 0 < int(looking.isinf().sum()) < looking.numel()
