"""Figures that others have published, which the model is held to. Sources are named with each."""

from dataclasses import dataclass

from planner.decode_roofline import DecodeLoad, DecodeRoofline, NumberFormat
from planner.gpus import Gpu, find_gpu
from planner.known_models import KNOWN_MODELS
from planner.model_files import shape_of
from planner.model_shape import ModelShape
from planner.prefill_roofline import prompt_gpu_s

MICROSECOND = 1e-6
THEORY_TOKENS_PER_STEP = 1.8
"""The reports' theory: one drafted token, of which 80% are accepted."""
MEASURED_TOKENS_PER_STEP = 1.9
"""LongCat-Flash's makers accept about 90%."""


@dataclass(frozen=True)
class Theory:
    """One row of the LongCat-Flash report's comparison: the least time per output token at a batch of 96 per GPU on 128 H800s at
    $2 an hour, with a context of 5,000 tokens and one drafted token."""

    model: ModelShape
    number_format: NumberFormat
    attention_s: float
    dispatch_s: float
    experts_s: float
    combine_s: float
    tpot_s: float
    usd_per_million: float

    REQUESTS = 96
    CONTEXT = 5000
    GPUS = 128

    @property
    def load(self) -> DecodeLoad:
        return DecodeLoad(self.REQUESTS, self.CONTEXT, positions=2)

    @property
    def roofline(self) -> DecodeRoofline:
        return DecodeRoofline(self.model, find_gpu("h800"), self.GPUS, self.number_format)

    @property
    def predicted_tpot_s(self) -> float:
        """The layers' alone, as in the report: the head is left out."""
        return self.roofline.layers_s(self.load) / THEORY_TOKENS_PER_STEP


@dataclass(frozen=True)
class DecodePoint:
    """Tokens per second of one GPU and of one user, in a deployment that was measured."""

    name: str
    model: ModelShape
    number_format: NumberFormat
    gpus: int
    context: int
    gpu_tokens_per_s: float
    user_tokens_per_s: float
    fitted: bool = False
    tokens_per_step: float = MEASURED_TOKENS_PER_STEP

    @property
    def requests(self) -> float:
        """At a time on one GPU."""
        return self.gpu_tokens_per_s / self.user_tokens_per_s

    @property
    def step_s(self) -> float:
        return self.tokens_per_step / self.user_tokens_per_s

    @property
    def roofline_s(self) -> float:
        roofline = DecodeRoofline(self.model, find_gpu("h800"), self.gpus, self.number_format)
        return roofline.step_s(DecodeLoad(self.requests, self.context, positions=2))


@dataclass(frozen=True)
class PrefillPoint:
    """Prompt tokens per second of one GPU, in a deployment that was measured."""

    name: str
    model: ModelShape
    gpu: Gpu
    number_format: NumberFormat
    prompt_tokens: int
    gpu_tokens_per_s: float
    fitted: bool = True

    @property
    def token_gpu_s(self) -> float:
        return 1 / self.gpu_tokens_per_s

    @property
    def roofline_s(self) -> float:
        """GPU seconds per token."""
        return prompt_gpu_s(self.model, self.gpu, self.number_format, self.prompt_tokens) / self.prompt_tokens


LONGCAT, DEEPSEEK, QWEN = (shape_of(name, KNOWN_MODELS[name]) for name in ("longcat-flash", "deepseek-v3", "qwen3-235b-a22b"))

BFLOAT16_ATTENTION = NumberFormat(dense=2, experts=1, kv=2)
"""LongCat-Flash as it was measured: attention and dense MLPs in bfloat16, experts in 8 bits."""
EIGHT_BIT_KV = NumberFormat(dense=2, experts=1, kv=1)
EIGHT_BIT_WEIGHTS = NumberFormat(dense=1, experts=1, kv=2)
"""DeepSeek-V3 as released."""

# arXiv 2509.01322, the table of theoretical decoding time and cost.
THEORIES = tuple(
    Theory(
        model,
        number_format,
        attention_s=attention * MICROSECOND,
        dispatch_s=dispatch * MICROSECOND,
        experts_s=experts * MICROSECOND,
        combine_s=combine * MICROSECOND,
        tpot_s=tpot_ms / 1000,
        usd_per_million=usd,
    )
    for model, number_format, attention, dispatch, experts, combine, tpot_ms, usd in (
        (DEEPSEEK, EIGHT_BIT_WEIGHTS, 471, 275, 77, 551, 30.0, 0.17),
        (QWEN, EIGHT_BIT_WEIGHTS, 314, 157, 29, 315, 26.2, 0.15),
        (LONGCAT, BFLOAT16_ATTENTION, 264, 236, 60, 472, 16.0, 0.09),
    )
)

# The same report's measurements; the three in bfloat16 are LongCat-Flash's, the factor is made of them alone.
DECODE_POINTS = (
    DecodePoint(
        "LongCat-Flash, bf16 KV, context 5,000, 3785/s per GPU", LONGCAT, BFLOAT16_ATTENTION, 128, 5000, 3785, 35.0, fitted=True
    ),
    DecodePoint(
        "LongCat-Flash, bf16 KV, context 5,000, 2205/s per GPU", LONGCAT, BFLOAT16_ATTENTION, 128, 5000, 2205, 68.9, fitted=True
    ),
    DecodePoint(
        "LongCat-Flash, bf16 KV, context 5,000, 804/s per GPU", LONGCAT, BFLOAT16_ATTENTION, 128, 5000, 804, 100.5, fitted=True
    ),
    DecodePoint("LongCat-Flash, 8-bit KV, context 5,000", LONGCAT, EIGHT_BIT_KV, 128, 5000, 4230, 26.4),
    DecodePoint("LongCat-Flash, 8-bit KV, context 8,192", LONGCAT, EIGHT_BIT_KV, 128, 8192, 3240, 33.8),
    DecodePoint("DeepSeek-V3, context 4,096", DEEPSEEK, EIGHT_BIT_WEIGHTS, 128, 4096, 2324, 20.0),
    DecodePoint("DeepSeek-V3, context 4,989", DEEPSEEK, EIGHT_BIT_WEIGHTS, 144, 4989, 1850, 21.0),
)

# lmsys.org/blog/2025-05-05-large-scale-ep: DeepSeek-V3 on nodes of eight H100s, tokens per second and node.
PREFILL_POINTS = (
    PrefillPoint("DeepSeek-V3, prompts of 2,000", DEEPSEEK, find_gpu("h100"), EIGHT_BIT_WEIGHTS, 2000, 52_300 / 8),
    PrefillPoint("DeepSeek-V3, prompts of 4,096", DEEPSEEK, find_gpu("h100"), EIGHT_BIT_WEIGHTS, 4096, 50_302 / 8),
)
