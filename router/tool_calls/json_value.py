"""Follows one JSON value through text that comes in pieces, however it is cut.

Models write almost JSON: line breaks within strings, backslashes before any character. Both are repaired, so that what is
released can be read by every JSON reader; anything else that is not JSON breaks the value.
"""

import re

_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_SPACE = re.compile(r"[ \t\r\n]*")
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_WHOLE_SCALAR = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?|true|false|null")
_HEX = frozenset("0123456789abcdefABCDEF")
_CONTROLS = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
_MAX_SCALAR = 512


class JsonValue:
    """One value. `feed` until `is_done` or `is_broken`; after that nothing more may be fed.

    Released text is always the beginning of a valid value: numbers, words and escapes come when they are whole.
    """

    def __init__(self) -> None:
        self.is_done = False
        self.is_broken = False
        self.held = ""
        """Fed, but not released yet; what to give back when the value turned out broken."""
        self._open: list[str] = []
        self._expects = "value"

    def feed(self, text: str, at: int = 0) -> tuple[int, str]:
        """Where in `text` the value's part ends, and what is released of it. The character after a number or a word ends it and
        is not part of it; so is the first that breaks the value."""
        released: list[str] = []
        while at < len(text) and not self.is_done and not self.is_broken:
            at = _STEPS[self._expects](self, text, at, released)
        return at, "".join(released)

    def _value(self, text: str, at: int, released: list[str]) -> int:
        at = _skip_space(text, at, released)
        if at == len(text):
            return at
        character = text[at]
        if character == '"':
            self._expects = "string"
        elif character in "{[":
            self._open.append(character)
            self._expects = "first key" if character == "{" else "first value"
        elif character in "-0123456789tfn":
            self._expects = "scalar"
            return at
        else:
            self.is_broken = True
            return at
        released.append(character)
        return at + 1

    def _first_value(self, text: str, at: int, released: list[str]) -> int:
        at = _skip_space(text, at, released)
        if at == len(text):
            return at
        if text[at] == "]":
            return self._close(text, at, released)
        self._expects = "value"
        return at

    def _key(self, text: str, at: int, released: list[str]) -> int:
        at = _skip_space(text, at, released)
        if at == len(text):
            return at
        if text[at] == "}" and self._expects == "first key":
            return self._close(text, at, released)
        if text[at] != '"':
            self.is_broken = True
            return at
        self._expects = "key string"
        released.append('"')
        return at + 1

    def _colon(self, text: str, at: int, released: list[str]) -> int:
        at = _skip_space(text, at, released)
        if at == len(text):
            return at
        if text[at] != ":":
            self.is_broken = True
            return at
        self._expects = "value"
        released.append(":")
        return at + 1

    def _after(self, text: str, at: int, released: list[str]) -> int:
        at = _skip_space(text, at, released)
        if at == len(text):
            return at
        if text[at] == ",":
            self._expects = "key" if self._open[-1] == "{" else "value"
            released.append(",")
            return at + 1
        return self._close(text, at, released)

    def _close(self, text: str, at: int, released: list[str]) -> int:
        if text[at] != ("}" if self._open[-1] == "{" else "]"):
            self.is_broken = True
            return at
        self._open.pop()
        released.append(text[at])
        self._ended()
        return at + 1

    def _string(self, text: str, at: int, released: list[str]) -> int:
        is_key = self._expects == "key string"
        if self.held:
            return self._escape(text, at, released)
        match = _PLAIN.match(text, at)
        assert match is not None
        released.append(match[0])
        at = match.end()
        if at == len(text):
            return at
        character = text[at]
        if character == "\\":
            self.held = character
        elif character != '"':
            released.append(_CONTROLS.get(character) or f"\\u{ord(character):04x}")
        else:
            released.append(character)
            if is_key:
                self._expects = "colon"
            else:
                self._ended()
        return at + 1

    def _escape(self, text: str, at: int, released: list[str]) -> int:
        """Releases a whole escape. A backslash that begins none stands for itself."""
        character = text[at]
        if len(self.held) == 1 and character in '"\\/bfnrt':
            released.append(self.held + character)
            self.held = ""
            return at + 1
        if (len(self.held) == 1 and character == "u") or (len(self.held) > 1 and character in _HEX):
            self.held += character
            if len(self.held) == len("\\u0000"):
                released.append(self.held)
                self.held = ""
            return at + 1
        released.append("\\" + self.held)
        self.held = ""
        return at

    def _scalar(self, text: str, at: int, released: list[str]) -> int:
        match = _SCALAR.match(text, at)
        assert match is not None
        self.held += match[0]
        if len(self.held) > _MAX_SCALAR:
            self.is_broken = True
        elif match.end() < len(text):
            if _WHOLE_SCALAR.fullmatch(self.held):
                released.append(self.held)
                self.held = ""
                self._ended()
            else:
                self.is_broken = True
        return match.end()

    def _ended(self) -> None:
        self._expects = "after"
        self.is_done = not self._open


def _skip_space(text: str, at: int, released: list[str]) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    released.append(match[0])
    return match.end()


_STEPS = {
    "value": JsonValue._value,
    "first value": JsonValue._first_value,
    "first key": JsonValue._key,
    "key": JsonValue._key,
    "key string": JsonValue._string,
    "colon": JsonValue._colon,
    "after": JsonValue._after,
    "string": JsonValue._string,
    "scalar": JsonValue._scalar,
}
