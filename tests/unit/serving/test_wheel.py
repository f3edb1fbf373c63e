"""The wheel has every package, and every file beside the code that a process reads: an image is made of it."""

import fnmatch
import tomllib
from pathlib import Path
from typing import Any

import serving

ROOT = Path(serving.__file__).parents[1]
NOT_READ = ("k8s/base/*", "k8s/overlays/*", "k8s/checkov.yaml")
"""For people, with kubectl; the wheel renders them."""


def setuptools() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return found


def own_files() -> set[Path]:
    """All in the top-level folders that are packages, but what Python leaves behind."""
    tops = {name.split(".")[0] for name in setuptools()["packages"]}
    tops |= {init.parent.name for init in ROOT.glob("*/__init__.py") if init.parent.name not in ("tests", "build")}
    found = {path.relative_to(ROOT) for top in tops for path in (ROOT / top).rglob("*") if path.is_file()}
    return {path for path in found if "__pycache__" not in path.parts}


def test_every_folder_with_code_is_a_package_of_it() -> None:
    folders = {".".join(path.parent.parts) for path in own_files() if path.suffix == ".py"}
    assert folders == set(setuptools()["packages"])


def test_every_other_file_goes_along() -> None:
    data = setuptools()["package-data"]
    kept = {f"{package.replace('.', '/')}/{pattern}" for package, patterns in data.items() for pattern in patterns}
    others = [str(path) for path in own_files() if path.suffix != ".py"]
    left_out = [one for one in others if not any(fnmatch.fnmatch(one, pattern) for pattern in (*kept, *NOT_READ))]
    assert left_out == []
    assert {pattern for pattern in kept if not any(fnmatch.fnmatch(one, pattern) for one in others)} == set()
    assert "router/dashboard/page.html" in others
