"""Generates the protobuf and gRPC stubs beside their .proto files. `python -m protocol.generate [--check]`."""

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ("protocol/serval.proto", "protocol/cluster.proto")


def generate(into: Path) -> list[Path]:
    """Writes the stubs of every .proto below `into`; returns their paths. Needs the `dev` extra."""
    from grpc_tools import protoc

    includes = [f"-I{ROOT}", f"-I{files('grpc_tools') / '_proto'}"]
    outputs = [f"--{plugin}_out={into}" for plugin in ("python", "grpc_python", "mypy", "mypy_grpc")]
    if protoc.main(["protoc", *includes, *outputs, *PROTOS]) != 0:
        raise SystemExit("protoc failed")
    return sorted(path for path in (into / "protocol").iterdir() if "_pb2" in path.name)


def stale() -> list[str]:
    """Names of committed stubs that differ from what the .proto files give now."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = generate(Path(folder))
        return [p.name for p in fresh if not _same(p, ROOT / "protocol" / p.name)]


def _same(fresh: Path, committed: Path) -> bool:
    return committed.exists() and committed.read_text() == fresh.read_text()


if __name__ == "__main__":
    if "--check" in sys.argv:
        if names := stale():
            raise SystemExit(f"stale generated stubs: {', '.join(names)}; run `make proto`")
    else:
        generate(ROOT)
