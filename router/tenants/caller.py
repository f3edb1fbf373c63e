"""Who asks: what a key stands for. Decided once per request, at the door."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """`tenant` shares limits and turns among its keys; it is a metric label, so there are as many as the operator configured.
    `key_name` tells keys apart in logs; it is never the key."""

    tenant: str
    key_name: str = ""


ANONYMOUS = Caller(tenant="default")
"""Everybody, while no keys are configured."""
