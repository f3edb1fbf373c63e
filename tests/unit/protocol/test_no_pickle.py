"""Nothing that Serval reads off a wire or a disk can run code: no pickle and none of its kin, no checkpoint's own code."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "multiprocessing"}
"""The last sends what it is given as pickles."""
CALLS = {
    ("torch", "load"), ("torch", "save"), ("numpy", "load"), ("np", "load"), ("yaml", "unsafe_load"),
    ("distributed", "broadcast_object_list"), ("distributed", "all_gather_object"), ("distributed", "scatter_object_list"),
}  # fmt: skip
NAMES = {"eval", "exec", "compile"}


def sources() -> Iterator[Path]:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"]
    for package in set(packages) - {"tests"}:
        yield from (ROOT / package).rglob("*.py")


def found_in(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute):
                owner = called.value
                name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
                found += [f"{name}.{called.attr}"] if (name, called.attr) in CALLS else []
            elif isinstance(called, ast.Name) and called.id in NAMES:
                found.append(called.id)
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            trusts = keywords.get("trust_remote_code")
            if trusts is not None and not (isinstance(trusts, ast.Constant) and trusts.value is False):
                found.append("trust_remote_code")
    return found


def test_no_source_reads_what_could_run_code() -> None:
    files = list(sources())
    assert len(files) > 200
    found = {str(file.relative_to(ROOT)): what for file in files if (what := found_in(file.read_text()))}
    assert found == {}


def test_it_would_be_found() -> None:
    for source, what in (
        ("import pickle", "pickle"),
        ("from multiprocessing.shared_memory import SharedMemory", "multiprocessing.shared_memory"),
        ("torch.load(path)", "torch.load"),
        ("torch.distributed.broadcast_object_list(x)", "distributed.broadcast_object_list"),
        ("AutoModel.from_pretrained(path, trust_remote_code=True)", "trust_remote_code"),
        ("eval(text)", "eval"),
    ):
        assert found_in(source) == [what]
    assert found_in("model.eval(); re.compile(text); f(trust_remote_code=False)") == []
