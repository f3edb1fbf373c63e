"""Reads the inside of one tool call, however its text is cut into pieces."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from router.tool_calls.tools import Tool

NAMESPACE = "functions."
"""Some LongCat checkpoints put it before a function's name."""


class CallReader(ABC):
    """Base of the forms a call is written in. Feed until `is_done` or `is_broken`; `rest` is then what is not the call's.

    A call has begun once it is certain what is called and that arguments follow. One that breaks before has no effect: its text
    is to be given back. One that breaks later has had its arguments released, and only `rest` is text.
    """

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self._tools = tools
        self.name = ""
        self.has_begun = False
        self.is_done = False
        self.is_broken = False
        self.rest = ""

    @abstractmethod
    def feed(self, text: str) -> str:
        """What is released of the call's arguments: together they are a JSON object, or the beginning of one."""

    def _known(self, name: str) -> str:
        """The tool of that name; empty if there is none. A call of what the client does not offer is not a call."""
        name = name if name in self._tools else name.removeprefix(NAMESPACE)
        return name if name in self._tools else ""
