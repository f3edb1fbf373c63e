"""Small JSON schemas from a seeded generator, for tests of structured output.

Every valid document is short (strings, arrays and numbers are bounded, no schema contains itself), so even a model of random
weights comes to an end.
"""

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

NAMES = ("name", "age", "tags", "city", "is_open", "address", "kind", "items", "größe", "a b", "note", "id", "value", "when")
WORDS = ("red", "green", "blue", "ä", "日本", 'quo"te', "back\\slash", "", "two words", "x" * 12)
PATTERNS = ("^[a-z]{1,8}$", "^[A-Z]{2}-[0-9]{3}$", "^(foo|bar)+baz$", "^\\d{4}(/\\d{2}){0,2}$", '^[^\\s"]{3,6}$', "^a?b?c?$")
DEEPEST = 3


def json_schemas(count: int, seed: int = 0) -> list[Schema]:
    """The same arguments give the same schemas. The top level is an object, as OpenAI's API demands."""
    return [_Generator(random.Random(f"{seed} {index}")).document() for index in range(count)]


class _Generator:
    def __init__(self, drawn: random.Random) -> None:
        self._drawn = drawn
        self._definitions: dict[str, Schema] = {}

    def document(self) -> Schema:
        schema = self._object(0)
        if self._definitions:
            schema["$defs"] = self._definitions
        return schema

    def _any(self, depth: int) -> Schema:
        leaves: list[Callable[[], Schema]] = [
            self._string,
            self._pattern,
            self._integer,
            self._enum,
            self._const,
            lambda: {"type": "boolean"},
            lambda: {"type": "null"},
            lambda: {"type": "string", "format": "date"},
            lambda: {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
        ]
        if depth >= DEEPEST or self._drawn.random() < 0.55:
            return self._drawn.choice(leaves)()
        nested = (self._object, self._array, self._tuple, self._any_of, self._reference)
        return self._drawn.choice(nested)(depth)

    def _object(self, depth: int) -> Schema:
        names = self._drawn.sample(NAMES, self._drawn.randint(1, 4))
        required = [name for name in names if self._drawn.random() < 0.6]
        properties = {name: self._any(depth + 1) for name in names}
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def _array(self, depth: int) -> Schema:
        fewest = self._drawn.randint(0, 2)
        most = fewest + self._drawn.randint(0, 3)
        return {"type": "array", "items": self._any(depth + 1), "minItems": fewest, "maxItems": most}

    def _tuple(self, depth: int) -> Schema:
        parts = [self._any(depth + 1) for _ in range(self._drawn.randint(1, 3))]
        return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}

    def _any_of(self, depth: int) -> Schema:
        return {"anyOf": [self._any(depth + 1) for _ in range(self._drawn.randint(2, 3))]}

    def _reference(self, depth: int) -> Schema:
        if not self._definitions or self._drawn.random() < 0.5:
            definition = self._any(depth + 1)
            self._definitions[f"definition{len(self._definitions)}"] = definition
        return {"$ref": f"#/$defs/{self._drawn.choice(sorted(self._definitions))}"}

    def _string(self) -> Schema:
        shortest = self._drawn.choice((0, 0, 1, 5))
        return {"type": "string", "minLength": shortest, "maxLength": shortest + self._drawn.randint(0, 12)}

    def _pattern(self) -> Schema:
        return {"type": "string", "pattern": self._drawn.choice(PATTERNS), "maxLength": 12}

    def _integer(self) -> Schema:
        low = self._drawn.choice((-1000, -7, 0, 1, 95))
        return {"type": "integer", "minimum": low, "maximum": low + self._drawn.choice((0, 5, 120, 99999))}

    def _enum(self) -> Schema:
        values: list[Any] = [*self._drawn.sample(WORDS, 3), self._drawn.randint(-5, 5), None, True]
        return {"enum": self._drawn.sample(values, self._drawn.randint(1, len(values)))}

    def _const(self) -> Schema:
        return {"const": self._drawn.choice((1, "fixed", [1, "two"], {"k": None}, -2.5))}
