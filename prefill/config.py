"""Settings of the prefill worker."""

from pydantic import BaseModel, ConfigDict, Field


class PrefillConfig(BaseModel):
    """What a prefill worker does beside computing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_open_requests: int = Field(
        256,
        ge=1,
        description="Prompts accepted and not yet sent; more are refused as overloaded, so that decode tries elsewhere.",
    )
    abort_timeout_s: float = Field(
        4.0,
        gt=0,
        description="Seconds an abort may take to confirm that nothing is written any more; then the answer is no. Less than "
        "decode.abort_timeout_s, so that the answer still finds who asked.",
    )
