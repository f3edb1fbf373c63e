"""Merge patches (RFC 7386), and Kubernetes' strategic ones as far as lists with keys go."""

import copy
from typing import Any

from tests.apiserver.fields import item_key
from tests.apiserver.resources import Resource, merge_key


def merge_patch(value: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(value) if isinstance(value, dict) else {}
    for name, inner in patch.items():
        if inner is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), inner)
    return result


def strategic_patch(resource: Resource, value: Any, patch: Any, path: tuple[str, ...] = ()) -> Any:
    keys = merge_key(resource, path) if isinstance(patch, list) and path else None
    if keys and isinstance(value, list):
        result = list(value)
        for item in patch:
            places = [place for place, one in enumerate(result) if item_key(keys, one) == item_key(keys, item)]
            if places:
                result[places[0]] = strategic_patch(resource, result[places[0]], item, path)
            else:
                result.append(copy.deepcopy(item))
        return result
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(value) if isinstance(value, dict) else {}
    for name, inner in patch.items():
        if inner is None:
            result.pop(name, None)
        else:
            result[name] = strategic_patch(resource, result.get(name), inner, (*path, name))
    return result
