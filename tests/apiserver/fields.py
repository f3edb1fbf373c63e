"""Who owns which field: server-side apply, its conflicts, and managedFields.

A field is a path: names of fields, and for items of a list with keys the text `k:{…}`. Owned are the ends of paths: values, whole
lists without keys, empty mappings, and the items of keyed lists themselves.
"""

import copy
import json
from datetime import UTC, datetime
from typing import Any

from tests.apiserver.errors import ApiError
from tests.apiserver.resources import Object, Resource, merge_key

Path = tuple[str, ...]
NOT_OWNED = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}
SERVERS = (
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "managedFields",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
"""Of metadata: nobody's to set."""


def leaves(resource: Resource, value: Any, path: Path = ()) -> dict[Path, Any]:
    """Every owned field, and its value."""
    if isinstance(value, dict) and (value or not path):
        found: dict[Path, Any] = {}
        for name, inner in value.items():
            place = (*path, name)
            if place in NOT_OWNED or (path == ("metadata",) and name in SERVERS):
                continue
            found |= leaves(resource, inner, place)
        return found
    if (
        isinstance(value, list)
        and path
        and (keys := merge_key(resource, plain(path)))
        and all(isinstance(one, dict) for one in value)
    ):
        found = {}
        for item in value:
            place = (*path, item_key(keys, item))
            found[place] = None
            found |= leaves(resource, item, place)
        return found
    return {path: value}


def plain(path: Path) -> Path:
    return tuple(step for step in path if not step.startswith("k:"))


def item_key(keys: tuple[str, ...], item: Object) -> str:
    defaults = {"protocol": "TCP"}
    return "k:" + json.dumps({key: item.get(key, defaults.get(key)) for key in keys}, sort_keys=True, separators=(",", ":"))


def look_up(resource: Resource, value: Any, path: Path) -> tuple[bool, Any]:
    """Whether the field is there, and its value (None for an item itself)."""
    done: Path = ()
    for step in path:
        if step.startswith("k:"):
            keys = merge_key(resource, plain(done)) or ()
            value = next((one for one in value or [] if item_key(keys, one) == step), None)
        else:
            value = value.get(step) if isinstance(value, dict) and step in value else None
        done = (*done, step)
        if value is None:
            return False, None
    return True, None if path[-1].startswith("k:") else value


def apply(resource: Resource, live: Object | None, config: Object, manager: str, force: bool) -> Object:
    """`live` after a server-side apply of `config` by `manager`. Raises 409 where another owns a field with another value."""
    wanted = leaves(resource, config)
    owners = read_owners(live)
    mine = (manager, "Apply", "")
    causes = []
    for other, fields in owners.items():
        if other == mine:
            continue
        for path in sorted(fields & wanted.keys()):
            is_there, value = look_up(resource, live, path)
            if is_there and value != wanted[path]:
                causes.append((other, path))
    if causes and not force:
        raise _conflict(resource, config, causes)
    for other, path in causes:
        owners[other].discard(path)
    result = merge(resource, copy.deepcopy(live) if live else {}, config)
    held = {path for other, fields in owners.items() if other != mine for path in fields}
    for path in sorted(owners.get(mine, set()) - wanted.keys() - held, key=len, reverse=True):
        remove(resource, result, path)
    owners[mine] = set(wanted)
    write_owners(resource, result, owners)
    return result


def _conflict(resource: Resource, config: Object, causes: list[tuple[tuple[str, str, str], Path]]) -> ApiError:
    found = [
        {
            "reason": "FieldManagerConflict",
            "message": f'conflict with "{other[0]}"'
            + (f' with subresource "{other[2]}"' if other[2] else "")
            + f" using {resource.api_version}",
            "field": "".join(f"[{step[2:]}]" if step.startswith("k:") else f".{step}" for step in path),
        }
        for other, path in causes
    ]
    return ApiError(409, f"Apply failed with {len(found)} conflict(s) on {config['metadata']['name']}", "Conflict", found)


def merge(resource: Resource, live: Any, config: Any, path: Path = ()) -> Any:
    """`config` over `live`; null removes nothing here."""
    if isinstance(config, dict) and isinstance(live, dict):
        for name, value in config.items():
            live[name] = merge(resource, live.get(name), value, (*path, name))
        return live
    keys = merge_key(resource, path) if isinstance(config, list) and path else None
    if keys and isinstance(live, list):
        for item in config:
            same = next((one for one in live if item_key(keys, one) == item_key(keys, item)), None)
            if same is None:
                live.append(copy.deepcopy(item))
            else:
                merge(resource, same, item, path)
        return live
    return copy.deepcopy(config)


def remove(resource: Resource, value: Any, path: Path, done: Path = ()) -> None:
    """Takes the field out, if it is there."""
    step = path[0]
    if step.startswith("k:"):
        keys = merge_key(resource, plain(done)) or ()
        item = next((one for one in value or [] if item_key(keys, one) == step), None)
        if item is None:
            return
        if len(path) == 1:
            value.remove(item)
        else:
            remove(resource, item, path[1:], (*done, step))
    elif isinstance(value, dict) and step in value:
        if len(path) == 1:
            del value[step]
        else:
            remove(resource, value[step], path[1:], (*done, step))
            if not value[step]:
                del value[step]


def note_update(resource: Resource, old: Object | None, new: Object, manager: str, subresource: str) -> None:
    """Whoever writes in another way than by apply owns what it changed."""
    before, after = leaves(resource, old or {}), leaves(resource, new)
    owners = read_owners(old)
    changed = {path for path, value in after.items() if before.get(path, ...) != value}
    for fields in owners.values():
        fields -= changed | (before.keys() - after.keys())
    mine = (manager, "Update", subresource)
    owners[mine] = owners.get(mine, set()) | changed
    write_owners(resource, new, owners)


def read_owners(one: Object | None) -> dict[tuple[str, str, str], set[Path]]:
    """Fields by (manager, operation, subresource)."""
    found = {}
    for entry in (one or {}).get("metadata", {}).get("managedFields") or []:
        found[entry["manager"], entry["operation"], entry.get("subresource", "")] = set(_decode(entry["fieldsV1"]))
    return found


def write_owners(resource: Resource, one: Object, owners: dict[tuple[str, str, str], set[Path]]) -> None:
    """Entries whose fields did not change keep their time."""
    before = {
        (entry["manager"], entry["operation"], entry.get("subresource", "")): entry
        for entry in one["metadata"].get("managedFields") or []
    }
    entries = []
    for who, fields in owners.items():
        if not fields:
            continue
        manager, operation, subresource = who
        entry = {"manager": manager, "operation": operation, "apiVersion": resource.api_version, "time": now()}
        entry |= {"fieldsType": "FieldsV1", "fieldsV1": _encode(fields)} | ({"subresource": subresource} if subresource else {})
        same = before.get(who)
        entries.append(same if same and same["fieldsV1"] == entry["fieldsV1"] else entry)
    one["metadata"]["managedFields"] = entries


def _encode(fields: set[Path]) -> Object:
    tree: Object = {}
    for path in sorted(fields):
        place = tree
        for step in path:
            place = place.setdefault(step if step.startswith("k:") else f"f:{step}", {})
        if path[-1].startswith("k:"):
            place["."] = {}
    return tree


def _decode(tree: Object, path: Path = ()) -> list[Path]:
    found = []
    for name, inner in tree.items():
        if name == ".":
            found.append(path)
            continue
        place = (*path, name if name.startswith("k:") else name[2:])
        found += [place] if not inner else _decode(inner, place)
    return found


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
