"""For checkers that are programs: `python -m tests.unit.k8s.write_manifests FOLDER` writes each overlay in both flavours.

What a RayService's pods will be stands there as Deployments, which checkers know.
"""

import sys
from pathlib import Path

from k8s.objects import to_yaml
from tests.unit.k8s.k8s_support import EVERY, all_objects, as_deployments


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for overlay, flavour in EVERY:
        found = all_objects(overlay, flavour)
        (folder / f"{overlay or 'base'}-{flavour}.yaml").write_text(to_yaml([*found, *as_deployments(found)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
