"""Texts that Kubernetes takes in one form only, checked before it is asked: a manifest in git must not fail when it is applied."""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"


def _like(pattern: str, longest: int, told: str) -> AfterValidator:
    """The whole text must be so; `told` says how."""
    compiled: Callable[[str], Any] = re.compile(pattern).fullmatch

    def check(text: str) -> str:
        if len(text) > longest or not compiled(text):
            raise ValueError(f"must be {told}")
        return text

    return AfterValidator(check)


def _as_text(given: Any) -> Any:
    """`cpu: 4` is as good as `cpu: "4"`, as in a manifest."""
    return str(given) if isinstance(given, int | float) and not isinstance(given, bool) else given


ClusterName = Annotated[
    str, _like(r"[a-z]([-a-z0-9]*[a-z0-9])?", 32, "at most 32 small letters, digits and -, the first a letter, the last no -")
]
"""Short, for names of objects and pods begin with it."""
NamespaceName = Annotated[str, _like(LABEL, 63, "at most 63 small letters, digits and -, the first and last no -")]
ObjectName = Annotated[
    str,
    _like(rf"{LABEL}(\.{LABEL})*", 253, "the name of an object: small letters, digits, - and ., the first and last no - or ."),
]
OptionalName = Annotated[
    str,
    _like(
        rf"({LABEL}(\.{LABEL})*)?", 253, "the name of an object: small letters, digits, - and ., the first and last no - or ."
    ),
]
LabelKey = Annotated[str, _like(rf"({LABEL}(\.{LABEL})*/)?{WORD}", 317, "a label's name, such as topology.kubernetes.io/zone")]
LabelValue = Annotated[str, _like(rf"({WORD})?", 63, "a label's value: at most 63 letters, digits, -, _ and .")]
ResourceName = Annotated[str, _like(rf"{LABEL}(\.{LABEL})*/{WORD}", 317, "a device plugin's resource, such as nvidia.com/gpu")]
VariableName = Annotated[str, _like(r"[-._A-Za-z][-._A-Za-z0-9]*", 253, "a variable's name: letters, digits, _, - and .")]
Quantity = Annotated[
    str,
    BeforeValidator(_as_text),
    _like(r"(?=[0-9.]*[1-9])[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?", 32, "an amount above 0 such as 16Gi or 16G"),
]
Cores = Annotated[
    str, BeforeValidator(_as_text), _like(r"(?=[0-9.]*[1-9])[0-9]+(\.[0-9]+)?m?", 32, "an amount above 0 such as 4 or 500m")
]
