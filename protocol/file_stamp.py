"""Notices that files have changed, also when they are replaced by a rename or, as Kubernetes does with secrets, by a link."""

from collections.abc import Iterable
from pathlib import Path

FileStamp = tuple[tuple[int, int, int] | None, ...]
"""One entry per file: inode, modification time in ns, size in bytes. None for a file that cannot be read now."""


def stamp_of(files: Iterable[Path]) -> FileStamp:
    """Equal stamps: nothing has changed. Links are followed. Raises nothing."""
    return tuple(_stamp(file) for file in files)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
