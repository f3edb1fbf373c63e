"""What a client calls several requests that belong together: they prefer the same workers, where these are otherwise equal.

Clients say it in many words; those of other servers' users are understood too. Sources: Dynamo's "Identify Agent Sessions", which
lists coding agents' own headers too (OpenCode's x-session-id, Codex's session-id), AIBrix (x-session-id) and SGLang's model gateway
(x-smg-routing-key).
"""

from collections.abc import Mapping

SESSION_HEADERS = ("x-serval-session", "x-session-id", "x-dynamo-session-id", "x-smg-routing-key", "session-id")
"""The first that is there counts. Over gRPC they are metadata keys."""


def session_in(headers: Mapping[str, str]) -> str:
    """Empty where none is named."""
    return next((name for header in SESSION_HEADERS if (name := headers.get(header))), "")
