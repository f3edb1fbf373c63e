"""The Dockerfile, as far as it can be judged without building it."""

import re
import tomllib
from pathlib import Path

import yaml

from k8s.deployment import read_overlay
from k8s.pod import USER
from serving.model_folder import MODEL_NAME

ROOT = Path(__file__).parents[3]
TARGETS = ("cpu", "cuda")


def instructions() -> list[tuple[str, str]]:
    """(instruction, its words), continued lines joined and comments left out."""
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Each stage's instructions, by its name; the FROM is the first."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            assert name, f"FROM {image} has no name"
            found[name] = []
        found[name].append((word, rest))
    return found


def base_of(name: str) -> str:
    return stages()[name][0][1].partition(" AS ")[0]


def test_every_base_is_pinned() -> None:
    for name in stages():
        base = base_of(name)
        assert base in stages() or re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?", base), base


def test_every_target_ends_as_the_pods_user() -> None:
    for target in TARGETS:
        assert stages()[target][-1] == ("USER", f"{USER}:{USER}")
        assert base_of(target) == "run-base"


def test_copies_come_from_stages_that_exist() -> None:
    copies = [rest for word, rest in instructions() if word in ("COPY", "ADD")]
    assert not [rest for word, rest in instructions() if word == "ADD"]
    sources = {match[1] for rest in copies if (match := re.match(r"--from=(\S+)", rest))}
    assert sources == {"build-cpu", "build-cuda"} <= stages().keys()


def test_packages_leave_no_lists_behind_and_no_recommended_ones() -> None:
    runs = [rest for word, rest in instructions() if word == "RUN" and "apt-get install" in rest]
    assert len(runs) == 2
    for run in runs:
        assert "apt-get update" in run
        assert "--no-install-recommends" in run
        assert "rm -rf /var/lib/apt/lists/*" in run
    assert not [rest for word, rest in instructions() if "sudo " in rest or "curl " in rest or "wget " in rest]


def test_commands_are_lists_so_that_signals_arrive() -> None:
    assert [rest[0] for word, rest in instructions() if word in ("CMD", "ENTRYPOINT")] == ["[", "["]


def test_versions_are_the_makefiles() -> None:
    makefile = dict(
        re.findall(r"^(TORCH_VERSION|MODEL_PACKAGE|TORCH_CPU_INDEX) := (\S+)$", (ROOT / "Makefile").read_text(), re.M)
    )
    arguments = [rest.split("=", 1) for word, rest in instructions() if word == "ARG"]
    assert {value for name, value in arguments if name == "TORCH_VERSION"} == {makefile["TORCH_VERSION"]}
    assert {value for name, value in arguments if name == "MODEL_PACKAGE"} == {makefile["MODEL_PACKAGE"]}
    assert {value for name, value in arguments if name == "TORCH_INDEX_URL"} == {makefile["TORCH_CPU_INDEX"]}


def test_the_image_holds_the_model_that_the_base_settings_name() -> None:
    assert read_overlay("base")["model"] == f"/opt/serval/models/{MODEL_NAME}"
    assert any("SERVAL_CACHE=/opt/serval/models" in rest for _, rest in stages()["build-cpu"])


def test_images_are_those_that_the_manifests_name() -> None:
    for overlay, target in ((None, "cpu"), ("dev-cpu", "cpu"), ("gpu", "cuda"), ("longcat-flash", "cuda")):
        settings = read_overlay(overlay or "base").get("kubernetes", {})
        image = settings.get("image", {}).get("name", "serval:0.1.0-cpu")
        assert image == f"serval:{project()['version']}-{target}"


def test_all_packages_go_into_the_image_and_nothing_private() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!").rstrip("/") for line in lines if line.startswith("!")}
    packages = {
        name.split(".")[0] for name in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    }
    assert lines[1] == "*"
    assert kept == packages | {"LICENSE", "README.md", "pyproject.toml"}


def test_extras_that_it_installs_exist() -> None:
    asked = {
        extra for _, rest in instructions() for found in re.findall(r"\"\.\[([\w,]+)\]", rest) for extra in found.split(",")
    }
    assert asked == {"ray", "kubernetes", "smollm", "gpu"} <= project()["optional-dependencies"].keys()


def project() -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def test_the_settings_are_plain_yaml() -> None:
    files = sorted((ROOT / "k8s" / "settings").glob("*.yaml"))
    assert [file.stem for file in files] == ["base", "dev-cpu", "gpu", "longcat-flash"]
    assert all(isinstance(yaml.safe_load(file.read_text()), dict) for file in files)
