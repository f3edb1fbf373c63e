"""Where traces go."""

import os
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class TracingConfig(BaseModel):
    """OpenTelemetry's own environment variables (OTEL_EXPORTER_OTLP_*, OTEL_BSP_*, OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES,
    OTEL_SERVICE_NAME, OTEL_SDK_DISABLED) hold for what is not set here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    otlp_endpoint: str | None = Field(
        default=None,
        description="URL of an OTLP gRPC collector, for example http://127.0.0.1:4317 (https: with TLS). None: what "
        "OTEL_EXPORTER_OTLP_ENDPOINT says; where that is unset too, nothing is traced and nothing is spent on it.",
    )
    sample_ratio: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of traces kept, of those that begin here. A client that sends a trace context has decided already. "
        "None: what OTEL_TRACES_SAMPLER says, which by default is all.",
    )
    service_name: str | None = Field(
        default=None,
        min_length=1,
        description="Spans are of the services NAME-router, NAME-decode and NAME-prefill. None: OTEL_SERVICE_NAME, or serval.",
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_a_url(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("must be a URL like http://127.0.0.1:4317")
        return value

    @property
    def is_on(self) -> bool:
        disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        return not disabled and (self.otlp_endpoint is not None or any(os.environ.get(name) for name in _ENDPOINT_VARIABLES))
