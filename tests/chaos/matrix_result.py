"""What one trial of one cell has shown."""

from dataclasses import dataclass, field
from typing import Any

from matrix_cells import Cell


@dataclass
class Trial:
    """What was seen. `wrong` empty: all was as promised."""

    cell: Cell
    repeat: int
    number: int = 0
    victim: str = ""
    hits: int = 0
    """Requests that were in the state, at the process that was hit, when it was."""
    bystanders: int = 0
    evidence: dict[str, Any] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    """How the hits ended for their clients."""
    recover_s: list[float] = field(default_factory=list)
    """Per hit: from the fault to the next token, where need be of the client's second try at the other router."""
    ended_s: list[float] = field(default_factory=list)
    """Per hit: from the fault to the client's hearing of the end."""
    whole_s: float | None = None
    """From the fault until every process is there, and known to both routers."""
    balanced_s: float | None = None
    """From the fault until every worker has all of its blocks back."""
    leaked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    late_s: float = 0.0
    """At most so late were the clients' own clocks."""
