"""From logits to tokens. Order of the rules as in vLLM: grammar, bias and bans, penalties, temperature, min_p, top_k, top_p.

Every rule ends in a threshold on the logits, and the draw walks the kept tokens in vocabulary order, so that a token never
depends on how a sort breaks ties or on what else is in the batch.
"""

import math
from collections.abc import Sequence as SequenceOf

import torch

from engine.draws import uniform
from engine.grammar import Grammars
from engine.logprobs import TokenLogprobs, token_logprobs
from engine.sequence import Sequence
from protocol.sampling import SamplingParams

NUCLEUS_CANDIDATES = 256
"""top_p first looks at this many likeliest tokens; only a flatter distribution pays for a sort of the vocabulary."""

MINUS_INFINITY = float("-inf")


class Sampler:
    """Draws one token per sequence. Stateless: everything follows from the sequence's tokens, its parameters and its position."""

    def __init__(self, eos_token_ids: frozenset[int], grammars: Grammars | None = None) -> None:
        """`grammars`: where the sequences' matchers come from; without it there are none."""
        self._eos_token_ids = eos_token_ids
        self._grammars = grammars

    def sample(self, logits: torch.Tensor, sequences: SequenceOf[Sequence]) -> tuple[list[int], list[TokenLogprobs | None]]:
        """`logits` [sequences, vocab_size], in any float format; not changed."""
        tokens = self._choose(logits, sequences)
        return tokens, _logprobs(logits, tokens, [sequence.params for sequence in sequences])

    def _choose(self, logits: torch.Tensor, sequences: SequenceOf[Sequence]) -> list[int]:
        adjusted_rows = [row for row, sequence in enumerate(sequences) if self._is_adjusted(sequence)]
        if adjusted_rows:
            logits = logits.float().clone() if logits.dtype == torch.float32 else logits.float()
            self._keep_to_grammars_(logits, sequences)
            for row in adjusted_rows:
                self._adjust_(logits[row], sequences[row])
        random_rows = [row for row, sequence in enumerate(sequences) if not sequence.params.is_greedy]
        if not random_rows:
            return _to_list(logits.max(dim=-1).indices)
        tokens = _to_list(logits.max(dim=-1).indices) if len(random_rows) < len(sequences) else [0] * len(sequences)
        drawn = _draw(logits[random_rows].float(), [sequences[row] for row in random_rows])
        for row, token in zip(random_rows, drawn, strict=True):
            tokens[row] = token
        return tokens

    def _is_adjusted(self, sequence: Sequence) -> bool:
        params = sequence.params
        return bool(
            sequence.matcher
            or params.logit_bias
            or params.repetition_penalty != 1.0
            or params.presence_penalty
            or params.frequency_penalty
            or len(sequence.output) < params.min_tokens
        )

    def _keep_to_grammars_(self, logits: torch.Tensor, sequences: SequenceOf[Sequence]) -> None:
        """Bans in place what no grammar allows next. An answer that has left its grammar already is let be: it ends."""
        matchers = [(row, s.matcher) for row, s in enumerate(sequences) if s.matcher is not None and s.matcher.error is None]
        if not matchers or self._grammars is None:
            return
        biases = self._grammars.biases([matcher for _, matcher in matchers], logits.device)
        for (row, _), bias in zip(matchers, biases, strict=True):
            self._ban_ends_(bias, sequences[row])
            logits[row] += bias

    def _ban_ends_(self, bias: torch.Tensor, sequence: Sequence) -> None:
        """An answer that ignores its end, or is too short for it, goes on while its grammar allows anything else."""
        params, is_short = sequence.params, len(sequence.output) < sequence.params.min_tokens
        if is_short or params.ignore_eos:
            ends = sorted({*self._eos_token_ids, *(params.stop_token_ids if is_short else ())})
            going_on = bias.index_fill(0, torch.tensor(ends, dtype=torch.long, device=bias.device), MINUS_INFINITY)
            if bool((going_on == 0.0).any()):
                bias.copy_(going_on)

    def _adjust_(self, row: torch.Tensor, sequence: Sequence) -> None:
        """Changes one sequence's logits [vocab_size] in place."""
        params = sequence.params
        device = row.device
        if params.logit_bias:
            biased = torch.tensor(list(params.logit_bias), device=device)
            row[biased] += torch.tensor(list(params.logit_bias.values()), dtype=row.dtype, device=device)
        if len(sequence.output) < params.min_tokens and sequence.matcher is None:
            banned = {*params.stop_token_ids, *(() if params.ignore_eos else self._eos_token_ids)}
            row[torch.tensor(sorted(banned), dtype=torch.long, device=device)] = MINUS_INFINITY
        if params.repetition_penalty != 1.0:
            seen = torch.unique(torch.tensor(sequence.tokens, device=device))
            values = row[seen]
            penalty = params.repetition_penalty
            row[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if sequence.output and (params.presence_penalty or params.frequency_penalty):
            said, counts = torch.unique(torch.tensor(sequence.output, device=device), return_counts=True)
            row[said] -= params.presence_penalty + params.frequency_penalty * counts


def _draw(logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    """Inverse of the cumulative distribution at each sequence's own random number. `logits` float32, one row per sequence."""
    params = [sequence.params for sequence in sequences]
    logits = logits / _column([p.temperature for p in params], logits)
    logits = _keep_min_p(logits, params)
    logits = _keep_top_k(logits, params)
    logits = _keep_top_p(logits, params)
    # float64: the draws' 53 bits keep their meaning over a vocabulary of 150,000.
    cumulative = torch.softmax(logits, dim=-1, dtype=torch.float64).cumsum(dim=-1)
    total = cumulative[:, -1:]
    numbers = [uniform(sequence.params.seed, len(sequence.tokens)) for sequence in sequences]
    target = _column(numbers, cumulative) * total
    # Strictly below the total, so the first entry above it exists and has a probability greater than 0.
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    return _to_list(torch.searchsorted(cumulative, target, right=True).squeeze(1))


def _keep_min_p(logits: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    if all(p.min_p == 0.0 for p in params):
        return logits
    margins = [math.log(p.min_p) if p.min_p > 0.0 else MINUS_INFINITY for p in params]
    return _keep(logits, logits.amax(dim=-1, keepdim=True) + _column(margins, logits))


def _keep_top_k(logits: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    vocabulary = logits.shape[-1]
    limits = [min(p.top_k, vocabulary) if p.top_k > 0 else vocabulary for p in params]
    widest = max((limit for limit in limits if limit < vocabulary), default=0)
    if widest == 0:
        return logits
    largest = logits.topk(widest, dim=-1).values
    indices = torch.tensor([[min(limit, widest) - 1] for limit in limits], device=logits.device)
    unlimited = torch.tensor([[limit == vocabulary] for limit in limits], device=logits.device)
    return _keep(logits, largest.gather(1, indices).masked_fill_(unlimited, MINUS_INFINITY))


def _keep_top_p(logits: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    """The likeliest tokens whose probabilities reach top_p together, the one that crosses it included."""
    if all(p.top_p == 1.0 for p in params):
        return logits
    mass = _column([p.top_p for p in params], logits)
    off = mass == 1.0
    normaliser = logits.logsumexp(dim=-1, keepdim=True)
    candidates = min(NUCLEUS_CANDIDATES, logits.shape[-1])
    largest = logits.topk(candidates, dim=-1).values
    reached = (largest - normaliser).exp_().cumsum(dim=-1)
    if bool(((reached[:, -1:] < mass) & ~off).any()):
        largest = logits.sort(dim=-1, descending=True).values
        reached = (largest - normaliser).exp_().cumsum(dim=-1)
    crossing = (reached < mass).sum(dim=-1, keepdim=True).clamp_(max=largest.shape[-1] - 1)
    return _keep(logits, largest.gather(1, crossing).masked_fill_(off, MINUS_INFINITY))


def _keep(logits: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    return logits.masked_fill(logits < threshold, MINUS_INFINITY)


def _logprobs(logits: torch.Tensor, tokens: list[int], params: list[SamplingParams]) -> list[TokenLogprobs | None]:
    result: list[TokenLogprobs | None] = [None] * len(tokens)
    rows = [row for row, p in enumerate(params) if p.logprobs is not None]
    if rows:
        found = token_logprobs(logits[rows], [tokens[row] for row in rows], [params[row].logprobs or 0 for row in rows])
        for row, one in zip(rows, found, strict=True):
            result[row] = one
    return result


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


def _to_list(tokens: torch.Tensor) -> list[int]:
    result: list[int] = tokens.tolist()
    return result
