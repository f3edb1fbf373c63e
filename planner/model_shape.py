"""A model as its speed and its memory see it: how many parameters of which kind, and how wide its KV cache is."""

from dataclasses import dataclass

from planner.attention_shape import AttentionShape


@dataclass(frozen=True)
class ExpertShape:
    """The mixture of experts of one layer."""

    count: int
    """Experts with weights."""
    parameters: int
    """Of one of them."""
    chosen: float
    """Experts with weights that a token uses on average: the router's top-k less the share that goes to zero experts."""
    shared: int = 0
    """Experts that every token uses, of the same size, on every GPU."""
    router_parameters: int = 0


@dataclass(frozen=True)
class ModelShape:
    """Norms and biases are left out: they are less than a thousandth."""

    name: str
    hidden: int
    vocabulary: int
    tied_head: bool
    attention: AttentionShape
    expert_layers: int
    """Layers with a mixture of experts."""
    dense_layers: int
    """Layers with one dense MLP of `dense_mlp` parameters and no experts."""
    dense_mlp: int
    """Parameters of one dense MLP; in a shortcut layer there are two beside the experts."""
    experts: ExpertShape | None
    shortcut: bool
    """LongCat-Flash's layer: two attentions and two dense MLPs, beside which the experts' tokens travel."""
    max_context: int

    @property
    def kv_layers(self) -> int:
        """Attentions with a KV cache."""
        return (2 if self.shortcut else 1) * self.expert_layers + self.dense_layers

    @property
    def kv_values_per_token(self) -> int:
        return self.kv_layers * self.attention.kv_values

    @property
    def head_parameters(self) -> int:
        return self.hidden * self.vocabulary

    @property
    def expert_parameters(self) -> int:
        """Of all experts that a router chooses among; what is split between GPUs."""
        return 0 if self.experts is None else self.expert_layers * self.experts.count * self.experts.parameters

    @property
    def common_parameters(self) -> int:
        """What a token passes through whatever its router chooses, in all layers, the head apart."""
        attention = self.attention.input_parameters + self.attention.output_parameters
        dense_mlps = self.dense_layers + (2 * self.expert_layers if self.shortcut else 0)
        experts = self.experts
        always = 0 if experts is None else experts.router_parameters + experts.shared * experts.parameters
        return self.kv_layers * attention + dense_mlps * self.dense_mlp + self.expert_layers * always

    @property
    def total_parameters(self) -> int:
        tables = self.head_parameters * (1 if self.tied_head else 2)
        return self.common_parameters + self.expert_parameters + tables

    @property
    def activated_parameters(self) -> float:
        """Multiplied per token on average, the head included."""
        chosen = 0.0 if self.experts is None else self.expert_layers * self.experts.chosen * self.experts.parameters
        return self.common_parameters + chosen + self.head_parameters

    def weight_bytes_per_gpu(self, gpus: int, dense_bytes: int, expert_bytes: int) -> float:
        """Of one of `gpus` that hold the model together. With experts, these are split and each GPU holds all the rest
        (data-parallel attention); a dense model is split in all its matrices."""
        rest = self.total_parameters - self.expert_parameters
        if self.experts is None:
            return rest * dense_bytes / gpus
        held = -(-self.experts.count // gpus)
        return rest * dense_bytes + self.expert_layers * held * self.experts.parameters * expert_bytes
