"""`make chaos`: every part, one after the other; each writes its report into the same folder.

    make chaos                      all of them
    make chaos-matrix               one, which is also a command of its own
    make chaos ARGS="matrix load"   some

Ends with 0 only when all did.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]

PARTS: Mapping[str, tuple[str, ...]] = {
    "matrix": ("tests/chaos/matrix.py", "--out", "{out}"),
    "load": ("tests/chaos/load.py", "--out", "{out}"),
    "soak": ("tests/chaos/soak.py", "--out", "{out}"),
    "fuzz": ("tests/fuzz/fuzz.py", "--out", "{out}"),
    "model": ("tests/model/check.py",),
}
"""Script and arguments of each part. A part bounds its own time, shows its progress and ends with 0 when all was as promised."""


def run(part: str, out: Path, more: list[str]) -> int:
    """The part's exit status. `more` are arguments to it."""
    command = [sys.executable, *(word.format(out=out) for word in PARTS[part]), *more]
    folders = [ROOT, ROOT / "tests" / "cluster", ROOT / "tests" / "integration"]
    paths = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    print(f"== {part}: {' '.join(command[1:])}", flush=True)
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--out", type=Path, default=Path("chaos"), help="folder for the reports")
    arguments, more = parser.parse_known_args()
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if more and len(arguments.parts) != 1:
        parser.error(f"{' '.join(more)}: arguments of a part go with that part alone")
    results = {}
    for part in arguments.parts:
        began_s = time.monotonic()
        results[part] = run(part, arguments.out.resolve(), more), time.monotonic() - began_s
    for part, (status, seconds) in results.items():
        print(f"{part}: {'as promised' if status == 0 else f'FAILED (status {status})'} in {seconds:.0f} s")
    return max(status != 0 for status, _ in results.values())


if __name__ == "__main__":
    sys.exit(main())
