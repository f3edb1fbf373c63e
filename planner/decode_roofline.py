"""The least time that a decode step can take: what must be read, multiplied and sent, each at the speed of what does it.

All times are seconds, of one layer on one GPU, where every GPU has its own requests (data-parallel attention) and holds a share of
the experts. docs/planner.md has the formulas and their sources.
"""

from dataclasses import dataclass
from math import pow

from planner.gpus import GB, Gpu
from planner.model_shape import ExpertShape, ModelShape

ATTENTION_EFFICIENCY = 660 / 989
"""Share of the peak that attention's products reach. FlashMLA on an H800: 660 of 989 TFLOP/s."""

DISPATCH_BYTES = 1
"""Per value that travels to an expert: 8 bits, as DeepEP sends it."""
COMBINE_BYTES = 2
"""Per value that comes back: bfloat16."""

ALL_TO_ALL = (
    (8, 98 * GB, 127 * GB),
    (16, 63 * GB, 74 * GB),
    (32, 48 * GB, 53 * GB),
    (64, 43 * GB, 46 * GB),
    (128, 39 * GB, 39 * GB),
)
"""GPUs, and bytes per second at which each sends (dispatch) and gets back (combine): DeepEP's own measurement of its low-latency
kernels on H800s with a 400 Gb/s card each (39 and 40 GB/s at 256 GPUs). Between two sizes the larger one's holds."""
ALL_TO_ALL_NETWORK = 50 * GB
"""The card's bandwidth in that measurement; another card's is taken in proportion."""


@dataclass(frozen=True)
class NumberFormat:
    """Bytes per value, of what is kept in several formats."""

    dense: int = 2
    """Weights that every token passes through."""
    experts: int = 2
    kv: int = 2


@dataclass(frozen=True)
class DecodeLoad:
    """What one GPU decodes at a time."""

    requests: float
    context: float
    """Tokens before each request's next one, on average."""
    positions: int = 1
    """Computed per request in a step: 1, and 1 for each drafted token."""

    @property
    def tokens(self) -> float:
        return self.requests * self.positions


@dataclass(frozen=True)
class ExpertLayer:
    """Parts of one layer with experts. `attention`: one attention, projections included."""

    attention: float
    dispatch: float
    experts: float
    combine: float
    total: float
    """With what is hidden behind something else left out."""


class DecodeRoofline:
    """One model on `gpus` GPUs of one kind, that hold it together."""

    def __init__(self, model: ModelShape, gpu: Gpu, gpus: int, number_format: NumberFormat) -> None:
        self._model, self._gpu, self._gpus, self._format = model, gpu, gpus, number_format
        self._split = gpus if model.experts is None else 1
        """GPUs that share each dense matrix."""

    def step_s(self, load: DecodeLoad) -> float:
        """One step: all layers, then the head."""
        return self.layers_s(load) + self._product(self._model.head_parameters, self._format.dense, load.tokens)

    def layers_s(self, load: DecodeLoad) -> float:
        """All layers."""
        model = self._model
        total = model.dense_layers * self._dense_layer(load) if model.dense_layers else 0.0
        if model.experts is not None:
            total += model.expert_layers * self.expert_layer(load).total
        return total

    def expert_layer(self, load: DecodeLoad) -> ExpertLayer:
        """The parts of a layer with experts. Asking it of a model without any is a bug."""
        model, experts = self._model, self._model.experts
        assert experts is not None, f"{model.name} has no experts"
        attention_in = self._product(model.attention.input_parameters, self._format.dense, load.tokens)
        attention_out = self._product(model.attention.output_parameters, self._format.dense, load.tokens)
        core, product = self._attention_core(load), self._experts(experts, load.tokens)
        dispatch, combine = self._all_to_all(experts, load.tokens)
        attention = attention_in + core + attention_out
        if model.shortcut:
            # Single-batch overlap: tokens travel beside the first MLP and the second attention's input, and come back beside
            # the rest of the second attention and the second MLP.
            mlp = self._product(model.dense_mlp, self._format.dense, load.tokens)
            total = attention + max(dispatch, mlp + attention_in) + product + max(combine, core + attention_out + mlp)
        else:
            # Two-batch overlap: one half's attention while the other half's tokens travel.
            total = max(attention, dispatch + combine) + product
        return ExpertLayer(attention, dispatch, product, combine, total)

    def _dense_layer(self, load: DecodeLoad) -> float:
        model = self._model
        parameters = model.attention.input_parameters + model.attention.output_parameters + model.dense_mlp
        return self._attention_core(load) + self._product(parameters, self._format.dense, load.tokens) + self._all_reduce(load)

    def _attention_core(self, load: DecodeLoad) -> float:
        attention, gpu = self._model.attention, self._gpu
        pairs = load.tokens * load.context
        compute = pairs * attention.decode_flops / (gpu.bf16_flops * ATTENTION_EFFICIENCY)
        memory = load.requests * load.context * attention.kv_values * self._format.kv / gpu.memory_bytes_per_s
        return max(compute, memory)

    def _product(self, parameters: int, value_bytes: int, tokens: float) -> float:
        """Tokens times a matrix, whose share on this GPU is read once; of a split matrix the GPU sees the tokens of all."""
        shared = parameters / self._split
        read = shared * value_bytes / self._gpu.memory_bytes_per_s
        return max(read, 2 * tokens * self._split * shared / self._gpu.flops(value_bytes))

    def _experts(self, experts: ExpertShape, tokens: float) -> float:
        """The grouped products of this GPU's experts for the tokens of all GPUs, experts being equally liked."""
        all_tokens = tokens * self._gpus
        idle = pow(1 - min(1.0, experts.chosen / experts.count), all_tokens)
        read = (experts.count / self._gpus * (1 - idle) + experts.shared) * experts.parameters * self._format.experts
        compute = 2 * tokens * (experts.chosen + experts.shared) * experts.parameters
        return max(read / self._gpu.memory_bytes_per_s, compute / self._gpu.flops(self._format.experts))

    def _all_to_all(self, experts: ExpertShape, tokens: float) -> tuple[float, float]:
        """Dispatch and combine. Zero experts are no journey."""
        if self._gpus == 1:
            return 0.0, 0.0
        fitting = (row for row in ALL_TO_ALL if row[0] >= self._gpus)
        _, send, receive = next(fitting, ALL_TO_ALL[-1])
        values = tokens * experts.chosen * self._model.hidden
        network = self._gpu.network_bytes_per_s / ALL_TO_ALL_NETWORK
        return values * DISPATCH_BYTES / (send * network), values * COMBINE_BYTES / (receive * network)

    def _all_reduce(self, load: DecodeLoad) -> float:
        """Twice per layer, of the hidden state of all GPUs' tokens, as a ring over NVLink in a node and over the network beyond."""
        if self._split == 1:
            return 0.0
        speed = self._gpu.nvlink_bytes_per_s if self._split <= GPUS_PER_NODE else self._gpu.network_bytes_per_s
        moved = 2 * (self._split - 1) / self._split * load.tokens * self._split * self._model.hidden * 2
        return 2 * moved / speed


GPUS_PER_NODE = 8
