"""What two decisions of LongCat-Flash's implementation are worth, measured at the parts themselves, in turns.

- **Zero experts**: how much less time the mixture of experts takes when more of each token's experts are zero ones.
- **Absorbed decode**: attention of one new token over a long context in the latent space, against computing keys and values first.

Sizes keep Chat's proportions and are smaller in what does not matter here: fewer heads, narrower and fewer experts. Unlike most
benchmarks this one calls the engine's own code: from outside neither can be told from the rest of a step.

    python -m benchmarks.longcat_kernels --rounds 5 --json FILE
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Annotated

import torch
import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.measurement import JsonFile, Measurement, numbers
from benchmarks.paired import Machine, Paired, Verdict
from engine.attention import mla
from engine.attention.mla import LatentProjections, LatentShape, MlaAttention
from engine.batch import Batch, Span
from engine.kv_pool import KVPool
from engine.models.moe import ExpertWeights, MixtureOfExperts, RouterWeights
from engine.sequence import Sequence
from protocol.sampling import SamplingParams

HIDDEN, INNER, TOPK = 1536, 512, 12
"""Chat has 6144, 2048 and 12."""
REAL, ZERO = 64, 32
"""Chat has 512 and 256."""
ZERO_CHOSEN = (0, 4, 8)
"""Of a token's twelve; four is the mean if the router treats all experts alike."""
SHAPE = {"nope": 128, "rope": 64, "latent": 512, "value": 128}
"""Chat's; it has 64 heads."""
BLOCK_SIZE = 16
LEAST_S = 0.05
"""A turn repeats its call until so much time has passed, so that the clock's grain does not show."""


class ZeroShare(BaseModel):
    """The mixture with so many zero experts per token, against itself with none, and with the next fewer."""

    model_config = ConfigDict(frozen=True)

    tokens: int
    zero_chosen: int
    fewer: int
    call_s: Paired
    than_fewer_s: Paired

    def verdict(self) -> Verdict:
        """Time falls as their share rises."""
        what = f"MoE time, {self.tokens} tokens, {self.zero_chosen} of {TOPK} experts zero / {self.fewer}"
        return Verdict(what=what, measured=self.than_fewer_s.ratio, at_most=1)


class Absorbed(BaseModel):
    """One token's attention in either form: ours is absorbed, theirs expanded."""

    model_config = ConfigDict(frozen=True)

    heads: int
    context: int
    call_s: Paired


class KernelReport(BaseModel):
    model_config = ConfigDict(frozen=True)

    machine: Machine
    device: str
    dtype: str
    threads: int
    zero_shares: list[ZeroShare]
    absorbed: list[Absorbed]

    def verdicts(self) -> SequenceOf[Verdict]:
        absorbed = [
            Verdict(
                what=f"decode attention over {each.context} tokens, absorbed / expanded", measured=each.call_s.ratio, at_most=1
            )
            for each in self.absorbed
        ]
        return [*(each.verdict() for each in self.zero_shares), *absorbed]


def run(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each.")] = 5,
    tokens: Annotated[str, typer.Option(help="Tokens in a call of the mixture of experts.")] = "8,64,512",
    contexts: Annotated[str, typer.Option(help="Tokens that are attended to.")] = "4096",
    heads: Annotated[int, typer.Option(min=1, help="Attention heads; Chat has 64.")] = 16,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    json_file: JsonFile = None,
) -> None:
    """Measure zero experts and absorbed attention of LongCat-Flash.

    Exit status: 0 when the targets are met, 1 when one is missed, 2 when it could not be measured.
    """
    measurement = Measurement("longcat_kernels")
    torch.set_num_threads(threads)
    place = {"dtype": getattr(torch, dtype), "device": torch.device(device)}
    shares: list[ZeroShare] = []
    absorbed: list[Absorbed] = []
    with measurement.running(), torch.inference_mode():
        for count in numbers("--tokens", tokens):
            shares += measure_zero_shares(count, rounds, **place)
        absorbed += [measure_absorbed(heads, context, rounds, **place) for context in numbers("--contexts", contexts)]
    machine = measurement.machine
    report = KernelReport(machine=machine, device=device, dtype=dtype, threads=threads, zero_shares=shares, absorbed=absorbed)
    measurement.end(report, render, json_file)


def measure_zero_shares(tokens: int, rounds: int, *, dtype: torch.dtype, device: torch.device) -> list[ZeroShare]:
    """The same weights and tokens for every share; only the router's bias differs, which no weight hangs on."""
    drawn = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=drawn).div_(shape[-1] ** 0.5).to(device, dtype)

    experts = ExpertWeights(random(REAL, 2 * INNER, HIDDEN), random(REAL, HIDDEN, INNER))
    classifier = random(REAL + ZERO, HIDDEN).float()
    x = random(tokens, HIDDEN)
    calls = []
    for zero_chosen in ZERO_CHOSEN:
        bias = torch.zeros(REAL + ZERO, device=device)
        bias[REAL:] = -10.0
        bias[REAL : REAL + zero_chosen] = 10.0
        mixture = MixtureOfExperts(RouterWeights(classifier, bias, TOPK, 6.0), experts)
        calls.append(lambda mixture=mixture: mixture(x))
    taken = in_turns(calls, rounds, device)
    return [
        ZeroShare(
            tokens=tokens,
            zero_chosen=ZERO_CHOSEN[index],
            fewer=ZERO_CHOSEN[index - 1],
            call_s=Paired.of(taken[index], taken[0]),
            than_fewer_s=Paired.of(taken[index], taken[index - 1]),
        )
        for index in range(1, len(ZERO_CHOSEN))
    ]


def measure_absorbed(heads: int, context: int, rounds: int, *, dtype: torch.dtype, device: torch.device) -> Absorbed:
    """One sequence's last token, over a pool whose blocks are one run."""
    drawn = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=drawn).to(device, dtype)

    shape = LatentShape(heads=heads, scale=192**-0.5, **SHAPE)
    blocks = -(-context // BLOCK_SIZE)
    width = shape.latent + shape.rope
    pool = KVPool(num_layers=1, num_blocks=blocks, block_size=BLOCK_SIZE, entry_width=width, dtype=dtype, device=device)
    pool.data.copy_(random(*pool.data.shape))
    projections = LatentProjections(
        random(heads, shape.nope, shape.latent) / shape.latent**0.5,
        random(heads, shape.latent, shape.value) / shape.latent**0.5,
    )
    attention = MlaAttention(pool, shape, [projections])
    sequence = Sequence("measured", [0] * context, SamplingParams(), blocks=list(range(blocks)))
    batch = Batch([Span(sequence, context - 1, context)], BLOCK_SIZE, device)
    plan, query = attention.plan(batch), random(1, heads, shape.nope + shape.rope)

    def attend(expanded_from: int) -> None:
        mla.EXPANDED_FROM = expanded_from
        attention.attend(0, query, plan)

    usual = mla.EXPANDED_FROM
    try:
        absorbed_s, expanded_s = in_turns([lambda: attend(usual), lambda: attend(1)], rounds, device)
    finally:
        mla.EXPANDED_FROM = usual
    return Absorbed(heads=heads, context=context, call_s=Paired.of(absorbed_s, expanded_s))


def in_turns(calls: SequenceOf[Callable[[], object]], rounds: int, device: torch.device) -> list[list[float]]:
    """Per call, seconds of one call in every round; each round begins with another. The first round warms up."""
    taken: list[list[float]] = [[] for _ in calls]
    for number in range(-1, rounds):
        for turn in range(len(calls)):
            index = (number + turn) % len(calls)
            call_s = _time(calls[index], device)
            if number >= 0:
                taken[index].append(call_s)
    return taken


def _time(call: Callable[[], object], device: torch.device) -> float:
    count, started_s = 0, time.perf_counter()
    while True:
        call()
        count += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        passed_s = time.perf_counter() - started_s
        if passed_s >= LEAST_S:
            return passed_s / count


def render(report: KernelReport) -> RenderableType:
    shares = Table("tokens", "zero of 12", "ms", "ms with none", "ratio", "range", title="Mixture of experts, per layer")
    for each in report.zero_shares:
        shares.add_row(str(each.tokens), str(each.zero_chosen), *_cells(each.call_s))
    absorbed = Table("heads", "context", "ms absorbed", "ms expanded", "ratio", "range", title="Decode attention, per layer")
    for one in report.absorbed:
        absorbed.add_row(str(one.heads), str(one.context), *_cells(one.call_s))
    told = Text(
        f"{report.dtype} on {report.device}, {report.threads} threads; {report.machine.processor}, load {report.machine.load:.1f}"
    )
    return Group(shares, absorbed, told, *(Text(str(verdict)) for verdict in report.verdicts()))


def _cells(call_s: Paired) -> list[str]:
    return [
        f"{call_s.our_median * 1e3:.2f}",
        f"{call_s.their_median * 1e3:.2f}",
        f"{call_s.ratio or 0:.2f}",
        f"{call_s.smallest_ratio or 0:.2f} to {call_s.largest_ratio or 0:.2f}",
    ]


if __name__ == "__main__":
    typer.run(run)
