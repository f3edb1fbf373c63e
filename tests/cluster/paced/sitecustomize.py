"""Workers whose steps take a device's time, whatever the CPU does: Python imports this by itself in every process that has this
folder on its path. The tiny model computes what it always does; then the step waits. So pools of a known speed fit on any machine.

SERVAL_PACE: prompt tokens per second of a prefill, and seconds of a decode step, as `1200,0.05`.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

PACED = "engine.engine"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the engine as everybody else does, and changes it once it is loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != PACED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_paced(module: ModuleType) -> None:
            load(module)
            _pace(module)

        spec.loader.exec_module = load_paced  # type: ignore[method-assign]
        return spec


def _pace(module: Any) -> None:
    prompt_tokens_per_s, step_s = map(float, os.environ["SERVAL_PACE"].split(","))
    publish = module.Engine._publish

    def paced(self: Any, step: Any) -> Any:
        spans = step.schedule.spans
        given = [span.length for span in spans if span.start < span.sequence.num_given - 1]
        time.sleep(sum(given) / prompt_tokens_per_s + (step_s if len(given) < len(spans) else 0.0))
        return publish(self, step)

    module.Engine._publish = paced


if "SERVAL_PACE" in os.environ:
    sys.meta_path.insert(0, _Finder())
