"""docs/reliability.md names the tests that show what it promises: they must be there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "reliability.md").read_text()
FILES = {file.name: file.read_text() for file in (ROOT / "tests").rglob("test_*.py")}


def test_every_test_exists() -> None:
    """`file.py`, `file.py::Class::test`, `::test` (of the file named before), or a test's own name."""
    named = re.findall(r"`((?:test_\w+(?:\.py)?)?(?:::\w+)*)`", TEXT)
    assert len(named) > 60
    file = ""
    for name in filter(None, named):
        first, *inner = name.split("::")
        if first.endswith(".py"):
            file = first
            assert file in FILES, f"{name}: no such file in tests/"
        elif first:
            assert any(f"def {first}(" in text for text in FILES.values()), f"{name}: no such test"
        for each in inner:
            assert re.search(rf"(def|class) {each}\b", FILES[file]), f"{name}: not in {file}"


def test_every_file_of_ours_exists() -> None:
    """`decode/pairs.py`, with its folder."""
    named = set(re.findall(r"`([a-z_0-9]+(?:/[a-z_0-9]+)+\.py)`", TEXT))
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_every_lesson_of_the_field_has_its_test() -> None:
    table = TEXT.partition("## What users of others hit")[2].partition("\n## ")[0]
    rows = [row.strip("|").split("|") for row in table.splitlines() if row.startswith("|")][2:]
    assert len(rows) >= 18
    for lesson, *_, shown in rows:
        assert re.search(r"`test_\w+|`make \w", shown), f"nothing shows:{lesson}"
