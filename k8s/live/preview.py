"""What an apply would do, by a server-side dry run: changes, conflicts and objections are known before anything is changed."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from k8s.live.api import Api
from k8s.live.errors import ClusterError, Conflict, Several, kind_missing
from k8s.live.kinds import in_order, key, label
from k8s.live.target import Target
from k8s.objects import FIELD_MANAGER, Manifest, dump

Action = Literal["create", "change", "keep", "delete"]

VOLATILE = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")
"""Of metadata: what the server writes down about an object."""


@dataclass(frozen=True)
class Change:
    """One object: as it is (`before`) and would be (`after`). `wanted`: what to apply. `force`: whether fields are taken over."""

    action: Action
    before: Manifest | None
    after: Manifest | None
    wanted: Manifest | None = None
    force: bool = False

    @property
    def label(self) -> str:
        one = self.wanted or self.before
        assert one is not None
        return label(one)


def preview(target: Target, objects: Iterable[Manifest], force: bool) -> list[Change]:
    """Of every object, in order, then of those that are there and not rendered any more. Changes nothing. Raises what the server
    has against it, all at once."""
    wanted = in_order(objects)
    require_kinds(target.api, wanted)
    changes: list[Change] = []
    errors: list[ClusterError] = []
    for one in wanted:
        try:
            changes.append(_change(target.api, one, force))
        except ClusterError as error:
            errors.append(error)
            if len(errors) > 1 and type(errors[-1]) is type(errors[-2]) and not isinstance(error, Conflict):
                break  # the same of every object: no right, no answer
    if errors:
        raise errors[0] if len(errors) == 1 or not isinstance(errors[0], Conflict) else Several(errors)
    names = {key(one) for one in wanted}
    surplus = [one for one in reversed(target.own()) if key(one) not in names]
    return changes + [Change("delete", one, None) for one in surplus]


def require_kinds(api: Api, objects: Sequence[Manifest]) -> None:
    """Raises KindMissing for the first kind of each API group that the cluster does not know."""
    missing = {one["apiVersion"]: one for one in reversed(objects) if not api.knows(one["apiVersion"], one["kind"])}
    if missing:
        raise Several([kind_missing(one["apiVersion"], one["kind"]) for one in reversed(missing.values())])


def _change(api: Api, one: Manifest, force: bool) -> Change:
    before = api.get(one["apiVersion"], one["kind"], one["metadata"]["name"])
    try:
        after = api.apply(one, dry_run=True, force=force)
    except Conflict as conflict:
        # Our own drain has its own entry among a field's owners; what is rendered wins over it.
        if conflict.managers != {FIELD_MANAGER}:
            raise
        force, after = True, api.apply(one, dry_run=True, force=True)
    if before is None:
        return Change("create", None, after, one, force)
    is_same = settled(before) == settled(after) and _is_ours(before)
    return Change("keep" if is_same else "change", before, after, one, force)


def _is_ours(one: Manifest) -> bool:
    entries = one["metadata"].get("managedFields") or []
    return any(entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply" for entry in entries)


def settled(one: Manifest | None) -> dict[str, Any]:
    """Without what the server adds and counts up."""
    if one is None:
        return {}
    metadata = {name: value for name, value in one["metadata"].items() if name not in VOLATILE}
    head = {"apiVersion": one["apiVersion"], "kind": one["kind"], "metadata": metadata}
    return head | {name: value for name, value in one.items() if name not in (*head, "status")}


def differences(changes: Iterable[Change]) -> Iterator[str]:
    """Lines of a unified diff, object after object."""
    for change in changes:
        before, after = _lines(change.before), _lines(change.after)
        yield from difflib.unified_diff(before, after, f"is/{change.label}", f"will be/{change.label}", lineterm="")


def _lines(one: Manifest | None) -> list[str]:
    return dump(settled(one)).splitlines() if one else []
