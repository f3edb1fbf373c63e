"""The two names of a request."""

import re
import secrets

from protocol.ids import RequestId

_ACCEPTABLE = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def request_ids(given: str | None) -> tuple[str, RequestId]:
    """The id that the client sees, its own if it gave a sane one, and the cluster's, which no client can make collide."""
    drawn = secrets.token_hex(12)
    return (given if given and _ACCEPTABLE.fullmatch(given) else drawn), RequestId(drawn)
