"""Settings of one engine."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class EngineConfig(BaseModel):
    """What a worker may choose about model execution; everything else follows from the model's own config.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Number format of weights, activations and KV. auto: the checkpoint's own where this machine computes it fast, "
        "else float32 on a CPU and bfloat16 on a GPU (float16 matrix products are unusably slow on CPUs).",
    )
    fp8_weights: Literal["auto", "keep", "widen"] = Field(
        default="auto",
        description="What becomes of a checkpoint's 8-bit matrices. keep: most stay so and take half the memory; a GPU of compute "
        "capability 9.0 multiplies the dense ones in 8 bits, all else is widened for each product. widen: to dtype, as they are "
        "read. auto: keep on a GPU of compute capability 8.9 or more, where 8-bit numbers are converted at full speed.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where the model runs. auto: the GPU where there is one."
    )
    block_size: int = Field(
        default=16,
        ge=1,
        le=1024,
        description="Tokens per KV block. 16 as in vLLM: small enough to waste little, large enough for few descriptors.",
    )
    kv_memory_bytes: int = Field(
        default=1 << 30,
        ge=1,
        description="Bytes of the KV pool, taken once at start. 1 GiB: about 46,000 tokens of SmolLM2-135M.",
    )
    max_batch_tokens: int = Field(
        default=512,
        ge=1,
        description="Tokens of one forward pass, hence the chunk in which prompts are computed. Larger: faster prefill; "
        "smaller: steadier token gaps of those that decode in the same batch.",
    )
    max_sequences: int = Field(
        default=64, ge=1, description="Sequences computed at once; more wait. Bounds the width of a decode batch."
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of one matrix product. None: torch's own choice (all cores)."
    )
    prefix_cache: bool = Field(default=True, description="Keep the KV of ended sequences for prompts with the same beginning.")
    check_integrity: bool = Field(
        default=False,
        description="Verify the KV cache's books before every step. For tests: takes time in proportion to the pool.",
    )
    native_kernels: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: compute decode steps in C where engine/native can: bfloat16, one CPU thread with AMX, a C compiler, at "
        "most 4 GiB of weights, of which it keeps a second copy. About half the time per token. off: torch alone.",
    )
    steps_in_flight: int = Field(
        default=1,
        ge=1,
        le=8,
        description="Decode steps launched before the results of the first of them are read. 1: none ahead. 2: while one computes, "
        "the next waits for it on the device, and what the host does between them costs nothing; answers that end meanwhile are "
        "computed one step too far, which is cut. Without effect where guesses make the next step's length unknown (speculation).",
    )
    cuda_graphs: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: on a GPU decode steps are captured as CUDA graphs at start, one for each batch size, and replayed: "
        "target, drawing, verification and the draft head without the host between their kernels. Steps that a graph cannot hold "
        "(prompts, grammars, penalties, log-probabilities) are launched operation by operation, as all are with off, and on a CPU.",
    )
    cuda_graph_sizes: tuple[int, ...] | None = Field(
        default=None,
        min_length=1,
        description="Numbers of sequences for which decode steps are captured; a batch takes the next larger one, and larger "
        "batches none. Each size is three graphs, or six where tokens are guessed, of some MiB. None: 1, 2, 4 … max_sequences, so "
        "that at most half of a batch is filled up.",
    )
    max_model_len: int | None = Field(
        default=None, ge=2, description="Longest prompt plus answer, in tokens. None: what the model was trained for."
    )
    speculation: Literal["off", "ngram", "mtp", "auto"] = Field(
        default="auto",
        description="Who guesses the next tokens, which a step then computes all at once; no answer changes by it. ngram: what "
        "followed the last tokens where they stood before, for any model. mtp: the checkpoint's own head. auto: mtp where the "
        "checkpoint has it, else off. Prefill and decode workers must agree: `serval up --set engine.speculation=ngram`.",
    )
    draft_tokens: int = Field(
        default=8,
        ge=1,
        le=64,
        description="At most so many tokens are guessed at once by ngram (mtp: always 1). How many of them are computed is decided "
        "in every step by what they have been worth lately, so more cost little where they do not help.",
    )

    tensor_parallel_size: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes that share one model, each with a GPU of its own: attention heads, MLPs, experts and vocabulary are "
        "split over them. 1: the worker alone. A worker starts the others itself and takes so many GPUs.",
    )
    local_followers: int | None = Field(
        default=None,
        ge=0,
        description="Of these processes, how many the worker starts on its own host, beside itself. None: all. The others are "
        "started on their hosts with `serval follow`.",
    )
    split_address: str = Field(
        default="127.0.0.1:0",
        pattern=r"^[^:\s]+:\d{1,5}$",
        description="HOST:PORT where the worker waits for those processes; port 0 is any free one. Those on other hosts need an "
        "address that they reach, in a network that is trusted: what the processes tell each other is not encrypted.",
    )
    split_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds that these processes wait for each other within a step. What takes longer has failed: the worker ends "
        "and is replaced. Far more than the longest chunk of a prompt takes.",
    )
    split_start_timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="Seconds until all of these processes must have connected, and again until they must have read their weights.",
    )

    @property
    def own_followers(self) -> int:
        """Processes that the worker starts beside itself."""
        others = self.tensor_parallel_size - 1
        return others if self.local_followers is None else min(self.local_followers, others)

    @model_validator(mode="after")
    def _batch_holds_every_decode(self) -> "EngineConfig":
        if self.max_batch_tokens < self.max_sequences:
            raise ValueError("max_batch_tokens must be at least max_sequences: each running sequence needs one token per step")
        if self.cuda_graph_sizes is not None and not all(1 <= size <= self.max_sequences for size in self.cuda_graph_sizes):
            raise ValueError("cuda_graph_sizes must be between 1 and max_sequences: no step has more sequences")
        return self
