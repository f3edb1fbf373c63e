"""Tensors of a Hugging Face folder by name, from one safetensors file or many."""

import json
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from protocol.errors import ConfigError

Progress = Callable[[int, int], None]
"""Called with (tensors read, tensors in all), scales of quantised matrices not counted."""

SHOWN_NAMES = 4
"""Of the tensors that should be there or should not, in an error of one line."""


class Checkpoint:
    """Reads each tensor as it is asked for; a context manager. No more than one file is open at a time.

    A tensor is a view of its file, mapped into memory. What was read of a file stays there as long as the file is open or a view
    of it is kept: so whoever keeps a tensor copies it, and loading needs no more memory than the model and one file. A copy also
    outlives the file, which may be replaced while the model serves.
    """

    def __init__(self, folder: Path, progress: Progress | None = None) -> None:
        self._folder = folder
        self._progress = progress
        self._stack = ExitStack()
        self._open: tuple[Path, Any] | None = None
        self._path_of: dict[str, Path] = {}
        self._expected: set[str] = set()
        self._read: set[str] = set()

    def __enter__(self) -> "Checkpoint":
        for path in _files(self._folder):
            self._path_of |= dict.fromkeys(self._file(path).keys(), path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._close()

    def _file(self, path: Path) -> Any:
        """`path`, open."""
        if self._open is not None and self._open[0] == path:
            return self._open[1]
        self._close()
        try:
            file = self._stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"model: {path} cannot be read: {error}") from error
        self._open = path, file
        return file

    def _close(self) -> None:
        self._open = None
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._path_of

    def expect(self, names: set[str], ignorable: Callable[[str], bool], elsewhere: AbstractSet[str] = frozenset()) -> None:
        """Raises ConfigError unless the folder holds exactly `names`, apart from what is `ignorable`. Those `elsewhere` are not
        read here and count for no progress."""
        held = {name for name in self._path_of if name in names or not ignorable(name)}
        differences = (("lacks", names - held), ("has unexpected", held - names))
        if wrong := [f"{what} tensors: {_shown(unmatched)}" for what, unmatched in differences if unmatched]:
            raise ConfigError(f"model: the checkpoint {'; it '.join(wrong)}")
        self._expected = names - elsewhere

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor `name`, to be copied. Raises ConfigError when its shape is not the one that config.json implies."""
        tensor: torch.Tensor = self._file(self._path_of[name]).get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise ConfigError(f"model: tensor {name} has shape {list(tensor.shape)}, config.json implies {list(shape)}")
        if self._progress is not None and name in self._expected:
            self._read.add(name)
            self._progress(len(self._read), len(self._expected))
        return tensor


def _shown(names: set[str]) -> str:
    return ", ".join(sorted(names)[:SHOWN_NAMES]) + (
        f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    )


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(f"model: {index} cannot be read: {error}") from error
        # A name is one in this folder: an index must not reach out of it.
        paths = [folder / Path(name).name for name in names]
    else:
        paths = [folder / "model.safetensors"]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ConfigError(f"model: {missing[0]} does not exist; only safetensors checkpoints are supported")
    return paths
