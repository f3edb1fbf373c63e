"""Label and field selectors of lists and watches."""

from typing import Any

from tests.apiserver.resources import Object


def chosen(one: Object, query: dict[str, str]) -> bool:
    labels = one["metadata"].get("labels") or {}
    return all(
        _fits(labels.get(name), name, sign, value) for name, sign, value in _terms(query.get("labelSelector", ""))
    ) and all(_fits(_field(one, name), name, sign, value) for name, sign, value in _terms(query.get("fieldSelector", "")))


def _terms(text: str) -> list[tuple[str, str, str]]:
    found = []
    for term in filter(None, text.split(",")):
        sign = "!=" if "!=" in term else "="
        name, _, value = term.replace("==", "=").partition(sign)
        found.append((name.strip(), sign, value.strip()))
    return found


def _fits(found: Any, name: str, sign: str, value: str) -> bool:
    return (found != value) if sign == "!=" else (str(found) == value)


def _field(one: Object, path: str) -> Any:
    value: Any = one
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value
