"""docs/security.md names settings, metrics and commands: they must be there."""

import re
from pathlib import Path

from pydantic import BaseModel

from serving.config import ServalConfig
from telemetry.metrics import Metrics

TEXT = (Path(__file__).parents[3] / "docs" / "security.md").read_text()


def test_every_setting_exists() -> None:
    named = set(re.findall(r"`(cluster|router|transfer|tracing)\.(\w+)`", TEXT))
    assert len(named) > 15
    for group, name in named:
        model = ServalConfig.model_fields[group].annotation
        assert isinstance(model, type) and issubclass(model, BaseModel)
        assert name in model.model_fields, f"{group}.{name}"


def test_every_metric_exists() -> None:
    named = set(re.findall(r"`(serval_\w+)", TEXT))
    found = {sample.name for metric in Metrics("router", "router-0").registry.collect() for sample in [metric]}
    assert named
    for name in named:
        assert name.removesuffix("_total") in found, name
