"""Chat templates of families whose checkpoints may come without one. A checkpoint's own is always preferred."""

from pathlib import Path

from protocol.chat_templates import LONGCAT_CHAT
from router.model import read_json


def builtin_template(folder: Path) -> str | None:
    """For the model whose config.json lies in `folder`, by its architecture; None for any other."""
    architectures = (read_json(folder / "config.json") or {}).get("architectures") or ["(none)"]
    return LONGCAT_CHAT if str(architectures[0]).startswith("Longcat") else None
