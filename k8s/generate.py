"""Writes the manifests that stand in the repository, out of k8s/settings: `python -m k8s.generate [--check]`.

k8s/base/FLAVOUR is the base settings rendered; k8s/overlays/NAME/FLAVOUR is what an overlay's settings change of it, as patches, so
and what it adds, so that `kubectl apply -k k8s/overlays/NAME/FLAVOUR` and `serval k8s render --overlay NAME` are the same.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from k8s.config import Flavour
from k8s.deployment import load, overlays
from k8s.objects import Manifest, dump, to_yaml
from k8s.render import KUSTOMIZATION, kustomization, objects, texts

ADDED = "added.yaml"
"""An overlay's objects that the base has not got."""

HERE = Path(__file__).parent
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)


def files() -> Iterator[tuple[Path, str]]:
    """Every file, by its path within this folder."""
    for flavour in FLAVOURS:
        base = load(None, None, {"kubernetes.flavour": flavour})
        for name, text in texts(base):
            yield Path("base", flavour, name), text
        for overlay in overlays():
            changed = load(None, overlay, {"kubernetes.flavour": flavour})
            folder, more = Path("overlays", overlay, flavour), added(objects(base), objects(changed))
            resources = [f"../../../base/{flavour}", *([ADDED] if more else [])]
            content = {"resources": resources, "patches": list(patches(objects(base), objects(changed)))}
            yield folder / KUSTOMIZATION, kustomization(content)
            if more:
                yield folder / ADDED, to_yaml(more)


def added(base: list[Manifest], changed: list[Manifest]) -> list[Manifest]:
    """What `changed` has and `base` has not."""
    before = {_key(one) for one in base}
    return [one for one in changed if _key(one) not in before]


def patches(base: list[Manifest], changed: list[Manifest]) -> Iterator[dict[str, Any]]:
    """Kustomize's patches that make of `base` what `changed` has of it."""
    after = {_key(one): one for one in changed}
    for one in base:
        if (new := after.get(_key(one))) is None:
            place = {name: one["metadata"][name] for name in ("name", "namespace")}
            gone = {"$patch": "delete", "apiVersion": one["apiVersion"], "kind": one["kind"], "metadata": place}
            yield {"patch": dump(gone)}
        elif steps := list(_steps(one, new, "")):
            group, _, version = one["apiVersion"].rpartition("/")
            target = {"group": group} if group else {}
            target |= {"version": version, "kind": one["kind"], "name": one["metadata"]["name"]}
            yield {"target": target, "patch": dump(steps)}


def _key(one: Manifest) -> tuple[str, str]:
    return one["kind"], one["metadata"]["name"]


def _steps(old: Any, new: Any, path: str) -> Iterator[dict[str, Any]]:
    """JSON patch (RFC 6902). The value before the path: kustomize cuts the line break at the end of a patch's text, which would be
    the value's own."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            place = f"{path}/{str(name).replace('~', '~0').replace('/', '~1')}"
            if name not in new:
                yield {"op": "remove", "path": place}
            elif name not in old:
                yield {"op": "add", "value": new[name], "path": place}
            else:
                yield from _steps(old[name], new[name], place)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _steps(before, after, f"{path}/{index}")
    elif old != new:
        yield {"op": "replace", "value": new, "path": path}


def stale() -> list[str]:
    """Files that are not what would be written now, and files that nobody writes any more."""
    wanted = dict(files())
    found = {path.relative_to(HERE) for top in ("base", "overlays") for path in (HERE / top).rglob("*.yaml")}
    wrong = {path for path, text in wanted.items() if path not in found or (HERE / path).read_text() != text}
    return sorted(str(path) for path in wrong | (found - wanted.keys()))


def main() -> int:
    if "--check" in sys.argv[1:]:
        for path in stale():
            print(f"k8s/{path} is not what `python -m k8s.generate` writes", file=sys.stderr)
        return 1 if stale() else 0
    for file, text in files():
        (HERE / file).parent.mkdir(parents=True, exist_ok=True)
        (HERE / file).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
